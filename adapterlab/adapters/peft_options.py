"""A method's options, made from the dataclass in which peft keeps them."""

from __future__ import annotations

import dataclasses
import enum
import keyword
import math
import re
import types
import typing
import warnings
from typing import Any, ClassVar, Literal, Union, get_args, get_origin

import peft
from pydantic import AliasChoices, ConfigDict, Field, create_model, model_validator

from adapterlab.adapters.patterns import check_patterns
from adapterlab.adapters.peft_table import KNOWN, Known
from adapterlab.adapters.targets import TargetConfig
from adapterlab.errors import ConfigError

# Fields of peft's that say nothing here: the backbone, the task and the targets are known, biases and convolutions
# aren't adapted, and what AdaMSS and FRoD do outside the forward pass needs peft's own trainer or device juggling.
_DROPPED = {field.name for field in dataclasses.fields(peft.PeftConfig)} | {
    "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "modules_to_save",
    "feedforward_modules", "fan_in_fan_out", "bias", "use_effective_conv2d", "ensure_weight_tying",
    "target_parameters", "target_svd_config", "progressbar", "runtime_offload_base_weight",
    "use_asa", "asa_target_subspaces", "asa_importance_beta", "asa_uncertainty_beta", "asa_schedule_exponent",
    "init_warmup", "final_warmup", "mask_interval",
}  # fmt: skip

_PATTERN = "_pattern"  # how the names of options end that map name endings to values
_WHOLE = ("rank", "n_frequency", "block_size")  # how those begin whose values are whole numbers


class PeftMethodConfig(TargetConfig):
    """Options that all methods of peft's share. `option_names` are the fields that are peft's."""

    model_config = ConfigDict(defer_build=True)  # there are dozens, and most are never used

    peft_class: ClassVar[type[peft.PeftConfig]]
    known: ClassVar[Known] = Known("")
    option_names: ClassVar[tuple[str, ...]] = ()

    @model_validator(mode="after")
    def _check(self) -> PeftMethodConfig:
        for option, pattern in self.patterns().items():
            for ending, value in check_patterns(pattern).items():
                if value <= 0:
                    raise ValueError(f"{option}: '{ending}' must be given a number above 0, not {value!r}.")
        self.to_peft()
        return self

    def patterns(self) -> dict[str, dict[str, Any]]:
        """Return the options that map name endings to values."""
        return {name: getattr(self, name) or {} for name in self.option_names if name.endswith(_PATTERN)}

    def to_peft(self, **fitted: Any) -> peft.PeftConfig:
        """Return peft's config, with `fitted` in place of what was left out.

        Raises:
            ValueError: peft has an objection.
        """
        given = {name: getattr(self, name) for name in self.option_names}
        given = {name: value for name, value in given.items() if value is not None} | fitted
        if any(given.get(name) for name in self.known.divides[1:]):
            given.setdefault(self.known.divides[0], 0)  # peft wants one of them, and has a default for this one
        if "progressbar" in self.peft_class.__dataclass_fields__:
            given["progressbar"] = False
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                return self.peft_class(**given)
            except TypeError as error:
                raise ValueError(str(error)) from None


def options_of(
    method: str, peft_class: type[peft.PeftConfig], base: type[PeftMethodConfig] = PeftMethodConfig
) -> type[PeftMethodConfig]:
    """Return the `MethodConfig` for a config class of peft's."""
    known = KNOWN.get(method, Known(""))
    fitted = (*known.divides, *known.most)
    hints = typing.get_type_hints(peft_class)
    options: dict[str, Any] = {}
    names = [f.name for f in dataclasses.fields(peft_class) if f.name not in _DROPPED]
    for field in dataclasses.fields(peft_class):
        if field.name in names:
            hint = known.choices.get(field.name, hints[field.name])
            options[field.name] = _option(method, field, hint, known, field.name in fitted, names)
    made = create_model(
        f"{method.title().replace('_', '')}Config", __base__=base, __module__=base.__module__, **options
    )
    made.__doc__ = f"Options of {method}, as in peft's {peft_class.__name__}."
    made.peft_class = peft_class
    made.known = known
    made.option_names = tuple(options)
    return made


def fit(config: PeftMethodConfig, shapes: list[tuple[int, int]]) -> dict[str, int]:
    """Return values that suit layers of these (in, out) features for options that were left out.

    Raises:
        ConfigError: a given value doesn't divide the widths that it must divide, or is more than the layers allow.
    """
    known, defaults = config.known, config.peft_class()
    sizes = sorted({shape[side] for shape in shapes for side in known.sides})
    divisors = [n for n in range(1, min(sizes) + 1) if math.gcd(*sizes) % n == 0]
    given = {option: getattr(config, option) for option in known.divides if getattr(config, option)}
    for option, value in given.items():
        if value not in divisors:
            raise ConfigError(
                f"{option}: {value} doesn't divide the widths of the layers to adapt, {', '.join(map(str, sizes))}. "
                f"It may be {', '.join(map(str, divisors))}, or be left out."
            )
    fitted = {}
    for option, most in known.most.items():
        value, limit = getattr(config, option), min(most(*shape) for shape in shapes)
        usual = getattr(defaults, option)
        if value is None and usual is not None:
            fitted[option] = min(usual, limit)
        elif value is not None and value > limit:
            raise ConfigError(
                f"{option}: {value} is more than the layers to adapt allow, {limit} at most for features "
                f"{', '.join(f'{fan_in} to {fan_out}' for fan_in, fan_out in sorted(set(shapes)))}. "
                "Lower it, or leave it out."
            )
    if known.divides and not given:
        usual = getattr(defaults, known.divides[0])
        fitted[known.divides[0]] = max(n for n in divisors if n <= usual)
    return fitted


def _option(
    method: str, field: dataclasses.Field[Any], hint: Any, known: Known, fitted: bool, names: list[str]
) -> tuple[Any, Any]:
    factory = field.default_factory
    default = field.default if factory is dataclasses.MISSING else factory()
    default = known.defaults.get(field.name, default)
    default = default.value if isinstance(default, enum.Enum) else default
    text = _first_sentence(str(field.metadata.get("help", "")))
    if fitted and default is not None:
        text += f" {_fit(field.name, default, known)}"
    if fitted:
        hint, default = hint | None, None
    bounds: dict[str, Any] = {}
    kinds = {kind for kind in (get_args(hint) or (hint,)) if kind is not types.NoneType}
    if kinds == {int}:
        bounds["ge"] = 1 if default is None else min(default, 1)
    elif kinds == {float}:
        bounds = {"ge": 0, "lt": 1} if "dropout" in field.name else {"ge": 0}
    if field.name.endswith(_PATTERN):
        hint, default = dict[str, int] if field.name.startswith(_WHOLE) else dict[str, int | float], {}
    return _annotation(hint), Field(
        default,
        description=text.strip(),
        validation_alias=_alias(method, field.name, names),
        **bounds,
    )


def _fit(name: str, default: Any, known: Known) -> str:
    if name in known.divides[1:]:
        return "Instead of the other."
    if name in known.divides:
        return f"If left out, the largest up to {default} that divides the layers' widths."
    return f"If left out, {default}, or as much as the layers allow."


def _alias(method: str, name: str, names: list[str]) -> AliasChoices | None:
    """Let `vera_dropout` be called `dropout` as well."""
    short = name.removeprefix(f"{method}_")
    usable = short != name and short.isidentifier() and not keyword.iskeyword(short) and short not in names
    return AliasChoices(name, short) if usable else None


def _annotation(hint: Any) -> Any:
    """Return a type for pydantic: an enum is its values."""
    if get_origin(hint) in (Union, types.UnionType):
        members = [_annotation(member) for member in get_args(hint)]
        choices = [member for member in members if get_origin(member) is Literal]
        return Union[tuple(member for member in members if not (choices and member is str))]  # noqa: UP007
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return Literal[tuple(member.value for member in hint)]
    return hint


def _first_sentence(text: str) -> str:
    text = " ".join(text.split())
    return re.split(r"(?<=[a-z)\d`'])\.\s", text, maxsplit=1)[0].rstrip(".") + "." if text else ""
