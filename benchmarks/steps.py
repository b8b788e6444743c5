"""Rows 1, 2, 3, 5, 6: what a LoRA training step costs. Ours, peft's, and the frozen backbone's own (the floor).

Random weights (speed only), BERT-base's width, 16 x 128 tokens, dropout 0.1 everywhere, r 8. Floor: the backbone
frozen, in the same dtype and attention, with a gradient back to the embeddings' output, as an adapter in the first
layer needs it. Ours: inside `adapterlab.lean`, which runs of recipes enter by themselves; the memory that it keeps is
kept for all contenders, as they share a process. "Torch's dropout" is ours with `byte_dropout=False`.
"""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from typing import Any

import peft
import torch
from transformers import BertConfig, BertForSequenceClassification

import adapterlab
from adapterlab.speed import precision
from adapterlab.speed.stored_bf16 import stored_bf16
from benchmarks.harness import (
    Goal,
    NotHereError,
    Part,
    Result,
    Row,
    Settings,
    hot_spots,
    interleaved,
    medians_of,
    ratios_of,
)

BATCH, LENGTH = 16, 128
WHOLE = 12  # layers of BERT-base
FEWER = 4  # where all contenders do the same in each layer, so that their number matters little
QV = ["query", "value"]
LINEARS = r".*encoder\.layer.*(query|key|value|dense)"  # adapterlab's all-linear, in peft's words
TOTAL = 10_000  # steps of AdaLoRA's schedule: the timed ones are where it prunes
_OPEN = ExitStack()  # what stays entered until the process ends
AUTOCAST = {"device_type": "cpu", "dtype": torch.bfloat16}


def bert(layers: int) -> BertForSequenceClassification:
    """Return a BERT of random weights and BERT-base's width, in training mode."""
    torch.manual_seed(0)
    return BertForSequenceClassification(BertConfig(num_hidden_layers=layers)).train()


def tokens(batch: int = BATCH, length: int = LENGTH) -> dict[str, torch.Tensor]:
    """Return a batch of random tokens without padding, and labels."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 30000, (batch, length), generator=generator)
    labels = torch.randint(0, 2, (batch,), generator=generator)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def frozen(base: torch.nn.Module, begins: str = "bert.embeddings") -> torch.nn.Module:
    """Return a copy with nothing trained but the head, whose backward reaches the output of the module `begins`."""
    floor: Any = copy.deepcopy(base)
    for name, parameter in floor.named_parameters():
        parameter.requires_grad_(name.startswith("classifier"))
    floor.get_submodule(begins).register_forward_hook(lambda module, args, out: out.detach().requires_grad_())
    return floor


def step(model: torch.nn.Module, batch: dict[str, torch.Tensor], **autocast: Any) -> Callable[[], None]:
    """Return a function that goes forward and backward once."""

    def run() -> None:
        model.zero_grad()
        with torch.autocast(**autocast) if autocast else nullcontext():
            loss = model(**batch).loss
        loss.backward()

    return run


def spared(model: torch.nn.Module, **options: Any) -> torch.nn.Module:
    """Return the model inside `adapterlab.lean`, until the process ends."""
    _OPEN.enter_context(adapterlab.lean(model, **options))
    return model


def lora(base: torch.nn.Module, targets: Any) -> dict[str, torch.nn.Module]:
    """Return the model of each contender."""
    options = {"r": 8, "dropout": 0.1, "target_modules": targets}
    ours, drawn = (adapterlab.attach(copy.deepcopy(base), "lora", **options) for _ in range(2))
    theirs = LINEARS if targets == "all-linear" else targets
    config = peft.LoraConfig(r=8, lora_alpha=16, lora_dropout=0.1, target_modules=theirs, task_type="SEQ_CLS")
    return {
        "floor": frozen(base),
        "ours": spared(ours),
        "ours, torch's dropout": spared(drawn, byte_dropout=False),
        "peft": peft.get_peft_model(copy.deepcopy(base), config),
    }


def sizes(layers: int) -> str:
    """Return the note on what was run."""
    return f"{layers} layers of BERT-base's width, {BATCH} x {LENGTH} tokens, random weights"


def compared(contenders: dict[str, Callable[[], None]], settings: Settings) -> Result:
    """Time floor, ours and peft in turns."""
    medians = medians_of(interleaved(contenders, settings.rounds), 1000)
    notes = [sizes(settings.layers), f"Of our step: {hot_spots(contenders['ours'])}"]
    names = [
        "ours / floor",
        "peft / ours",
        *(["peft / ours, torch's dropout"] if "ours, torch's dropout" in medians else []),
    ]
    return Result([Part("", medians, "ms", ratios_of(medians, *names))], notes)


def fp32(targets: Any) -> Callable[[Settings], Result]:
    """Return the measurement of a LoRA on these modules in fp32."""

    def measure(settings: Settings) -> Result:
        batch = tokens()
        models = lora(bert(settings.layers), targets)
        return compared({name: step(model, batch) for name, model in models.items()}, settings)

    return measure


def bf16(settings: Settings) -> Result:
    """Time the step as a recipe trains it in bf16, a floor stored in bf16, and peft under autocast."""
    if not precision.cpu_has_bf16():
        raise NotHereError("this CPU has no bf16 instructions, and would only emulate them.")
    batch = tokens()
    models = lora(bert(settings.layers), "all-linear")
    models["floor"].to(torch.bfloat16)
    with stored_bf16(models["ours"]):
        contenders = {
            name: step(models[name], batch, **(AUTOCAST if name != "floor" else {}))
            for name in ("floor", "ours", "peft")
        }
        return compared(contenders, settings)


def kept(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> float:
    """Return the megabytes that a forward pass leaves allocated, for backward."""
    step(model, batch)()  # what is made once, in the first step, isn't of every step
    model.zero_grad()
    gc.collect()  # or what others have left might be freed in between, and counted
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as seen:
        loss = model(**batch).loss
    loss.backward()
    return sum(event.self_cpu_memory_usage for event in seen.key_averages()) / 2**20


def memory(settings: Settings) -> Result:
    """Measure what the step of row 1 saves for backward: all of BERT-base's layers, as there is nothing to repeat."""
    batch = tokens()
    medians = {name: kept(model, batch) for name, model in lora(bert(WHOLE), "all-linear").items()}
    notes = [sizes(WHOLE), "One pass each: it is the same every time"]
    return Result([Part("", medians, "MB", ratios_of(medians, "ours / floor", "ours / peft"))], notes)


def adalora(settings: Settings) -> Result:
    """Time whole steps, optimizer and rank budget included: our AdaLoRA, our LoRA of the same rank, peft's AdaLoRA."""
    layers = min(settings.layers, FEWER)
    base, batch = bert(layers), tokens()
    ranks = {"init_r": 8, "target_r": 4, "total_step": TOTAL, "tinit": 0, "tfinal": 100}
    config = peft.AdaLoraConfig(
        **ranks, deltaT=1, lora_alpha=16, lora_dropout=0.1, target_modules=LINEARS, task_type="SEQ_CLS"
    )
    models = {
        "our LoRA": spared(adapterlab.attach(copy.deepcopy(base), "lora", r=8, dropout=0.1)),
        "ours": spared(adapterlab.attach(copy.deepcopy(base), "adalora", **ranks, delta_t=1, alpha=16, dropout=0.1)),
        "peft": peft.get_peft_model(copy.deepcopy(base), config),
    }
    steps = {name: whole_step(name, model, batch) for name, model in models.items()}
    medians = medians_of(interleaved(steps, settings.rounds), 1000)
    ratios = ratios_of(medians, "ours / our LoRA", "peft / ours")
    return Result([Part("", medians, "ms", ratios)], [sizes(layers), "With AdamW and the rank budget"])


def whole_step(name: str, model: Any, batch: dict[str, torch.Tensor]) -> Callable[[], None]:
    """Return a whole training step, as peft's documents write it for AdaLoRA."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    number = 0

    def run() -> None:
        nonlocal number
        number += 1
        model(**batch).loss.backward()
        optimizer.step()
        if name == "peft":
            model.base_model.update_and_allocate(number)
        optimizer.zero_grad()

    return run


def beside(floor: float, peer: float) -> tuple[Goal, Goal]:
    """Return the two goals of a step."""
    return (
        Goal(f"at most {floor:.2f} x the floor", "ours / floor", most=floor),
        Goal(f"at least {peer:g} x faster than peft", "peft / ours", least=peer),
    )


SMALLER = Goal("at most 0.6 of peft's", "ours / peft", most=0.6)
AS_LORA = Goal("at most 1.05 x our LoRA step", "ours / our LoRA", most=1.05)
ROWS = (
    Row("1", "LoRA step, all linears, fp32", beside(1.10, 1.7), fp32("all-linear")),
    Row("2", "LoRA step, query and value, fp32", beside(1.05, 1.15), fp32(QV)),
    Row("3", "LoRA step, all linears, bf16", beside(1.15, 1.5), bf16),
    Row("5", "memory that row 1's step saves for backward", (SMALLER,), memory),
    Row("6", "AdaLoRA step", (AS_LORA,), adalora),
)
