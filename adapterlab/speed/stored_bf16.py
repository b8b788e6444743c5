"""Store the frozen linears in bf16 while training under autocast, which would cast their weights at each use.

Autocast keeps its casts of trained weights only: a frozen one is read in fp32 and written in bf16 again in every
forward and every backward. The numbers are the same, bit for bit, for what is stored is what autocast would have made.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners.adalora.layer import SVDLinear
from peft.tuners.lora.layer import Linear as LoraLinear
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from adapterlab.adapters.lora_inits import FromStart
from adapterlab.guests import guests_of

_TIE = 2**15  # what lies just between two numbers in bf16 is so far from both, in bits


@contextmanager
def stored_bf16(model: nn.Module, when: bool = True) -> Iterator[int]:
    """Have bf16 copies in place of the frozen linears' weights inside the `with` block; yield how many bytes they take.

    Inside, the model must run under autocast to bf16. Adapters, heads, LayerNorms, embeddings and what is tied to these
    stay as they are. At the end the weights are what they were, to the last bit: what rounding took off each is kept
    in 16 bits, in CPU memory. So on a CPU the backbone takes as much memory as before, and on a GPU half.
    """
    kept = []
    try:
        for parameter in _linears(model) if when else ():
            rounded, rest = _split(parameter.data)
            if rest is not None:
                kept.append((parameter, rest))
                parameter.data = rounded
        yield sum(parameter.nbytes for parameter, _ in kept)
    finally:
        for parameter, rest in kept:
            if parameter.dtype == torch.bfloat16:  # or it was to be the next one when memory ran out
                parameter.data = rest.join(parameter.data)


class _Rest:
    """What a tensor has beyond its bf16 rounding: the difference of the two, as whole numbers made of their bits.

    It goes from -2**15 to 2**15, one value more than 16 bits hold; where it is 2**15, -2**15 is kept, and the place.
    """

    def __init__(self, bits: torch.Tensor) -> None:
        self.bits = bits.to(torch.int16).cpu()  # which makes -2**15 of 2**15
        ties = (bits.view(-1) == _TIE).nonzero() if bits.max() == _TIE else torch.empty(0)
        self.upper = ties.view(-1).to(torch.int32).cpu()

    def join(self, rounded: torch.Tensor) -> torch.Tensor:
        """Return the tensor as it was."""
        bits = _bits(rounded).add_(self.bits.to(rounded.device))
        bits.view(-1)[self.upper.to(rounded.device)] += 2 * _TIE
        return bits.view(torch.float32)


def _split(weight: torch.Tensor) -> tuple[torch.Tensor, _Rest | None]:
    """Round a tensor; what is not a number has no rest."""
    rounded = weight.to(torch.bfloat16)
    return rounded, None if weight.isnan().any() else _Rest(weight.view(torch.int32) - _bits(rounded))


def _bits(rounded: torch.Tensor) -> torch.Tensor:
    """Return the bits that these numbers have in fp32, as int32."""
    return rounded.view(torch.int16).to(torch.int32).mul_(2**16)


def _linears(model: nn.Module) -> list[nn.Parameter]:
    """Return the frozen weights and biases that nobody reads but the linears which they belong to, when called."""
    read_elsewhere: set[Any] = set(_adapters(model))
    found: dict[nn.Parameter, None] = {}
    in_fp32 = _kept_in_fp32(model)
    for path, module in model.named_modules():
        if isinstance(module, PreTrainedModel):  # `model.dtype` is that of its first parameter
            read_elsewhere.update(list(module.parameters())[:1])
        elif isinstance(module, BaseTunerLayer) and not _calls_its_linear(module):
            read_elsewhere.update(module.get_base_layer().parameters())
        for key, parameter in module._parameters.items():
            if parameter is None or not _fits(parameter):
                continue
            plain = type(module) in (nn.Linear, Conv1D) and getattr(module, key) is parameter
            if plain and not any(f".{name}." in f".{path}.{key}." for name in in_fp32):
                found[parameter] = None
            else:  # an embedding that a linear is tied to
                read_elsewhere.add(parameter)
    return [parameter for parameter in found if parameter not in read_elsewhere]


def _kept_in_fp32(model: nn.Module) -> set[str]:
    """Return names that transformers keeps in fp32 itself: T5 casts what its `wo` reads to the format of its weight."""
    lists = ("_keep_in_fp32_modules", "_keep_in_fp32_modules_strict")
    models = [module for module in model.modules() if isinstance(module, PreTrainedModel)]
    return {name for module in models for kept in lists for name in getattr(module, kept, None) or ()}


def _adapters(model: nn.Module) -> Iterator[nn.Parameter]:
    """Yield what belongs to adapters and heads, frozen ones too: those below a new one, or inactive."""
    guests = guests_of(model)
    for guest in guests.adapters.values() if guests else ():
        yield from guest.trained(model).values()


def _calls_its_linear(layer: Any) -> bool:
    """Whether one of peft's layers leaves reading the weight to its linear; DoRA, OFT and others compute with it."""
    known = isinstance(layer, LoraLinear | SVDLinear)
    return known and all(isinstance(variant, FromStart) for variant in layer.lora_variant.values())


def _fits(parameter: nn.Parameter) -> bool:
    if type(parameter) is not nn.Parameter or parameter.requires_grad or parameter.is_meta:
        return False
    return parameter.dtype == torch.float32 and parameter.is_contiguous()
