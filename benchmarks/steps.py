"""What a LoRA training step costs: ours, peft's, and the frozen backbone's own forward and backward (the floor).

    python benchmarks/steps.py [--rows all-linear qv bf16 memory adalora]
                               [--rounds 7] [--batch 16] [--length 128] [--layers 12]

One process, random weights (speed only), BERT-base's width, dropout 0.1 everywhere, r 8. All of a row's runs take
turns, after one round that doesn't count; medians, and their ratios. Floor: the backbone frozen, in the same dtype and
attention, with a gradient back to the embeddings' output, as an adapter in the first layer needs it. In `bf16` ours and
peft run under autocast. `memory` is what the forward pass leaves allocated for backward. `adalora` is a
whole step, optimizer and rank budget included; its floor is our LoRA of the same rank.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from typing import Any

import peft
import torch
from transformers import BertConfig, BertForSequenceClassification

import adapterlab

QV = ["query", "value"]
LINEARS = r".*encoder\.layer.*(query|key|value|dense)"  # adapterlab's all-linear, in peft's words
ROWS = ("all-linear", "qv", "bf16", "memory", "adalora")
TOTAL = 10_000  # steps of AdaLoRA's schedule: the timed ones are where it prunes


def models(base: torch.nn.Module, row: str) -> dict[str, torch.nn.Module]:
    """Return the model of each contender."""
    if row == "adalora":
        ranks = {"init_r": 8, "target_r": 4, "total_step": TOTAL, "tinit": 0, "tfinal": 100}
        adalora = peft.AdaLoraConfig(
            **ranks, deltaT=1, lora_alpha=16, lora_dropout=0.1, target_modules=LINEARS, task_type="SEQ_CLS"
        )
        contenders = {
            "floor": adapterlab.attach(copy.deepcopy(base), "lora", r=8, dropout=0.1),
            "ours": adapterlab.attach(copy.deepcopy(base), "adalora", **ranks, delta_t=1, alpha=16, dropout=0.1),
            "peft": peft.get_peft_model(copy.deepcopy(base), adalora),
        }
        return {name: model.train() for name, model in contenders.items()}
    targets: Any = QV if row == "qv" else "all-linear"
    ours = adapterlab.attach(copy.deepcopy(base), "lora", r=8, dropout=0.1, target_modules=targets)
    config = peft.LoraConfig(
        r=8, lora_alpha=16, lora_dropout=0.1, target_modules=QV if row == "qv" else LINEARS, task_type="SEQ_CLS"
    )
    theirs = peft.get_peft_model(copy.deepcopy(base), config)
    floor: Any = copy.deepcopy(base)
    for name, parameter in floor.named_parameters():
        parameter.requires_grad_(name.startswith("classifier"))
    floor.bert.embeddings.register_forward_hook(lambda module, args, output: output.detach().requires_grad_())
    return {"floor": floor.train(), "ours": ours.train(), "peft": theirs.train()}


def stepper(name: str, model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> Callable[[int], None]:
    """Return a whole training step, given its number, as peft's documents write it for AdaLoRA."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)

    def step(number: int) -> None:
        model(**batch).loss.backward()
        optimizer.step()
        if name == "peft":
            model.base_model.update_and_allocate(number)
        optimizer.zero_grad()

    return step


def kept(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> int:
    """Return the bytes that a forward pass leaves allocated, for backward."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as seen:
        loss = model(**batch).loss
    loss.backward()
    return sum(event.self_cpu_memory_usage for event in seen.key_averages())


def measure(row: str, base: torch.nn.Module, batch: dict[str, torch.Tensor], rounds: int) -> str:
    """Return a row's line of the table."""
    contenders = models(base, row)
    bf16 = row == "bf16"
    if row == "memory":
        found = {}
        for name, model in contenders.items():
            found[name] = kept(model, batch) / 2**20
        unit = "MB"
    else:
        times: dict[str, list[float]] = {name: [] for name in contenders}
        steps = {name: stepper(name, model, batch) for name, model in contenders.items()}
        for number in range(rounds + 1):
            for name, model in contenders.items():
                with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                    begun = time.perf_counter()
                    if row == "adalora":
                        steps[name](number + 1)
                    else:
                        model(**batch).loss.backward()
                    taken = time.perf_counter() - begun
                model.zero_grad()
                if number:
                    times[name].append(1000 * taken)
        found, unit = {name: statistics.median(values) for name, values in times.items()}, "ms"
    floor, ours, theirs = found.values()
    return f"| {row} | {floor:.0f} {unit} | {ours:.0f} | {theirs:.0f} | {ours / floor:.2f} | {theirs / ours:.2f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--rounds", type=int, default=7)
    for name, default in (("batch", 16), ("length", 128), ("layers", 12)):
        parser.add_argument(f"--{name}", type=int, default=default)
    asked = parser.parse_args()
    torch.manual_seed(0)
    base = BertForSequenceClassification(BertConfig(num_hidden_layers=asked.layers))
    ids = torch.randint(5, 30000, (asked.batch, asked.length))
    labels = torch.randint(0, 2, (asked.batch,))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
    print("| row | floor | ours | peft | ours / floor | peft / ours |\n|---|--:|--:|--:|--:|--:|")
    for row in asked.rows:
        print(measure(row, base, batch, asked.rounds), flush=True)


if __name__ == "__main__":
    main()
