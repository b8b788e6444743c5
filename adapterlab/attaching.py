"""Put adapters into a model, in place, and take them out again."""

from __future__ import annotations

import re
import types
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from adapterlab import token_rows, trainer_hooks
from adapterlab.adapters import METHODS, MethodConfig, parse_config
from adapterlab.backbones import describe
from adapterlab.errors import AdapterError, BackboneError, ConfigError
from adapterlab.fingerprint import fingerprint
from adapterlab.guests import Guest, Guests, guests_of, keep_guests, need_guests
from adapterlab.heads import adopt_heads, check_apart, labels_of, place_heads, read_labels
from adapterlab.sharding import reshard

M = TypeVar("M", bound=nn.Module)


def attach(
    model: M,
    method: str | MethodConfig | dict[str, Any],
    name: str = "default",
    *,
    labels: Sequence[str] | int | None = None,
    new_tokens: Mapping[str, Sequence[int]] | None = None,
    **options: Any,
) -> M:
    """Put an adapter into a pretrained model, in place, and freeze everything but adapter and head.

    Args:
        model: any transformers model, with or without a task head.
        method: a name from `adapterlab.methods()`, a method's config, or a dict with `method` and options.
        name: what to call the adapter; it becomes the active one.
        labels: label names, or their number, if the adapter's head shall not have the model's: adapters for
            different tasks can share a model.
        new_tokens: tokens that the adapter brings along, with the ids of the pieces that their embeddings start from;
            `adapterlab.new_tokens.pieces(tokenizer, tokens)` makes it. The backbone's embeddings stay as they are.
        options: the method's options, by the paper's or peft's names.

    Returns:
        The same object. Training it trains the adapter; `save` writes the adapter.

    Raises:
        ConfigError: unknown method, or wrong options or new tokens (all of them are named).
        AdapterError: there is an adapter of that name.
        BackboneError: the model has no module that the method can attach to.

    Example:
        >>> model = AutoModelForSequenceClassification.from_pretrained("bert-base-uncased")
        >>> adapterlab.attach(model, "lora", r=8)
    """
    return attach_to(model, method, name, labels, new_tokens, options)


def attach_to(
    model: M,
    method: str | MethodConfig | dict[str, Any],
    name: str,
    labels: Sequence[str] | int | None,
    new_tokens: Mapping[str, Sequence[int]] | None,
    options: dict[str, Any],
    print_: dict[str, Any] | None = None,
) -> M:
    """Do what `attach` does, for a backbone whose fingerprint may be known already."""
    method_name, config = _read_method(method, options)
    own_labels = read_labels(labels)
    guests = _admit(model, name, print_)
    guest = Guest(name, method_name, config)
    before = list(guests.active)
    try:
        already_there = set(model.modules())
        adopt_heads(model, guests, guest, own_labels)
        guest.method.inject(model, guests.backbone, name, config)
        check_apart(model, guests, guest)
        if new_tokens:
            token_rows.add(model, name, new_tokens)
        token_rows.check_apart(model, list(guests.heads_before))
        guests.adapters[name] = guest
        for module in set(model.modules()) - already_there:
            module.training = model.training
        _switch(model, guests, [name])
    except BaseException:
        guests.adapters[name] = guest
        guests.active = before
        detach(model, name)
        raise
    return model


def detach(model: M, name: str | None = None) -> M:
    """Take one adapter, or all of them, out of the model.

    After the last one the model is as it was before the first `attach`, bit for bit: weights, head, label
    names, what is trainable.

    Raises:
        AdapterError: there is no such adapter.
    """
    guests = need_guests(model)
    leaving = [guests.pick(name, "detach").name] if name is not None else list(guests.adapters)
    for leaver in leaving:
        guest = guests.adapters.pop(leaver)
        guest.method.remove(model, leaver)
        token_rows.remove(model, leaver)
    _switch(model, guests, [name for name in guests.active if name in guests.adapters])
    if not guests.adapters:
        for path, parameter in model.named_parameters():
            parameter.requires_grad_(path in guests.trainable_before)
        trainer_hooks.uninstall(model)
        model.__dict__.pop("save_pretrained", None)
        keep_guests(model, None)
    return model


def activate(model: M, names: str | list[str] | None) -> M:
    """Choose which adapters take part in forward, and are trained; `None` is none of them.

    With several, each adds its term, and the head and labels are those of the last one named, and so are new tokens.

    Raises:
        AdapterError: there is no such adapter, or two of them bring different new tokens.
    """
    guests = need_guests(model)
    if not (names is None or isinstance(names, str | list | tuple)):
        raise AdapterError(f"activate takes a name, a list of names or None, not {names!r}.")
    chosen = [] if names is None else [names] if isinstance(names, str) else list(dict.fromkeys(names))
    for name in chosen:
        guests.pick(name, "activate")
    before = list(guests.active)
    try:
        _switch(model, guests, chosen)
    except AdapterError:  # of a method that can't have several active
        _switch(model, guests, before)
        raise
    return model


@contextmanager
def disabled(model: M) -> Iterator[M]:
    """Give the plain backbone, with its own head, inside the `with` block.

    >>> with adapterlab.disabled(model):
    ...     before = model(**batch).logits
    """
    guests = need_guests(model)
    active = list(guests.active)
    _switch(model, guests, [])
    try:
        yield model
    finally:
        if guests_of(model) is guests:  # inside, everything may have been detached
            _switch(model, guests, [name for name in active if name in guests.adapters])


@dataclass(frozen=True)
class AdapterSummary:
    """One adapter of a model. Counts are parameters."""

    name: str
    method: str
    active: bool
    parameters: int
    head_parameters: int
    options: dict[str, Any]
    new_tokens: dict[str, int] = field(default_factory=dict)  # ids by token; their rows are among `parameters`
    slow: str | None = None  # why some of its layers are trained the general way and not the fast one


@dataclass(frozen=True)
class Summary:
    """What `summary` gives. `trainable` and `total` count parameters; `total` includes the adapters."""

    backbone: str
    adapters: tuple[AdapterSummary, ...]
    trainable: int
    total: int

    def __str__(self) -> str:
        share = 100 * self.trainable / self.total if self.total else 0.0
        lines = [f"{self.backbone}: {self.trainable:,} of {self.total:,} parameters are trained ({share:.2f} %)"]
        for adapter in self.adapters:
            state = "active" if adapter.active else "inactive"
            head = f" + head {adapter.head_parameters:,}" if adapter.head_parameters else ""
            brings = f", {len(adapter.new_tokens)} new tokens" if adapter.new_tokens else ""
            lines.append(
                f"  {adapter.name}: {adapter.method}, {state}, {adapter.parameters:,} parameters{head}{brings}"
            )
            if adapter.slow:
                lines.append(f"    not in the fast way: {adapter.slow}")
        return "\n".join(lines)


def summary(model: nn.Module) -> Summary:
    """Return the model's adapters, with trainable and total parameters; printing it gives a line for each."""
    guests = guests_of(model)
    adapters = []
    for guest in guests.adapters.values() if guests else ():
        rows = token_rows.rows_of(model, guest.name)
        own = sum(p.numel() for p in guest.method.parameters(model, guest.name).values())
        own += sum(p.numel() for p in rows.parameters()) if rows else 0
        head = sum(p.numel() for module in guest.heads.values() for p in module.parameters())
        options = guest.config.model_dump(exclude_none=True)
        active = guest.name in guests.active  # type: ignore[union-attr]
        ids = rows.tokens.ids if rows else {}
        slow = guest.method.slow_because(model, guest.name) if active else None
        adapters.append(AdapterSummary(guest.name, guest.method_name, active, own, head, options, ids, slow))
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    total = sum(p.numel() for p in model.parameters())
    return Summary(type(model).__name__, tuple(adapters), trainable, total)


def _read_method(method: str | MethodConfig | dict[str, Any], options: dict[str, Any]) -> tuple[str, Any]:
    if isinstance(method, MethodConfig):
        if options:
            raise ConfigError(f"options {sorted(options)} were given beside a {type(method).__name__}; put them in it.")
        names = [name for name, known in METHODS if known.Config is type(method)]
        if not names:
            raise ConfigError(f"{type(method).__name__} belongs to no registered method.")
        return names[0], method
    if isinstance(method, dict):
        options = {**method, **options}
        method = options.pop("method", None)
    if not isinstance(method, str):
        given = repr(method) if isinstance(method, int | float | None) else f"a {type(method).__name__}"
        raise ConfigError(
            f"method: a name such as 'lora', one of our configs or a dict is needed, and {given} was given. "
            "Options go beside the name: attach(model, 'lora', r=8)."
        )
    return METHODS.canonical(method), parse_config(method, options)


def _admit(model: nn.Module, name: str, print_: dict[str, Any] | None) -> Guests:
    """Return the model's guest list, made if this is the first; refuse what can't become a host."""
    if isinstance(name, str) and (hasattr(nn.ModuleDict(), name) or hasattr(nn.ParameterDict(), name)):
        raise AdapterError(f"name '{name}' is one that torch uses for modules; choose another, e.g. '{name}-1'.")
    if not (isinstance(name, str) and re.fullmatch(r"[A-Za-z0-9_-]+", name)):
        raise AdapterError(f"name '{name}': letters, digits, '_' and '-' only, since it becomes part of a module path.")
    if not isinstance(model, nn.Module):
        raise BackboneError(
            f"a transformers model is needed, and {model!r} was given. Load it first: "
            "AutoModelForSequenceClassification.from_pretrained('bert-base-uncased')."
        )
    guests = guests_of(model)
    if guests is not None:
        if name in guests.adapters:
            raise AdapterError(
                f"the model has an adapter '{name}' ({guests.adapters[name].method_name}) already. "
                f"Give the new one another name, attach(..., name='{name}2'), or detach(model, '{name}') first."
            )
        return guests
    if isinstance(model, PeftModel) or any(isinstance(module, BaseTunerLayer) for module in model.modules()):
        raise BackboneError(
            "the model holds adapters that peft put there. Give the plain backbone: peft_model.unload(), "
            "or load it afresh; adapterlab.load reads peft's folders."
        )
    backbone = describe(model)
    trainable = {path for path, parameter in model.named_parameters() if parameter.requires_grad}
    problem_type = getattr(model.config, "problem_type", None)
    guests = Guests(backbone, trainable, labels_of(model), problem_type, next(model.parameters()).dtype)
    guests.fingerprint = print_ or fingerprint(model, backbone)
    keep_guests(model, guests)
    trainer_hooks.install(model)
    model.__dict__["save_pretrained"] = types.MethodType(trainer_hooks.save_pretrained, model)
    return guests


def _switch(model: nn.Module, guests: Guests, names: list[str]) -> None:
    """Make these adapters the active ones: in forward, in training, with their head and new tokens."""
    if names:
        names = list(dict.fromkeys([*(name for name, guest in guests.adapters.items() if guest.frozen), *names]))
    bringing = _agreed_on_tokens(model, names)
    if (heading := guests.heading()) is not None:  # its labels may have been renamed in the model's config meanwhile
        heading.labels = labels_of(model)
        heading.problem_type = getattr(model.config, "problem_type", None)
    guests.active = list(names)
    reshard(model)  # what is trained is noted on the parts, which stay
    for method in {guest.method for guest in guests.adapters.values()}:
        method.activate(model, [name for name in names if guests.adapters[name].method is method])
    place_heads(model, guests, guests.heading())
    token_rows.place(model, bringing)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for guest in [guests.adapters[name] for name in names if not guests.adapters[name].frozen]:
        for parameter in guest.trained(model).values():
            parameter.requires_grad_(True)


def _agreed_on_tokens(model: nn.Module, names: list[str]) -> str | None:
    """Return the last of these adapters that brings new tokens; refuse several that bring different ones."""
    ids = {name: rows.tokens.ids for name in names if (rows := token_rows.rows_of(model, name)) is not None}
    last = next(reversed(ids), None)
    other = next((name for name in ids if ids[name] != ids[last]), None)  # type: ignore[index]
    if other is not None:
        raise AdapterError(
            f"adapters '{other}' and '{last}' bring different new tokens under the same ids ({', '.join(ids[other])}; "
            f"{', '.join(ids[last])}), and can't be active together."  # type: ignore[index]
        )
    return last
