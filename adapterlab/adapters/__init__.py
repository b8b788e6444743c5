"""The adapter methods. Importing this package registers them.

A method of your own needs `Method`, `MethodConfig` and `register_method`; `Backbone` describes the model to it, and
`find_targets`, with the option types `Targets` and `Layers`, finds linears as the methods here do: docs/plugins.md.
"""

from adapterlab.adapters.adalora import AdaLoraConfig
from adapterlab.adapters.base import (
    METHODS,
    Method,
    MethodConfig,
    MethodInfo,
    OptionInfo,
    methods,
    parse_config,
    register_method,
)
from adapterlab.adapters.bottleneck import BottleneckConfig
from adapterlab.adapters.full import FullConfig
from adapterlab.adapters.lora import LoraConfig
from adapterlab.adapters.p_tuning import PTuningConfig
from adapterlab.adapters.prefix import PrefixConfig
from adapterlab.adapters.prompt import PromptConfig

from adapterlab.adapters import peft_bridge  # isort: skip  # noqa: F401 (what we have ourselves comes first)
from adapterlab.adapters.targets import Layers, Targets, find_targets
from adapterlab.backbones import Backbone, Found

list_methods = methods

__all__ = [
    "METHODS",
    "AdaLoraConfig",
    "Backbone",
    "BottleneckConfig",
    "Found",
    "FullConfig",
    "Layers",
    "LoraConfig",
    "Method",
    "MethodConfig",
    "MethodInfo",
    "OptionInfo",
    "PTuningConfig",
    "PrefixConfig",
    "PromptConfig",
    "Targets",
    "find_targets",
    "list_methods",
    "methods",
    "parse_config",
    "register_method",
]
