"""Every other method that the installed peft can inject, registered under peft's own name.

Which those are is read from peft's registry: a peft that knows more or fewer methods has more or fewer here. What is
left out, and why, is in `peft_table.ABSENT`.
"""

from __future__ import annotations

from typing import Any

import peft
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer

from adapterlab.adapters.base import METHODS
from adapterlab.adapters.peft_method import PeftMethod
from adapterlab.adapters.peft_norms import LnTuningMethod, LnTuningOptions
from adapterlab.adapters.peft_options import PeftMethodConfig, options_of
from adapterlab.adapters.peft_special import BoftMethod, Ia3Method, Ia3Options, LilyMethod, OsfMethod
from adapterlab.adapters.peft_table import ABSENT, KNOWN, Known

_BASES: dict[str, tuple[type[PeftMethod], type[PeftMethodConfig]]] = {
    "boft": (BoftMethod, PeftMethodConfig),
    "ia3": (Ia3Method, Ia3Options),
    "lily": (LilyMethod, PeftMethodConfig),
    "ln_tuning": (LnTuningMethod, LnTuningOptions),
    "osf": (OsfMethod, PeftMethodConfig),
}


def bridge(kind: Any, peft_class: type[peft.PeftConfig]) -> type[PeftMethod] | None:
    """Return the method for an entry of peft's registry; None where peft can't inject it or it is left out."""
    name, tuner = kind.value.lower(), PEFT_TYPE_TO_TUNER_MAPPING.get(kind)
    layer_class = getattr(tuner, "tuner_layer_cls", None)
    if name in ABSENT or tuner is None or layer_class is None or not issubclass(tuner, BaseTuner):
        return None
    known = KNOWN.get(name)
    base, config_base = _BASES.get(name, (PeftMethod, PeftMethodConfig))
    config = options_of(name, peft_class, config_base)
    config.__module__ = __name__
    members = {
        "__module__": __name__,
        "__doc__": f"{peft_class.__name__.removesuffix('Config')}, by peft.",
        "summary": known.summary if known else f"{tuner.__name__} of peft {peft.__version__}",
        "paper": known.paper if known else "",
        "known": known or Known(""),
        "conv1d": known.conv1d if known else None,
        "Config": config,
        "tuner_class": tuner,
        "layer_class": layer_class,
        "peft_type": kind.value,
        "marker": PEFT_TYPE_TO_PREFIX_MAPPING[kind].removesuffix("lambda_"),
        "merges": (known is None or known.merges) and _merges(layer_class),
    }
    return type(config.__name__.removesuffix("Config"), (base,), members)


def _merges(layer_class: type) -> bool:
    """Whether a layer class, or what is made of it for a kind of module, has a merge of its own."""
    classes: list[type] = [layer_class]
    family = [*layer_class.__mro__]
    while classes:
        subclasses: list[type] = classes.pop().__subclasses__()
        classes += subclasses
        family += subclasses
    return any("merge" in vars(cls) for cls in family if cls is not BaseTunerLayer)


def _register() -> None:
    METHODS.reasons.update({name: f"peft's '{name}' is not among them: {why}." for name, why in ABSENT.items()})
    for kind, peft_class in PEFT_TYPE_TO_CONFIG_MAPPING.items():
        name = kind.value.lower()
        if name in METHODS.so_far():
            continue  # a method of our own
        try:
            method = bridge(kind, peft_class)
            if method is not None:
                entry = method()
                entry.name = name
                METHODS.register(name, entry)  # unchecked: what `register_method` checks takes a second for all these
                globals().update({cls.__name__: cls for cls in (method, method.Config)})  # so that models pickle
        except Exception as error:  # a peft that we haven't seen: whatever is odd about one method, the others go on
            METHODS.failures[f"peft {name}"] = f"{type(error).__name__}: {error}"


_register()
