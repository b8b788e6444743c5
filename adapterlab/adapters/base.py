"""What a method is: a config, how it gets into a model and out again, and what it saves.

A plugin is one file: subclass `MethodConfig` and `Method`, decorate the method with `@register_method`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import nn

from adapterlab.backbones import Backbone
from adapterlab.errors import AdapterError, ConfigError, did_you_mean
from adapterlab.registry import Registry


class MethodConfig(BaseModel):
    """Options of a method. Subclasses declare one field per option; its description is its help."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, strict=True, allow_inf_nan=False)

    modules_to_save: list[str] = Field(
        default=[], description="further modules, by name ending, to train in full and save with the adapter"
    )


class Method(ABC):
    """An adapter method. One instance serves every model: all state lives in the model.

    The parameters that `inject` adds carry the adapter's name as one part of their path, right behind a part
    that starts with `marker` (`...query.lora_A.default.weight`); everything generic below rests on that.
    """

    summary: ClassVar[str]  # one line for `adapterlab methods`
    paper: ClassVar[str] = ""  # "Hu et al. 2021, arXiv:2106.09685"
    Config: ClassVar[type[MethodConfig]]
    peft_type: ClassVar[str]  # the type in adapter_config.json
    marker: ClassVar[str]
    rewires_layers: ClassVar[bool] = True  # whether it hooks into layers, so that they can't be trained in full as well
    key_prefix: ClassVar[str] = "base_model.model."  # what peft puts before a path in the file
    merges: ClassVar[bool] = False  # whether `merge` can fold an adapter into the backbone's weights
    shards: ClassVar[bool] = True  # whether it works where FSDP shares out its parameters among processes
    name: str = ""  # set by the registry

    @abstractmethod
    def inject(self, model: nn.Module, backbone: Backbone, name: str, config: Any) -> None:
        """Put the adapter into the model, untrained. It may raise; `remove` is called then."""

    @abstractmethod
    def remove(self, model: nn.Module, name: str) -> None:
        """Take the adapter out; nothing of it stays. Called also after an `inject` that failed."""

    @abstractmethod
    def activate(self, model: nn.Module, names: list[str]) -> None:
        """Let just these adapters of this method take part in forward."""

    def merge(self, model: nn.Module, name: str, config: Any) -> None:
        """Fold the active adapter into the backbone's weights, computing in fp32; `remove` is called next.

        Only called where `merges` is true. Give parameters new `data` rather than change it in place: if it raises,
        the caller puts the old data back.
        """
        raise NotImplementedError(f"{type(self).__name__} says that it merges and has no merge")

    def combine(
        self, model: nn.Module, parts: dict[str, tuple[Any, float]], how: str, r: int | None
    ) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        """Return options and state of a new adapter: the weighted sum of `parts`, config and weight by name.

        Raises:
            AdapterError: adapters of this method have no sum.
        """
        raise AdapterError(
            f"adapters of method '{self.name}' have no weighted sum. Activate several at once, "
            f"activate(model, {list(parts)}), or train with lora."
        )

    def report(self, model: nn.Module, name: str, config: Any) -> str | None:
        """Return a line for the run's report on what training made of the adapter, if there is something to say."""
        return None

    def slow_because(self, model: nn.Module, name: str) -> str | None:
        """Return why some of the adapter's layers are trained the general way and not the fast one, if they are."""
        return None

    def parameters(self, model: nn.Module, name: str) -> dict[str, nn.Parameter]:
        """Return the adapter's trainable parameters by their path in the model."""
        return {path: p for path, p in model.named_parameters() if self._owns(path, name) and self.trains(path)}

    def trains(self, path: str) -> bool:
        """Whether a parameter that the adapter owns is trained."""
        return True

    def state(self, model: nn.Module, name: str, config: Any) -> dict[str, torch.Tensor]:
        """Return the tensors to save, keyed by path without the adapter's name (as peft does)."""
        return {self._key(path, name): p.detach() for path, p in self.parameters(model, name).items()}

    def load_state(self, model: nn.Module, name: str, config: Any, state: dict[str, torch.Tensor]) -> None:
        """Copy saved tensors, of the names and shapes that `state` gives, into the model."""
        with torch.no_grad():
            for path, parameter in self.parameters(model, name).items():
                parameter.copy_(state[self._key(path, name)])

    def adopt(self, model: nn.Module, name: str, fields: dict[str, Any]) -> None:  # noqa: B027
        """Take over what adapter_config.json says beyond options (AdaLoRA: the ranks), before the tensors."""

    def is_ballast(self, model: nn.Module, key: str, tensor: torch.Tensor) -> bool:
        """Whether a tensor in a file is a copy of something frozen that was written along, and isn't to be loaded."""
        return False

    def without_head(
        self, model: nn.Module, backbone: Backbone, tensors: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """Return a file's tensors as a model with another head than it was trained with takes them."""
        return tensors

    def training_state(self, model: nn.Module, name: str) -> dict[str, torch.Tensor]:
        """Return what a checkpoint needs to go on training, keyed by path in the model's `state_dict`."""
        return {path: tensor for path, tensor in model.state_dict().items() if self._owns(path, name)}

    def on_train_begin(self, model: nn.Module, name: str, config: Any, total_step: int, done: int) -> None:  # noqa: B027
        """Learn how many optimizer steps the run has, and how many of them a resumed run has done.

        Raise if a schedule can't fit.
        """

    def before_step(self, model: nn.Module, name: str, config: Any) -> None:  # noqa: B027
        """Called before each optimizer step that touches the adapter; a regulariser adds its gradient here."""

    def on_train_step(self, model: nn.Module, name: str, config: Any) -> None:  # noqa: B027
        """Called after each optimizer step that touched the adapter, before gradients are cleared."""

    def acts_on_steps(self) -> bool:
        """Whether the method does anything around optimizer steps: most don't, and then nothing is looked up."""
        cls = type(self)
        return cls.before_step is not Method.before_step or cls.on_train_step is not Method.on_train_step

    def on_train_end(self, model: nn.Module, name: str, config: Any) -> None:  # noqa: B027
        """Called when a Trainer has ended, with the best state loaded if it was to be."""

    @abstractmethod
    def to_peft(self, model: nn.Module, backbone: Backbone, name: str, config: Any) -> dict[str, Any]:
        """Return adapter_config.json's own fields for this adapter."""

    @abstractmethod
    def from_peft(self, fields: dict[str, Any], keys: Iterable[str]) -> dict[str, Any]:
        """Return the options that rebuild an adapter from its adapter_config.json and its tensors' names."""

    def _owns(self, path: str, name: str) -> bool:
        if self.marker not in path:  # as in most of a model
            return False
        return any(a.startswith(self.marker) and b == name for a, b in pairwise(path.split(".")))

    def _key(self, path: str, name: str) -> str:
        parts = [part for part in path.split(".") if part != "base_layer"]
        for index, part in enumerate(parts[1:], start=1):
            if part == name and parts[index - 1].startswith(self.marker):
                return ".".join(parts[:index] + parts[index + 1 :])
        return ".".join(parts)


METHODS: Registry[Method] = Registry("method", group="adapterlab.methods")
M = TypeVar("M", bound=type[Method])


def register_method(name: str, *, aliases: tuple[str, ...] = ()) -> Callable[[M], M]:
    """Class decorator: make a `Method` available as `attach(model, name)`.

    Raises:
        ConfigError: the name is taken, or something is missing or wrong: all of it is named.
    """
    from adapterlab.adapters.registration import check_method  # which needs the classes above

    def decorate(cls: M) -> M:
        again = check_method(cls, name, aliases)
        method = cls()
        method.name = name
        METHODS.register(name, method, aliases=aliases, replace=again)
        return cls

    if not isinstance(name, str):
        raise ConfigError("register_method takes the method's name: @register_method('my-method').")
    return decorate


@dataclass(frozen=True)
class OptionInfo:
    """One option of a method."""

    name: str
    type: str
    default: Any
    help: str
    aliases: tuple[str, ...] = ()
    required: bool = False


@dataclass(frozen=True)
class MethodInfo:
    """One registered method."""

    name: str
    summary: str
    paper: str
    aliases: tuple[str, ...]
    options: tuple[OptionInfo, ...]
    merges: bool  # whether `merge` can fold it into the backbone's weights


def methods() -> list[MethodInfo]:
    """Return every registered method, with one line about each and its options."""
    return [
        MethodInfo(
            name, method.summary, method.paper, METHODS.aliases(name), tuple(_options(method.Config)), method.merges
        )
        for name, method in METHODS
    ]


def parse_config(method: str, options: dict[str, Any] | MethodConfig) -> MethodConfig:
    """Check a method's options.

    Raises:
        ConfigError: all that is wrong with them; each problem starts with the option's name.
    """
    config_class = METHODS.get(method).Config
    if isinstance(options, MethodConfig):
        if isinstance(options, config_class):
            return options
        raise ConfigError(f"method '{method}' takes a {config_class.__name__}, not a {type(options).__name__}.")
    twice = [
        f"{' and '.join(given)}: two names of one option; give one of them."
        for option in _options(config_class)
        if len(given := [name for name in (option.name, *option.aliases) if name in options]) > 1
    ]
    if twice:
        raise ConfigError(twice)
    try:
        return config_class.model_validate(options)
    except ValidationError as error:
        known = [name for option in _options(config_class) for name in (option.name, *option.aliases)]
        raise ConfigError([_problem(method, known, item) for item in error.errors()]) from None


def _problem(method: str, known: list[str], item: Any) -> str:
    option = str(item["loc"][0]) if item["loc"] else method
    if item["type"] == "extra_forbidden":
        return (
            f"{option}: method '{method}' has no such option.{did_you_mean(option, known)} Known: {', '.join(known)}."
        )
    message = str(item["msg"]).removeprefix("Value error, ")
    return f"{option}: {message} (given: {item['input']!r})." if item["loc"] else f"{method}: {message}"


def _options(config: type[MethodConfig]) -> list[OptionInfo]:
    found = []
    everybodys = MethodConfig.model_fields
    own_first = sorted(
        config.model_fields.items(), key=lambda item: (item[0] in everybodys, item[0] not in config.__annotations__)
    )
    for name, field in own_first:
        choices = getattr(field.validation_alias, "choices", [])
        aliases = tuple(str(choice) for choice in choices if choice != name)
        annotation = getattr(field.annotation, "__name__", None)
        kind = annotation if annotation and "[" not in str(field.annotation) else str(field.annotation)
        kind = kind.replace("typing.", "").replace("NoneType", "None")
        default = None if field.is_required() else field.get_default(call_default_factory=True)
        found.append(OptionInfo(name, kind, default, field.description or "", aliases, field.is_required()))
    return found
