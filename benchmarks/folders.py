"""Row 13: attach, save and load a LoRA on BERT-base, ours and peft's.

A fresh copy of the backbone for each attach and load, made outside the time that counts; files go to a temporary
folder and are read from the system's cache. What ours does and peft doesn't is in the time: telling which backbone it
is (attach), and checking that file and backbone fit (load). That the check works is checked.
"""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import torch

import adapterlab
from benchmarks.harness import Goal, Part, Result, Row, Settings, interleaved, medians_of, ratios_of
from benchmarks.steps import LINEARS, WHOLE, bert

CONFIG = {"r": 8, "lora_alpha": 16, "lora_dropout": 0.1, "target_modules": LINEARS, "task_type": "SEQ_CLS"}


def ours(model: Any) -> Any:
    """Attach as our users do."""
    return adapterlab.attach(model, "lora", r=8, dropout=0.1)


def theirs(model: Any) -> Any:
    """Attach as peft's users do."""
    return peft.get_peft_model(model, peft.LoraConfig(**CONFIG))


def on_a_copy(base: torch.nn.Module, job: Callable[[Any], Any]) -> Callable[[], float]:
    """Return a contender: seconds of a job on a fresh copy of the backbone."""

    def run() -> float:
        model = copy.deepcopy(base)
        begun = time.perf_counter()
        job(model)
        return time.perf_counter() - begun

    return run


def refuses(base: torch.nn.Module, job: Callable[[Any], Any]) -> bool:
    """Whether a load refuses a backbone whose weights are others."""
    model: Any = copy.deepcopy(base)
    with torch.no_grad():
        model.bert.encoder.layer[5].output.dense.weight.mul_(1.1)
    try:
        job(model)
    except adapterlab.AdapterLabError:
        return True
    return False


def measure(settings: Settings) -> Result:
    """Time the three jobs."""
    base = bert(WHOLE)
    with tempfile.TemporaryDirectory() as place:
        mine, other = Path(place) / "ours", Path(place) / "peft"
        attached = {"ours": ours(copy.deepcopy(base)), "peft": theirs(copy.deepcopy(base))}
        for model in attached.values():  # as after training: no B is zero
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    torch.nn.init.normal_(parameter, std=0.02)

        def save_ours() -> None:
            adapterlab.save(attached["ours"], mine)

        def save_theirs() -> None:
            attached["peft"].save_pretrained(str(other))

        def load_ours(model: Any) -> Any:
            return adapterlab.load(model, mine)

        def load_theirs(model: Any) -> Any:
            return peft.PeftModel.from_pretrained(model, str(other))

        jobs = {
            "attach": {"ours": on_a_copy(base, ours), "peft": on_a_copy(base, theirs)},
            "save": {"ours": save_ours, "peft": save_theirs},
            "load": {"ours": on_a_copy(base, load_ours), "peft": on_a_copy(base, load_theirs)},
        }
        parts = []
        for job, contenders in jobs.items():
            medians = medians_of(interleaved(contenders, settings.rounds), 1000)
            parts.append(Part(job, medians, "ms", ratios_of(medians, "ours / peft")))
        checks = {"ours": refuses(base, load_ours), "peft": refuses(base, load_theirs)}
    if not checks["ours"]:
        raise RuntimeError("our load took an adapter for another backbone: nothing was verified.")
    peers = "too" if checks["peft"] else "does not"
    notes = [
        f"{WHOLE} layers of BERT-base's width, all linears, r 8, fp32, random weights",
        f"Load refuses a backbone whose weights differ in one layer: ours does, peft's {peers}",
    ]
    return Result(parts, notes)


ROWS = (
    Row(
        "13",
        "a LoRA on BERT-base",
        (Goal("at most 1.2 x peft's", "ours / peft", most=1.2),),
        measure,
    ),
)
