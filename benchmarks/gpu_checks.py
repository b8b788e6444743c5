"""Whether what is fast is right on a GPU, where CPU tests can't look. Each check returns what it saw, or raises."""

from __future__ import annotations

import copy
from typing import Any

import torch

from adapterlab.kernels.lora_linear import lora_linear, reference
from adapterlab.kernels.masks import Mask
from adapterlab.speed.compiled import compiled
from adapterlab.speed.first_token import first_token_only
from adapterlab.speed.stored_bf16 import stored_bf16


def lora_linear_is_its_reference(bench: Any) -> str:
    """In fp32 without TF32 it equals plain PyTorch; in bf16 it is as near to fp64 as that."""
    torch.set_float32_matmul_precision("highest")
    worst = {}
    for dtype in (torch.float32, torch.bfloat16):
        x, weight, bias, a, b = (
            torch.randn(*shape, device=bench.device) / shape[-1] ** 0.5
            for shape in ((64, 32, 256), (512, 256), (512,), (8, 256), (512, 8))
        )
        mask = Mask(x, 0.1)
        upstream = torch.randn(64, 32, 512, device=bench.device)
        exact = _results(reference, (x, weight, bias, a, b), mask, torch.float64, upstream)
        off = [
            max(_distance(one, other) for one, other in zip(
                _results(function, (x, weight, bias, a, b), mask, dtype, upstream), exact, strict=True
            ))
            for function in (lora_linear, reference)
        ]  # fmt: skip
        worst[str(dtype)] = off
        _demand(off[0] < (1e-5 if dtype == torch.float32 else max(2 * off[1], 1e-2)), f"{dtype}: off by {off}")
    return f"off from fp64, ours and plain: {worst}"


def dropout_is_dropout(bench: Any) -> str:
    """The mask's mean and variance, the same mask again in backward, another one from the next draw."""
    x = torch.ones(4096, 768, device=bench.device)
    mask, other = Mask(x, 0.1), Mask(x, 0.1)
    drawn = mask.drop(x)
    mean, kept = drawn.mean().item(), 1 / mask.scale
    _demand(abs(mean - 1) < 3e-3, f"mean {mean}")
    _demand(abs(drawn.var().item() - (1 - kept) / kept) < 3e-3, f"variance {drawn.var().item()}")
    _demand(not torch.equal(other.drop(x), drawn), "two masks are the same")
    _demand(torch.equal(mask.drop(x), drawn), "the same mask differs when it is drawn again")
    return f"mean {mean:.4f}, variance {drawn.var().item():.4f}"


def checkpointing_is_exact(bench: Any) -> str:
    """Gradient checkpointing computes the same loss and gradients, dropout included."""
    model = bench.ours(r=8, dropout=0.1)
    expected = _gradients(bench, model)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    return f"gradients differ by {_compare(_gradients(bench, model), expected, 1e-2)}"


def first_token_is_exact(bench: Any) -> str:
    """The last layer on the first token alone gives the same logits."""
    model = _shaken(bench.ours(r=8, dropout=0.0)).eval()
    with torch.no_grad():
        expected = model(**bench.batch).logits
        with first_token_only(model) as narrow:
            _demand(narrow, "it didn't take hold")
            off = _distance(model(**bench.batch).logits, expected)
    _demand(off < 1e-4, f"logits differ by {off}")
    return f"logits differ by {off:.1e}"


def stored_bf16_is_autocast(bench: Any) -> str:
    """Storage in bf16 gives autocast's logits to the bit, takes less memory, and gives the weights back."""
    model = _shaken(bench.ours(r=8, dropout=0.1))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    cast, held = _gradients(bench, model), _allocated(bench)
    with stored_bf16(model):
        saved = held - _allocated(bench)
        stored = _gradients(bench, model)
    _demand(torch.equal(stored["loss"], cast["loss"]), f"losses {stored['loss']}, {cast['loss']}")
    off = _compare(stored, cast, 1e-2)  # attention's backward on a GPU adds up in any order
    same = all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    _demand(same, "the weights aren't what they were")
    return f"the same loss, gradients differ by {off}, {saved / 2**20:.0f} MB less"


def compiled_layers_are_the_eager_ones(bench: Any) -> str:
    """Layers compiled one by one give the same loss and gradients."""
    model = _shaken(bench.ours(r=8, dropout=0.0))
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    for layer in model.bert.encoder.layer:
        layer.attention.self.dropout_prob = 0.0
    expected = _gradients(bench, model)
    with compiled(model, **bench.compiler):
        return f"gradients differ by {_compare(_gradients(bench, model), expected, 5e-2)}"


CHECKS = (
    lora_linear_is_its_reference,
    dropout_is_dropout,
    checkpointing_is_exact,
    first_token_is_exact,
    stored_bf16_is_autocast,
    compiled_layers_are_the_eager_ones,
)


def _results(function: Any, tensors: Any, mask: Mask, dtype: torch.dtype, upstream: torch.Tensor) -> Any:
    x, weight, bias, a, b = (tensor.to(dtype).requires_grad_() for tensor in tensors)
    output = function(x, weight.detach(), bias, a, b, 2.0, copy.copy(mask))
    return output, *torch.autograd.grad(output, (x, bias, a, b), upstream.to(output.dtype))


def _shaken(model: Any) -> Any:
    """Give LoRA's B values, or the adapter would be nothing."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and "lora_B" in name:
                parameter.normal_(std=0.05)
    return model


def _gradients(bench: Any, model: Any) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    model.train().zero_grad()
    with torch.autocast(bench.device, torch.bfloat16):
        loss = model(**bench.batch).loss
    loss.backward()
    return {"loss": loss.detach()} | {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def _compare(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], most: float) -> str:
    """Return the largest difference, as a share of all gradients' norm; refuse one above `most`."""
    _demand(found.keys() == expected.keys(), "other parameters have gradients")
    norm = sum(float(tensor.float().square().sum()) for tensor in expected.values()) ** 0.5
    off = max(float((found[name] - tensor).float().norm()) for name, tensor in expected.items()) / norm
    _demand(off <= most, f"gradients differ by {off:.1e} of their norm")
    return f"{off:.1e}"


def _distance(one: torch.Tensor, other: torch.Tensor) -> float:
    one, other = one.detach().double(), other.detach().double()
    return float((one - other).norm() / other.norm())


def _allocated(bench: Any) -> int:
    return torch.cuda.memory_allocated() if bench.device == "cuda" else 0


def _demand(met: bool, otherwise: str) -> None:
    if not met:
        raise AssertionError(otherwise)
