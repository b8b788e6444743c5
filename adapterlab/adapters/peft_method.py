"""A method whose layers, file and arithmetic are peft's, whatever method it is.

Ours are the options, the targets, and that the backbone stays a plain model.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterable
from typing import Any, ClassVar

import peft
import torch
from peft.tuners.tuners_utils import BaseTuner
from torch import nn
from transformers.pytorch_utils import Conv1D

from adapterlab.adapters.base import METHODS
from adapterlab.adapters.peft_options import PeftMethodConfig, fit
from adapterlab.adapters.peft_seats import Seat, forget_if_empty, seats_of, view_of
from adapterlab.adapters.peft_stacking import active_at, features, laid_bare, passed_over, try_out
from adapterlab.adapters.peft_table import Known
from adapterlab.adapters.targets import find_targets, name_endings, plain
from adapterlab.adapters.tuner import TunerMethod, by_pattern
from adapterlab.backbones import Backbone, Found
from adapterlab.errors import AdapterError, BackboneError, ConfigError

# What peft raises, or runs into, at what it can't do.
_REFUSALS = (ValueError, TypeError, RuntimeError, LookupError, AttributeError)


class PeftMethod(TunerMethod):
    """Base of the bridged methods; a subclass of it is made for each."""

    Config: ClassVar[type[PeftMethodConfig]]
    tuner_class: ClassVar[type[BaseTuner]]
    known: ClassVar[Known] = Known("")
    conv1d: ClassVar[bool | None] = None  # None: not known, so peft is asked

    def peft_config(self, config: PeftMethodConfig) -> peft.PeftConfig:
        """Return peft's config, for options that need no fitting."""
        return config.to_peft()

    def find(self, model: nn.Module, backbone: Backbone, config: Any) -> list[Found]:
        """Return the modules to adapt."""
        return find_targets(model, backbone, config.target_modules, config.layers, config.modules_to_save)

    def settings(self, model: nn.Module, backbone: Backbone, config: Any, targets: list[Found]) -> peft.PeftConfig:
        """Return peft's config for these targets, with what the user left out fitted to them."""
        settings: Any = config.to_peft(**fit(config, [features(module) for _, module in targets]))
        settings.target_modules = name_endings(model, backbone, {target.path for target in targets})
        for option, values in config.patterns().items():
            by_path = by_pattern(option, values, targets, None)
            setattr(settings, option, {path: value for path, value in by_path.items() if value is not None})
        if hasattr(settings, "fan_in_fan_out"):
            settings.fan_in_fan_out = any(isinstance(target.module, Conv1D) for target in targets)
        return settings

    def inject(self, model: nn.Module, backbone: Backbone, name: str, config: Any) -> None:
        """Let peft wrap the targets.

        Raises:
            BackboneError: peft can't, on this backbone with these options.
        """
        targets = self.find(model, backbone, config)
        self._check_kinds(backbone, targets)
        settings: Any = self.settings(model, backbone, config, targets)
        endings = list(settings.target_modules)  # peft may shorten its list
        try:
            with warnings.catch_warnings(), laid_bare(model, [path for path, _ in targets], self.layer_class):
                warnings.simplefilter("ignore")  # what peft would say here has been checked
                self._inject(model, name, settings)
            seat = seats_of(model)[self.name]
            seat.paths[name], seat.endings[name] = {path for path, _ in targets}, endings
            self._check_injected(model, name, backbone, targets)
        except _REFUSALS as error:
            reason = " ".join(str(error).split())
            raise BackboneError(
                f"method '{self.name}' can't be attached to this {backbone.model_type} with these options: {reason}"
            ) from error
        finally:
            model.__dict__.pop("peft_config", None)
        for parameter in self.parameters(model, name).values():
            parameter.data = parameter.data.float()

    def _inject(self, model: nn.Module, name: str, settings: Any) -> None:
        """Call peft's tuner: a new one for the first adapter, then the one that is there."""
        seats = seats_of(model)
        if self.name in seats:
            with view_of(model, self.name) as view:
                view.peft_config[name] = settings
                view.base_model.inject_adapter(model, name)
                view.base_model._post_injection_hook(model, settings, name)
                view.base_model._cast_adapter_dtype(name)
        else:
            tuner: Any = self.tuner_class(model, settings, adapter_name=name)
            tuner._cast_adapter_dtype(name)
            del tuner.model
            seats[self.name] = Seat(tuner)

    def remove(self, model: nn.Module, name: str) -> None:
        """Take the layers out, and with the last adapter what peft kept beside them."""
        super().remove(model, name)
        seats = seats_of(model)
        seat = seats.get(self.name)
        if seat is not None:
            seat.paths.pop(name, None)
            seat.endings.pop(name, None)
            seat.tuner.peft_config.pop(name, None)
            for container in list(seat.tuner.modules()):
                if container is not seat.tuner and hasattr(container, "__delitem__") and name in container:
                    del container[name]
            if not seat.tuner.peft_config:
                del seats[self.name]
        forget_if_empty(model)

    def activate(self, model: nn.Module, names: list[str]) -> None:
        """Switch the wrappers.

        Raises:
            AdapterError: several, where the method can't.
        """
        if len(names) > 1 and self.known.alone:
            raise AdapterError(
                f"adapters {', '.join(names)}: only one '{self.name}' can be active at a time; activate one of them."
            )
        super().activate(model, names)

    def merge(self, model: nn.Module, name: str, config: Any) -> None:
        """Fold the adapter into the linears' weights.

        Raises:
            AdapterError: it does something to the weights that depends on what else is active there.
        """
        for path in self.own_layers(model, name) if self.known.merges_alone else ():
            others = active_at(model, path) - {name}
            if others:
                raise AdapterError(
                    f"'{name}' ({self.name}) changes the weight of '{path}' in a way that depends on "
                    f"{', '.join(sorted(others))}, which is active there too: only one of them can be merged."
                )
        super().merge(model, name, config)

    def own_layers(self, model: nn.Module, name: str) -> dict[str, Any]:
        """Return the layers that hold the adapter; what layers share would say that all do."""
        paths = seats_of(model)[self.name].paths[name]
        return {plain(path): layer for path, layer in self.layers(model).items() if plain(path) in paths}

    def state(self, model: nn.Module, name: str, config: Any) -> dict[str, torch.Tensor]:
        """Return what peft saves, under the keys that peft gives it."""
        # clones: layers may share a tensor, which a file can't
        return {key: tensor.detach().clone() for key, (_, tensor) in self._saved(model, name).items()}

    def load_state(self, model: nn.Module, name: str, config: Any, state: dict[str, torch.Tensor]) -> None:
        """Let peft put saved tensors into its layers."""
        keys = {key: theirs for key, (theirs, _) in self._saved(model, name).items()}
        with view_of(model, self.name) as view, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            peft.set_peft_model_state_dict(view, {keys[key]: state[key] for key in keys}, adapter_name=name)
        for key, tensor in self.state(model, name, config).items():  # peft doesn't mind what it finds no place for
            if not torch.allclose(tensor.float().cpu(), state[key].float().cpu(), rtol=1e-3, atol=1e-4):
                raise AdapterError(f"peft {peft.__version__} didn't take over {key}.")

    def training_state(self, model: nn.Module, name: str) -> dict[str, torch.Tensor]:
        """Return each tensor once, however many layers share it."""
        seen: dict[tuple[Any, ...], str] = {}
        state = super().training_state(model, name)
        for path, tensor in state.items():
            seen.setdefault((tensor.data_ptr(), tensor.shape) if tensor.numel() else (path,), path)
        return {path: state[path] for path in seen.values()}

    def to_peft(self, model: nn.Module, backbone: Backbone, name: str, config: Any) -> dict[str, Any]:
        """Return peft's own fields."""
        seat = seats_of(model)[self.name]
        fields = seat.tuner.peft_config[name].to_dict() | {"target_modules": seat.endings[name]}
        return {key: sorted(value) if isinstance(value, set) else value for key, value in fields.items()}

    def from_peft(self, fields: dict[str, Any], keys: Iterable[str]) -> dict[str, Any]:
        """Read peft's fields; the targets are taken from the tensors' names where those tell.

        Raises:
            ConfigError: the file trains biases of the backbone.
        """
        if fields.get("bias", "none") != "none":
            raise ConfigError(f"bias={fields['bias']}: an adapter that trains the backbone's biases can't be loaded.")
        options = {name: fields[name] for name in self.Config.option_names if fields.get(name) is not None}
        for name in self.Config.known.divides:
            options[name] = options.get(name) or None  # peft writes 0 for the one that isn't used
        paths = sorted({path for key in keys if (path := self._target_of(key)) is not None})
        wanted = paths or fields.get("target_modules")
        layers = None if paths else fields.get("layers_to_transform")
        return options | {"target_modules": wanted, "layers": [layers] if isinstance(layers, int) else layers}

    def _owns(self, path: str, name: str) -> bool:
        parts = path.split(".")
        if parts[0] == "base_model" and self._is_container(parts[1]):  # what layers share, as peft sees it
            return name in parts[2:]
        return any(b == name and self._is_container(a) for a, b in itertools.pairwise(parts))

    def _is_container(self, part: str) -> bool:
        cls = self.layer_class
        return part.startswith(self.marker) or part in (*cls.adapter_layer_names, *cls.other_param_names)

    def _target_of(self, key: str) -> str | None:
        """Return the path of the module that a saved tensor adapts; None for one that is shared, or a head's."""
        parts = key.split(".")
        at = next((n for n, part in enumerate(parts) if self._is_container(part.split("_topk_")[0])), 0)
        path = ".".join(parts[:at])
        return path if path and path != "base_model" else None

    def _saved(self, model: nn.Module, name: str) -> dict[str, tuple[str, torch.Tensor]]:
        """Return peft's own key and the tensor, by key in our files: without prefix and wrappers."""
        with view_of(model, self.name) as view, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            own = {path: tensor for path, tensor in view.state_dict().items() if self._owns(path, name)}
            saved = peft.get_peft_model_state_dict(view, own, adapter_name=name, save_embedding_layers=False)
        return {plain(key.removeprefix(self.key_prefix)): (key, tensor) for key, tensor in saved.items()}

    def _check_kinds(self, backbone: Backbone, targets: list[Found]) -> None:
        if self.conv1d is False and any(isinstance(target.module, Conv1D) for target in targets):
            able = [name for name, method in METHODS if getattr(method, "conv1d", True)]
            raise BackboneError(
                f"method '{self.name}' can't adapt the Conv1D modules of this {backbone.model_type}. "
                f"These methods can: {', '.join(able)}."
            )

    def _check_injected(self, model: nn.Module, name: str, backbone: Backbone, targets: list[Found]) -> None:
        """Refuse what peft passed over in silence, what runs into an error, and what other wrappers pass over."""
        layers = self.own_layers(model, name)
        missed = [path for path, _ in targets if path not in layers]
        if missed:
            raise BackboneError(f"method '{self.name}' can't adapt {', '.join(missed)} of this {backbone.model_type}.")
        first = layers[targets[0].path]
        first.set_adapter([name])
        try_out(first)
        deaf = next((path for path, _ in targets if passed_over(model, path, layers[path])), None)
        if deaf is not None:
            raise BackboneError(
                f"the adapter at '{deaf}' computes with the weight itself and would pass over '{self.name}'. "
                f"Attach '{self.name}' before it, or to other target_modules."
            )
