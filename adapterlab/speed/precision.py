"""Which number format training uses here: asked of the CPU or GPU, not assumed."""

from __future__ import annotations

import time
from functools import cache

import torch
from torch.nn.functional import linear

from adapterlab.errors import ConfigError
from adapterlab.sharding import will_be_sharded

WORTHWHILE = 1.2  # times as fast: what autocast's conversions take has to be earned first


def choose(wanted: str) -> tuple[str, str]:
    """Return ("bf16" | "fp16" | "fp32", why) for a recipe's `optim.precision`.

    Raises:
        ConfigError: this hardware can't do what was asked for.
    """
    if wanted == "fp32":
        return "fp32", "as asked"
    if torch.cuda.is_available():
        name = torch.cuda.get_device_name()
        has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        if wanted == "bf16" and not has_bf16:
            raise ConfigError(f"optim.precision: {name} has no bf16; use fp16, fp32 or auto.")
        if wanted == "auto":
            return ("bf16", f"{name} computes in bf16") if has_bf16 else ("fp16", f"{name} has fp16 but no bf16")
        return wanted, "as asked"
    if wanted == "fp16":
        raise ConfigError("optim.precision: fp16 needs a GPU, and none is here; use bf16, fp32 or auto.")
    if wanted == "bf16":
        return "bf16", "as asked"
    if torch.backends.mps.is_available():
        return "fp32", "Apple GPU"
    if not cpu_has_bf16():
        return "fp32", "this CPU has no bf16 instructions"
    if bf16_speed() < WORTHWHILE:
        return "fp32", "this CPU has bf16 instructions, but multiplies no faster by them (measured)"
    return "bf16", "this CPU multiplies bf16 faster than fp32 (measured)"


def stores_bf16(number_format: str) -> bool:
    """Whether frozen linears are stored in what they are computed in; what is shared out must be of one dtype."""
    return number_format == "bf16" and not will_be_sharded()


def storage(number_format: str) -> str:
    """Say in which format weights are stored while training."""
    if stores_bf16(number_format):
        return "frozen linears are stored in bf16 while training, adapters, head and the rest in fp32"
    return "weights are stored in fp32"


def cpu_has_bf16() -> bool:
    """Whether the CPU has AVX512-BF16 or AMX; `bf16_speed` tells what they are worth."""
    for probe in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        supported = getattr(torch.cpu, probe, None)
        if supported is not None and supported():
            return True
    return False


@cache
def bf16_speed() -> float:
    """Return how many times as fast as fp32 the CPU multiplies bf16: measured once a process, in some milliseconds.

    Instructions alone don't tell: AMX is worth 8 and Zen 4's AVX512-BF16 about 2, but a Xeon whose AMX a virtual
    machine hides has half of its fp32's speed.
    """
    shapes = (256, 768), (768, 768)
    operands = {
        dtype: [torch.ones(shape, dtype=dtype) for shape in shapes] for dtype in (torch.float32, torch.bfloat16)
    }
    best = dict.fromkeys(operands, float("inf"))
    with torch.inference_mode():
        for _ in range(6):  # by turns, and the fastest of each, as other programs may run
            for dtype, (x, weight) in operands.items():
                begun = time.perf_counter()
                linear(x, weight)
                best[dtype] = min(best[dtype], time.perf_counter() - begun)
    return best[torch.float32] / best[torch.bfloat16]


def device() -> str:
    """Return the device that training runs on: "cuda", "mps" or "cpu"."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"
