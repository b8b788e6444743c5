"""Row 14: BERT-base in int8 on a CPU: ours, fp32, torch's quantize_dynamic and onnxruntime's.

Random weights (speed only), no padding; a pass of each in turns. onnxruntime runs a model exported from the same
weights, its linears quantized by output as ours; it gets as many threads as torch has.
"""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

import adapterlab
from benchmarks.harness import Goal, NotHereError, Part, Result, Row, Settings, interleaved, medians_of, ratios_of
from benchmarks.steps import bert, sizes, tokens

SHAPES = ((1, 32), (1, 128), (16, 64))
PASSES = {(1, 32): 10, (1, 128): 5, (16, 64): 1}  # in a turn: short ones are timed several at once


class Logits(nn.Module):
    """A model whose output is its logits alone, for the exporter."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return self.model(input_ids=input_ids, attention_mask=attention_mask).logits


def onnx_session(model: nn.Module, place: Path) -> Any:
    """Return an onnxruntime session of the model in int8."""
    import onnx
    import onnxruntime
    from onnxruntime.quantization import QuantType, quantize_dynamic

    batch = {key: value for key, value in tokens(2, 16).items() if key != "labels"}
    sides = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length", max=512)}
    shapes = dict.fromkeys(batch, sides)
    program = torch.onnx.export(
        Logits(model), kwargs=batch, dynamo=True, dynamic_shapes=shapes, input_names=list(batch),
        output_names=["logits"], verbose=False,
    )  # fmt: skip
    program.save(place / "fp32.onnx")
    plain = onnx.load(place / "fp32.onnx")
    del plain.graph.value_info[:]  # what the exporter guessed of shapes in between confuses the quantizer
    onnx.save(plain, place / "fp32.onnx")
    quantize_dynamic(place / "fp32.onnx", place / "int8.onnx", per_channel=True, weight_type=QuantType.QInt8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    return onnxruntime.InferenceSession(place / "int8.onnx", options, providers=["CPUExecutionProvider"])


def measure(settings: Settings) -> Result:
    """Time a pass of each shape."""
    if find_spec("onnxruntime") is None or find_spec("onnxscript") is None:
        raise NotHereError("it takes onnxruntime and onnxscript: pip install '.[benchmarks]'.")
    plain = bert(settings.layers).eval()
    models = {
        "ours": adapterlab.quantize(copy.deepcopy(plain)),
        "fp32": plain,
        "quantize_dynamic": torch.ao.quantization.quantize_dynamic(copy.deepcopy(plain), {nn.Linear}, torch.qint8),
    }
    parts = []
    with tempfile.TemporaryDirectory() as place:
        session = onnx_session(plain, Path(place))
        for rows, length in SHAPES:
            batch = {key: value for key, value in tokens(rows, length).items() if key != "labels"}
            arrays = {key: value.numpy() for key, value in batch.items()}
            count = PASSES[rows, length]
            contenders: dict[str, Callable[[], float | None]] = {
                name: several(partial(model, **batch), count) for name, model in models.items()
            }
            contenders["onnxruntime"] = alone(several(partial(session.run, None, arrays), count))
            medians = medians_of(interleaved(contenders, settings.rounds), 1000 / count)
            names = [f"{name} / ours" for name in medians if name != "ours"]
            parts.append(Part(f"{rows} x {length}", medians, "ms", ratios_of(medians, *names)))
    return Result(parts, [sizes(settings.layers).replace("16 x 128 tokens, ", "")])


def several(once: Callable[[], Any], count: int) -> Callable[[], None]:
    """Return a contender: so many passes."""

    def run() -> None:
        with torch.inference_mode():
            for _ in range(count):
                once()

    return run


def alone(contender: Callable[[], None]) -> Callable[[], float]:
    """Return a contender that is waited for: onnxruntime's threads spin on for a while, at the next one's cost."""

    def run() -> float:
        begun = time.perf_counter()
        contender()
        taken = time.perf_counter() - begun
        time.sleep(0.2)
        return taken

    return run


ROWS = (
    Row(
        "14",
        "BERT-base in int8, a pass",
        (
            Goal("at least 3.4 x as fast as fp32", "fp32 / ours", least=3.4),
            Goal("at least as fast as onnxruntime's int8", "onnxruntime / ours", least=1.0),
            Goal("at least as fast as torch's quantize_dynamic", "quantize_dynamic / ours", least=1.0),
        ),
        measure,
        long=True,
    ),
)
