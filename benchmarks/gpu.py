"""All that wants a GPU, in one call of at most five minutes: steps, their memory, and whether they are right there.

    python -m benchmarks.gpu [--json gpu.json] [--budget 270] [--rounds 7] [--device cpu --tiny]

BERT-base, 32 x 128 tokens, random weights (speed only), LoRA r 8 on all linears, dropout 0.1, bf16. First the checks,
then the steps: forward and backward of each contender in turns, after a round that doesn't count, by CUDA events;
medians. The floor is the frozen backbone stored in bf16, with a gradient back to the embeddings' output. `graph` is a
CUDA graph of the whole step, `regional` compiles each layer by itself. A contender that fails says so, and the others
go on; what the time doesn't suffice for is left out, and named. `--device cpu --tiny` tries the program itself.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import peft
import torch
from transformers import BertConfig, BertForSequenceClassification

import adapterlab
from adapterlab.speed.compiled import compiled
from adapterlab.speed.first_token import first_token_only
from adapterlab.speed.stored_bf16 import stored_bf16
from benchmarks import gpu_checks
from benchmarks.steps import LINEARS, frozen

LORA = {"r": 8, "dropout": 0.1}
ADALORA = {"init_r": 12, "target_r": 8, "total_step": 10_000, "tinit": 0, "tfinal": 100, "delta_t": 1, "dropout": 0.1}
Step = Callable[[], Any]


class Bench:
    """One machine, one backbone, one batch; makes the contenders' steps."""

    def __init__(self, device: str, tiny: bool) -> None:
        self.device = device
        self.inside = ExitStack()  # of contexts that end with the program
        # a compiler in name only, where nothing is measured
        self.compiler: dict[str, Any] = {"backend": "aot_eager"} if tiny else {}
        sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
        torch.manual_seed(0)
        config = BertConfig(**(sizes if tiny else {}))
        self.base = BertForSequenceClassification(config).to(device)
        rows, length = (4, 16) if tiny else (32, 128)
        ids = torch.randint(5, config.vocab_size, (rows, length), device=device)
        # rows of full length, and no mask: transformers leaves out one of ones, but looks at it for that
        self.batch = {"input_ids": ids, "labels": torch.randint(0, 2, (rows,), device=device)}

    def ours(self, method: str = "lora", **options: Any) -> Any:
        return adapterlab.attach(copy.deepcopy(self.base), method, **options).train()

    def peft(self) -> Any:
        config = peft.LoraConfig(r=8, lora_alpha=16, lora_dropout=0.1, target_modules=LINEARS, task_type="SEQ_CLS")
        return peft.get_peft_model(copy.deepcopy(self.base), config).train()

    def floor(self) -> Any:
        return frozen(self.base).bfloat16()

    def step(self, model: Any) -> Step:
        """Forward and backward under autocast."""

        def run() -> None:
            with torch.autocast(self.device, torch.bfloat16):
                loss = model(**self.batch).loss
            loss.backward()
            model.zero_grad(set_to_none=True)

        return run

    def graph(self, model: Any) -> Step:
        """The same, captured once and played again: nothing is launched by Python."""
        step = self.step(model)
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(4):
                step()
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step()
        return graph.replay

    def optimized(self, model: Any) -> Step:
        """A whole training step, optimizer and AdaLoRA's schedule included."""
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4, fused=True)

        def run() -> None:
            with torch.autocast(self.device, torch.bfloat16):
                loss = model(**self.batch).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

        return run

    def stored(self, model: Any) -> Any:
        """The model, its frozen linears in bf16 for as long as this program runs."""
        self.inside.enter_context(stored_bf16(model))
        return model

    def by_layer(self, model: Any, **options: Any) -> Any:
        """The model, its layers compiled for as long as this program runs."""
        if isinstance(model, peft.PeftModel):
            for layer in model.base_model.model.bert.encoder.layer:
                layer.compile(**{"dynamic": True} | self.compiler | options)
        else:
            self.inside.enter_context(compiled(model, **self.compiler | options))
        return model

    def narrow(self, model: Any) -> Any:
        """The model, its last layer on the first token alone."""
        if not self.inside.enter_context(first_token_only(model)):
            raise AssertionError("first_token_only didn't take hold")
        return model

    def whole(self, model: Any, **options: Any) -> Any:
        model.compile(**self.compiler | ({} if self.compiler else options))
        return model

    def contenders(self) -> dict[str, Callable[[], Step]]:
        """What is measured, by name; row 12 first, the rest as quick looks."""
        return {
            "floor": lambda: self.step(self.floor()),
            "floor, graph": lambda: self.graph(self.floor()),
            "ours": lambda: self.step(self.stored(self.ours(**LORA))),
            "peft": lambda: self.step(self.peft()),
            "ours, cast": lambda: self.step(self.ours(**LORA)),
            "ours, first token": lambda: self.step(self.stored(self.narrow(self.ours(**LORA)))),
            "ours, no dropout": lambda: self.step(self.stored(self.ours(r=8, dropout=0.0))),
            "ours, no dropout, graph": lambda: self.graph(self.stored(self.ours(r=8, dropout=0.0))),
            "lora, optimizer": lambda: self.optimized(self.stored(self.ours(r=12, dropout=0.1))),
            "adalora, optimizer": lambda: self.optimized(self.stored(self.ours("adalora", **ADALORA))),
            "bottleneck 64": lambda: self.step(self.stored(self.ours("bottleneck", bottleneck_size=64))),
            "prefix 50": lambda: self.step(self.stored(self.ours("prefix", num_virtual_tokens=50))),
            # from here on compiling takes most of the time
            "ours, regional": lambda: self.step(self.by_layer(self.stored(self.ours(**LORA)))),
            "ours, regional, graph": lambda: self.graph(
                self.by_layer(self.stored(self.ours(**LORA)), dynamic=False)
            ),
            "peft, regional": lambda: self.step(self.by_layer(self.peft())),
            "peft, compiled": lambda: self.step(self.whole(self.peft())),
            "peft, reduce-overhead": lambda: self.step(self.whole(self.peft(), mode="reduce-overhead")),
            "ours, regional, not dynamic": lambda: self.step(
                self.by_layer(self.stored(self.ours(**LORA)), dynamic=False)
            ),
            "peft, regional, graph": lambda: self.graph(self.by_layer(self.peft(), dynamic=False)),
            "ours, reduce-overhead": lambda: self.step(
                self.whole(self.stored(self.ours(**LORA)), mode="reduce-overhead")
            ),
        }  # fmt: skip

    def seconds(self, step: Step, count: int) -> float:
        """Return the seconds of a step, over so many."""
        if self.device != "cuda":
            begun = time.perf_counter()
            for _ in range(count):
                step()
            return (time.perf_counter() - begun) / count
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        for _ in range(count):
            step()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1000 / count


class Clock:
    """The time that is left."""

    def __init__(self, budget: float) -> None:
        self.budget, self.end = budget, time.perf_counter() + budget

    def left(self) -> float:
        return self.end - time.perf_counter()


@contextmanager
def noted(failures: dict[str, str], name: str) -> Iterator[None]:
    """Let an error end what is inside, and no more: what it says is kept and printed."""
    try:
        yield
    except Exception as error:
        lines = [line for line in str(error).splitlines() if line.strip()] or [""]
        failures[name] = f"{type(error).__name__}: {lines[0].strip()}"
        print(f"{name}: FAILED: {failures[name]}", flush=True)


def measure(bench: Bench, clock: Clock, rounds: int, count: int) -> dict[str, Any]:
    """Build what can be built, and time it in turns."""
    failures: dict[str, str] = {}
    skipped: list[str] = []
    steps: dict[str, Step] = {}
    memory: dict[str, float] = {}
    for name, make in bench.contenders().items():
        if clock.left() < 0.3 * clock.budget:  # the rest is for the rounds
            skipped.append(name)
            continue
        with noted(failures, name):
            begun = time.perf_counter()
            step = make()
            for _ in range(3):
                step()
            memory[name] = peak(bench, step)
            steps[name] = step
            print(f"{name}: ready after {time.perf_counter() - begun:.1f} s", flush=True)
    times: dict[str, list[float]] = {name: [] for name in steps}
    done = 0
    for number in range(rounds + 1):
        if number > 1 and clock.left() < 5:
            break
        for name in [name for name in steps if name not in failures]:
            with noted(failures, name):
                taken = bench.seconds(steps[name], count)
                if number:
                    times[name].append(1000 * taken)
        done = number
    milliseconds = {name: statistics.median(taken) for name, taken in times.items() if taken and name not in failures}
    return {"ms": milliseconds, "step_mb": memory, "failed": failures, "left_out": skipped, "rounds": done}


def peak(bench: Bench, step: Step) -> float:
    """Return the MB that a step takes beyond what is there before it; a graph has taken its own when it was made."""
    if bench.device != "cuda":
        return 0.0
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def table(found: dict[str, Any]) -> str:
    """Return the steps as Markdown, with their ratios to the graphed floor (or the floor) and to peft's."""
    times = found["ms"]
    floor, theirs = times.get("floor, graph", times.get("floor")), times.get("peft")
    lines = ["| step | ms | / floor | peft / it | MB |", "|---|--:|--:|--:|--:|"]
    for name, taken in times.items():
        over = f"{taken / floor:.2f}" if floor else ""
        faster = f"{theirs / taken:.2f}" if theirs else ""
        lines.append(f"| {name} | {taken:.2f} | {over} | {faster} | {found['step_mb'][name]:.0f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="a tiny model: to try the program")
    parser.add_argument("--budget", type=float, default=270, help="seconds for all of it")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=5, help="of each contender in a round")
    parser.add_argument("--json", type=Path, default=Path("gpu.json"))
    asked = parser.parse_args()
    clock = Clock(asked.budget)
    name = torch.cuda.get_device_name() if asked.device == "cuda" else platform.processor() or platform.machine()
    print(f"{name}, torch {torch.__version__}, peft {version('peft')}, transformers {version('transformers')}")
    bench = Bench(asked.device, asked.tiny)
    wrong: dict[str, str] = {}
    told: dict[str, str] = {}
    with torch._dynamo.config.patch(recompile_limit=100):  # the same layers are compiled for all contenders
        for check in gpu_checks.CHECKS:
            with noted(wrong, check.__name__):
                told[check.__name__] = check(bench)
                print(f"{check.__name__}: {told[check.__name__]}", flush=True)
        found = measure(bench, clock, asked.rounds, asked.steps)
    print(table(found))
    if found["left_out"]:
        print(f"no time for: {', '.join(found['left_out'])}")
    results = {"device": name, "torch": torch.__version__, "checks": told, "wrong": wrong, **found}
    asked.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    if wrong:
        raise SystemExit(f"went wrong: {', '.join(wrong)}")


if __name__ == "__main__":
    main()
