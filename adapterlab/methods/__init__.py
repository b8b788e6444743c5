"""The adapter methods. Importing this package registers them."""

from adapterlab.methods import adalora, bottleneck, lora, prefix
from adapterlab.methods.base import (
    METHODS,
    Method,
    MethodConfig,
    MethodInfo,
    OptionInfo,
    methods,
    parse_config,
    register_method,
)

list_methods = methods

__all__ = [
    "METHODS",
    "Method",
    "MethodConfig",
    "MethodInfo",
    "OptionInfo",
    "adalora",
    "bottleneck",
    "list_methods",
    "lora",
    "methods",
    "parse_config",
    "prefix",
    "register_method",
]
