"""Where LoRA's A and B start, beyond peft's simple starts: from the weights, or from data.

Some starts are not zero: `B0 A0` holds a part of the weight, which is taken off the weight for it, so that the model
begins as it was. Here the weight stays whole, and the start is taken off the update instead:
`h = W x + s (B A dropout(x) - B0 A0 x)` equals `(W - s B0 A0) x + s B A dropout(x)`. So the backbone is the
same for everybody else, and the file holds a plain LoRA of twice the rank: `[B, -B0] [A; A0]`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners.lora.layer import LoraVariant
from torch import nn
from transformers.pytorch_utils import Conv1D

from adapterlab.adapters.lora_data import gradients, moments
from adapterlab.errors import ConfigError, did_you_mean

SIMPLE = ("default", "random", "gaussian", "orthogonal")  # peft's own
FROM_DATA = ("eva", "corda", "lora_ga")
NONZERO = ("pissa", "olora", "corda", "lora_ga")  # prefixes: those with a B0 A0 to take off
_NAMES = (*SIMPLE, "pissa", "olora", *FROM_DATA)
_NITER = "pissa_niter_"
_GAMMA = 16.0  # of LoRA-GA: its gamma, equation 11


def read_init(value: Any) -> Any:
    """Check the name of a start; peft's True and False are 'default' and 'random'.

    Raises:
        ValueError: there is no such start, or not here.
    """
    if isinstance(value, bool):
        return "default" if value else "random"
    if not isinstance(value, str):
        raise ValueError(f"the name of a start is needed: {', '.join(_NAMES)} or {_NITER}[n]")
    if value == "loftq":
        raise ValueError("'loftq' makes up for the loss of a quantized backbone, and this one isn't: take 'pissa'")
    if value not in _NAMES and not (value.startswith(_NITER) and value.removeprefix(_NITER).isdecimal()):
        raise ValueError(f"'{value}' is none of {', '.join(_NAMES)}, {_NITER}[n].{did_you_mean(value, _NAMES)}")
    return value


class Start(nn.Module):
    """A0 (r, in) and B0 (out, r), as buffers: they move, copy and resume with the model."""

    def __init__(self, a: torch.Tensor, b: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("A", a)
        self.register_buffer("B", b)
        self.A: torch.Tensor
        self.B: torch.Tensor


class FromStart(LoraVariant):
    """The terms of an adapter in peft's layer, with the start taken off."""

    @staticmethod
    def forward(module: Any, active_adapter: str, x: torch.Tensor, result: torch.Tensor, **_: Any) -> torch.Tensor:
        """Add s (B A dropout(x) - B0 A0 x) to the linear's output."""
        start = module.lora_start[active_adapter]
        a, b = module.lora_A[active_adapter], module.lora_B[active_adapter]
        update = b(a(module.lora_dropout[active_adapter](x))) - F.linear(F.linear(x, start.A), start.B)
        return result + update * module.scaling[active_adapter]

    @staticmethod
    def merge_safe(module: Any, active_adapter: str, orig_weight: torch.Tensor) -> torch.Tensor:
        """Return the weight with the update."""
        a, b = factors(module, active_adapter)
        update = module.scaling[active_adapter] * (b @ a)
        return orig_weight + (update.T if module.fan_in_fan_out else update).to(orig_weight)


def starts_of(layer: Any) -> Any:
    """Return the starts that a layer keeps, by adapter."""
    return getattr(layer, "lora_start", {})


def factors(layer: Any, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return A (r, in) and B (out, r) of the whole update, of twice the rank where a start is taken off."""
    a, b = layer.lora_A[name].weight.detach(), layer.lora_B[name].weight.detach()
    if name not in starts_of(layer):
        return a, b
    start = starts_of(layer)[name]
    return torch.cat([a, start.A.to(a)]), torch.cat([b, -start.B.to(b)], dim=1)


def initialize(model: nn.Module, layers: Mapping[str, Any], name: str, init: str, batches: Any) -> None:
    """Start an adapter as `init` says, in fp32. Nothing else may be active.

    Raises:
        ConfigError: the data doesn't do.
    """
    if init in SIMPLE:
        return
    data: dict[str, Any] = {}
    linears = {path: layer.get_base_layer() for path, layer in layers.items()}
    if init in ("eva", "corda"):
        data = moments(model, linears, batches)
    elif init == "lora_ga":
        data = gradients(model, linears, batches)
    for path, layer in layers.items():
        linear, r, scaling = linears[path], layer.r[name], layer.scaling[name]
        weight = linear.weight.detach().float()
        weight = weight.T if isinstance(linear, Conv1D) else weight
        if init == "eva":
            layer.lora_A[name].weight.data = _eva(data[path], r, path)
            continue
        if init == "olora":
            a, b = _olora(weight, r)
        elif init == "corda":
            a, b = _corda(weight, data[path], r, scaling)
        elif init == "lora_ga":
            a, b = _lora_ga(data[path].T if isinstance(linear, Conv1D) else data[path], r, path)
        else:
            a, b = _pissa(weight, r, scaling, init)
        layer.lora_A[name].weight.data, layer.lora_B[name].weight.data = a.contiguous(), b.contiguous()
        if not hasattr(layer, "lora_start"):
            layer.lora_start = nn.ModuleDict()
        layer.lora_start[name] = Start(a.clone(), b.clone())
        layer.lora_variant[name] = FromStart()


def forget(layers: Mapping[str, Any], name: str) -> None:
    """Remove an adapter's starts from layers that stay."""
    for layer in layers.values():
        if name in starts_of(layer):
            del layer.lora_start[name]
            layer.lora_variant.pop(name, None)
            if not len(layer.lora_start):
                del layer.lora_start


def _pissa(weight: torch.Tensor, r: int, scaling: float, init: str) -> tuple[torch.Tensor, torch.Tensor]:
    """A0 = sqrt(S) Vᵀ and B0 = U sqrt(S) of the r largest singular values: Meng et al. 2024, equations 2 and 3."""
    if init == "pissa":
        u, s, vh = torch.linalg.svd(weight, full_matrices=False)
    else:
        u, s, v = torch.svd_lowrank(weight, r, niter=int(init.removeprefix(_NITER)))
        vh = v.T
    root = (s[:r] / scaling).sqrt()
    return root[:, None] * vh[:r], u[:, :r] * root


def _olora(weight: torch.Tensor, r: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A0 and B0 are the first r rows of R and columns of Q in W = Q R: Büyükakyüz 2024."""
    q, upper = torch.linalg.qr(weight)
    return upper[:r], q[:, :r]


def _corda(weight: torch.Tensor, moment: Any, r: int, scaling: float) -> tuple[torch.Tensor, torch.Tensor]:
    """W C = U S Vᵀ, with C the inputs' second moments: A0 = sqrt(S) Vᵀ C⁻¹, B0 = U sqrt(S): Yang et al. 2024.

    The r largest singular values, its instruction-previewed mode. C gets a hundredth of its mean on the diagonal.
    """
    c = moment.second.double() / moment.count
    c += torch.eye(len(c), device=c.device, dtype=c.dtype) * (0.01 * c.diag().mean()).clamp(min=1e-12)
    u, s, vh = torch.linalg.svd(weight.double() @ c, full_matrices=False)
    root = (s[:r] / scaling).sqrt()
    a = root[:, None] * torch.linalg.solve(c, vh[:r].T).T
    return a.float(), (u[:, :r] * root).float()


def _eva(moment: Any, r: int, path: str) -> torch.Tensor:
    """A holds the r directions in which the inputs vary most, B is zero: Paischer et al. 2024.

    Ranks are not redistributed among the layers (the paper's rho = 1).
    """
    if moment.count <= r:
        raise ConfigError(
            f"init_batches: '{path}' saw {moment.count} tokens, and rank {r} needs more. Give more batches."
        )
    mean = moment.first.double() / moment.count
    vectors = torch.linalg.eigh(moment.second.double() / moment.count - torch.outer(mean, mean)).eigenvectors
    return vectors.flip(1)[:, :r].T.float().contiguous()


def _lora_ga(gradient: torch.Tensor, r: int, path: str) -> tuple[torch.Tensor, torch.Tensor]:
    """A0 and B0 are singular vectors 1 to r and r + 1 to 2 r of the gradient: Wang et al. 2024, equation 11.

    Both are scaled by d_out^(1/4) / sqrt(gamma).
    """
    if 2 * r > min(gradient.shape):
        raise ConfigError(
            f"r: 'lora_ga' takes {2 * r} singular vectors of '{path}' for rank {r}, and it has {min(gradient.shape)}."
        )
    u, _, vh = torch.linalg.svd(gradient, full_matrices=False)
    scale = len(gradient) ** 0.25 / _GAMMA**0.5
    return vh[:r] * scale, u[:, r : 2 * r] * scale
