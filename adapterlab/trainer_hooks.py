"""How adapters live inside other people's training loops, above all a plain `transformers.Trainer`.

Three hooks, each where torch or transformers offers one:
- around every optimizer step, `Method.before_step` and `on_train_step` of the adapters that it trains;
- a Trainer callback that tells methods the run's length, and puts the training state into checkpoints;
- `load_state_dict` of a file that holds adapters only does not complain of the missing backbone.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from transformers import TrainerCallback, trainer

from adapterlab import token_rows
from adapterlab.adapter_folder import save
from adapterlab.errors import AdapterError, ConfigError
from adapterlab.guests import Guest, guests_of, need_guests
from adapterlab.sharding import is_sharded, joins, whole

# models that ran forward in training mode while they had adapters
_in_training: weakref.WeakSet[nn.Module] = weakref.WeakSet()
TRAINING_STATE = "model.safetensors"


def set_total_step(model: nn.Module, total_step: int) -> None:
    """Tell the active adapters how many optimizer steps training has. Only your own loops with AdaLoRA need it.

    Raises:
        AdapterError: the model has no adapter.
        ConfigError: that isn't a number of steps, or a schedule doesn't fit into so many.
    """
    if isinstance(total_step, bool) or not isinstance(total_step, int) or total_step < 1:
        raise ConfigError(
            f"total_step: the number of optimizer steps is needed, a whole number of at least 1, and {total_step!r} "
            "was given. It is batches per epoch, divided by those accumulated for a step, times epochs."
        )
    begin_training(model, total_step)


def begin_training(model: nn.Module, total_step: int, done: int = 0) -> None:
    """The same, for a run that may have done some of its steps before it was stopped."""
    guests = need_guests(model)
    trained = [guests.adapters[name] for name in guests.active if not guests.adapters[name].frozen]
    with whole(model):
        for guest in trained:
            guest.method.on_train_begin(model, guest.name, guest.config, total_step, done)


def install(model: nn.Module) -> None:
    """Put the hooks on a model that gets its first adapter."""
    model.register_forward_pre_hook(_NoteTraining())
    model.register_load_state_dict_post_hook(_ForgiveMissingBackbone())
    if AdapterCallback not in trainer.DEFAULT_CALLBACKS:
        trainer.DEFAULT_CALLBACKS.append(AdapterCallback)
        register_optimizer_step_pre_hook(_before_step)
        register_optimizer_step_post_hook(_after_step)


def uninstall(model: nn.Module) -> None:
    """Take the hooks off again."""
    for hooks in (model._forward_pre_hooks, model._load_state_dict_post_hooks):
        for key in [k for k, hook in hooks.items() if isinstance(hook, (_NoteTraining, _ForgiveMissingBackbone))]:
            del hooks[key]
    _in_training.discard(model)


def training_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return all that checkpoints need of a model's adapters, by path: parameters, buffers, rows, active heads."""
    guests = need_guests(model)
    heads = tuple(path + "." for path in guests.heads_before)
    state = {path: tensor for path, tensor in model.state_dict().items() if path.startswith(heads)} if heads else {}
    for guest in guests.adapters.values():
        state |= {path: rows.detach() for path, rows in token_rows.parameters(model, guest.name).items()}
        state |= guest.method.training_state(model, guest.name)
    return state


def save_pretrained(
    model: Any,
    save_directory: str | Path,
    is_main_process: bool = True,
    state_dict: Any = None,
    push_to_hub: bool = False,
    **_: Any,
) -> None:
    """Stand in for a model's own `save_pretrained` while it has adapters: write the active one's folder.

    Several active adapters go to one sub-folder each. Of a sharded model a Trainer's first process has a whole
    `state_dict`, and calls alone; without one, all processes do.
    """
    if push_to_hub:
        raise AdapterError("save_pretrained(push_to_hub=True) would push a backbone; upload the saved folder.")
    if not (is_main_process if state_dict else joins(model, is_main_process)):
        return
    guests = need_guests(model)
    active = [name for name in guests.active or guests.adapters if not guests.adapters[name].frozen]
    with whole(model, state_dict or None):
        for name in active:
            save(model, save_directory if len(active) == 1 else Path(save_directory) / name, name)


class AdapterCallback(TrainerCallback):
    """Joins every `transformers.Trainer` by itself; does nothing where the model has no adapters."""

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Tell scheduled methods how many optimizer steps there are."""
        if guests_of(model) is not None:
            begin_training(model, state.max_steps, state.global_step)

    def on_train_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Let scheduled methods finish what an early end, or an early best state, left undone."""
        if guests_of(model) is not None:
            guests = need_guests(model)
            with whole(model, change=True):
                for guest in [guests.adapters[name] for name in guests.active if not guests.adapters[name].frozen]:
                    guest.method.on_train_end(model, guest.name, guest.config)

    def on_save(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Put the training state where the Trainer looks for weights when it resumes or loads the best model."""
        checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if guests_of(model) is None or not checkpoint.is_dir() or not joins(model, state.is_world_process_zero):
            return
        if is_sharded(model):
            save_pretrained(model, checkpoint)  # a Trainer leaves it out where the state dict shall stay sharded
        with whole(model):
            tensors = {path: tensor.cpu().clone().contiguous() for path, tensor in training_state(model).items()}
        if state.is_world_process_zero:
            save_file(tensors, checkpoint / TRAINING_STATE, metadata={"format": "pt"})


class _NoteTraining:
    def __call__(self, model: nn.Module, args: Any) -> None:
        if model.training:
            _in_training.add(model)


class _ForgiveMissingBackbone:
    def __call__(self, model: nn.Module, incompatible: Any) -> None:
        missing = set(incompatible.missing_keys)
        needed = set(training_state(model)) if guests_of(model) is not None else set()
        if missing == set(model.state_dict()) - needed and not incompatible.unexpected_keys:
            incompatible.missing_keys.clear()


def _before_step(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    for model, guest in _trained_by(optimizer):
        with whole(model, change=True):
            guest.method.before_step(model, guest.name, guest.config)


def _after_step(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    for model, guest in _trained_by(optimizer):
        with whole(model, change=True):
            guest.method.on_train_step(model, guest.name, guest.config)


def _trained_by(optimizer: torch.optim.Optimizer) -> Iterator[tuple[nn.Module, Guest]]:
    if not _in_training:
        return
    optimized = {id(p) for group in optimizer.param_groups for p in group["params"]}
    for model in list(_in_training):
        guests = guests_of(model)
        for guest in [guests.adapters[name] for name in guests.active] if guests else ():
            if not guest.method.acts_on_steps():
                continue
            # one parameter stands for all: with an optimizer for each kind of them, a step must not count twice
            parameters = guest.method.parameters(model, guest.name).values()
            first = next((p for p in parameters if p.requires_grad), None)
            if first is not None and id(first) in optimized:
                yield model, guest
