"""The adapter methods. Importing this package registers them."""

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
from adapterlab.adapters.lora import LoraConfig
from adapterlab.adapters.prefix import PrefixConfig

list_methods = methods

__all__ = [
    "METHODS",
    "AdaLoraConfig",
    "BottleneckConfig",
    "LoraConfig",
    "Method",
    "MethodConfig",
    "MethodInfo",
    "OptionInfo",
    "PrefixConfig",
    "list_methods",
    "methods",
    "parse_config",
    "register_method",
]
