"""adapterlab: plug small trainable adapters into a frozen BERT or GPT, train only them, ship the result.

Importing it is cheap: torch is imported when a name that needs it is first touched.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "attach": "adapterlab.attaching",
    "detach": "adapterlab.attaching",
    "activate": "adapterlab.attaching",
    "disabled": "adapterlab.attaching",
    "summary": "adapterlab.attaching",
    "Summary": "adapterlab.attaching",
    "methods": "adapterlab.adapters",
    "MethodInfo": "adapterlab.adapters",
    "register_method": "adapterlab.adapters",
    "save": "adapterlab.adapter_folder",
    "lean": "adapterlab.speed.lean",
    "load": "adapterlab.loading",
    "merge": "adapterlab.merging",
    "quantize": "adapterlab.serving.quantizing",
    "save_deployed": "adapterlab.serving.folder",
    "load_deployed": "adapterlab.serving.folder",
    "Predictor": "adapterlab.predicting",
    "combine": "adapterlab.combining",
    "convert": "adapterlab.converting",
    "set_total_step": "adapterlab.trainer_hooks",
    "run": "adapterlab.pipeline",
    "RunResult": "adapterlab.pipeline",
    "AdapterLabError": "adapterlab.errors",
}
__all__ = [
    "AdapterLabError",
    "MethodInfo",
    "Predictor",
    "RunResult",
    "Summary",
    "activate",
    "attach",
    "combine",
    "convert",
    "detach",
    "disabled",
    "lean",
    "load",
    "load_deployed",
    "merge",
    "methods",
    "quantize",
    "register_method",
    "run",
    "save",
    "save_deployed",
    "set_total_step",
    "summary",
]

if TYPE_CHECKING:
    from adapterlab.adapter_folder import save
    from adapterlab.adapters import MethodInfo, methods, register_method
    from adapterlab.attaching import Summary, activate, attach, detach, disabled, summary
    from adapterlab.combining import combine
    from adapterlab.converting import convert
    from adapterlab.errors import AdapterLabError
    from adapterlab.loading import load
    from adapterlab.merging import merge
    from adapterlab.pipeline import RunResult, run
    from adapterlab.predicting import Predictor
    from adapterlab.serving.folder import load_deployed, save_deployed
    from adapterlab.serving.quantizing import quantize
    from adapterlab.speed.lean import lean
    from adapterlab.trainer_hooks import set_total_step


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'adapterlab' has no attribute '{name}'")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
