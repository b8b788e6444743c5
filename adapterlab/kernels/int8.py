"""Linears and embeddings in int8: a scale for each output of a linear, for each row of an embedding.

What a linear reads is quantized as it comes (dynamically, one scale for all of it), and the product is one of whole
numbers. That takes a CPU with kernels for it; elsewhere the weights are made numbers again: as exact, and not as fast.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

LARGEST = 127  # -128 is left out, so that a weight and its negative are as exact


class Int8Linear(nn.Module):
    """`y = s (W x) + b`: W in int8, s a number for each output.

    Args:
        weight: (out, in), int8.
        scale: (out,), fp32.
        bias: (out,), or None.
    """

    weight: torch.Tensor
    scale: torch.Tensor
    bias: torch.Tensor | None

    def __init__(self, weight: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale)
        self.register_buffer("bias", bias)
        self._packed: tuple[torch.Tensor, Any] | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (..., in) to (..., out), in x's dtype."""
        trains = torch.is_grad_enabled() and x.requires_grad  # what stands before it; the kernels give no gradient
        if x.device.type == "cpu" and has_kernels() and x.numel() and not (trains or torch.compiler.is_compiling()):
            return torch.ops.quantized.linear_dynamic(x.float(), self.pack(), _SEVEN_BITS).to(x.dtype)
        product = F.linear(x, self.weight.to(x.dtype)) * self.scale.to(x.dtype)
        return product if self.bias is None else product + self.bias.to(x.dtype)

    def pack(self) -> Any:
        """Return the weight in the order in which this CPU's kernels read it; made once."""
        if self._packed is None or self._packed[0] is not self.weight:
            zeros = torch.zeros(self.out_features, dtype=torch.int64)
            with (
                warnings.catch_warnings()
            ):  # torch means to give up such tensors, and has no other way into its kernels
                warnings.filterwarnings("ignore", "torch.quantize_per_tensor")
                whole = torch._make_per_channel_quantized_tensor(self.weight, self.scale.double(), zeros, 0)
            bias = None if self.bias is None else self.bias.float()
            self._packed = self.weight, torch.ops.quantized.linear_prepack(whole, bias)
        return self._packed[1]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_packed": None}  # a copy packs its own

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


class Int8Embedding(nn.Module):
    """Rows of int8, each with a scale.

    Args:
        weight: (rows, size), int8.
        scale: (rows,), fp32.
        padding_idx: the row of padding, from which some models count their positions.
    """

    weight: torch.Tensor
    scale: torch.Tensor

    def __init__(self, weight: torch.Tensor, scale: torch.Tensor, padding_idx: int | None = None) -> None:
        super().__init__()
        self.padding_idx = padding_idx
        self.num_embeddings, self.embedding_dim = weight.shape
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the rows with these numbers, in the scale's dtype: (..., size)."""
        return F.embedding(ids, self.weight).to(self.scale.dtype) * F.embedding(ids, self.scale[:, None])

    def extra_repr(self) -> str:
        return f"{self.num_embeddings}, {self.embedding_dim}"


def rounded(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a matrix in int8 and a scale for each of its rows, so that the largest of a row is 127 times its scale.

    Args:
        weight: (rows, size), of finite numbers.

    Returns:
        (rows, size) in int8, and (rows,) in fp32.
    """
    weight = weight.detach().float()
    scale = weight.abs().amax(1) / LARGEST
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))  # a row of zeros
    return (weight / scale[:, None]).round_().clamp_(-LARGEST, LARGEST).to(torch.int8), scale


def is_quantized(model: nn.Module) -> bool:
    """Whether some of a model is in int8."""
    return any(isinstance(module, Int8Linear | Int8Embedding) for module in model.modules())


def has_kernels() -> bool:
    """Whether torch has int8 kernels for this CPU."""
    return _HAS_KERNELS


_HAS_KERNELS = torch.backends.quantized.engine != "none"
# where AVX2 adds pairs of products in 16 bits they could overflow, and inputs only get 7 bits
_SEVEN_BITS = not torch.cpu._is_vnni_supported() and torch.backends.quantized.engine != "qnnpack"
