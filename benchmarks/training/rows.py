"""Rows 4, 4b, 8, 9 and 10: real training, ours through `adapterlab.run`, the peers through `transformers.Trainer`.

Each contender trains in a process of its own, with the same threads; within a seed they take turns. What is done is
kept in results/trials.jsonl, so that a row that was stopped goes on; a change of adapterlab's sources, of versions, of
threads or of the CPU begins anew. With BENCHMARKS_QUICK=1 rows are small, for trying them out: their figures mean
little, and their trials are kept in the cache.
"""

from __future__ import annotations

import importlib
import os
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness import Goal, Part, Result, Row, Settings, medians_of, ratios_of
from benchmarks.training.judging import behind, seconds_to, shown, target_of, time_in_theirs
from benchmarks.training.trials import MODULES, Trial, result_of, surroundings

SEEDS = (0, 1, 2)
TRIALS = Path(__file__).parents[1] / "results" / "trials.jsonl"


class Trials:
    """A row's trials.

    Args:
        number: the row's.
        settings: the command line's.
    """

    def __init__(self, number: str, settings: Settings) -> None:
        self.number, self.cache = number, settings.cache
        self.cache.mkdir(parents=True, exist_ok=True)
        self.module: Any = importlib.import_module(f"benchmarks.training.{MODULES[number]}")
        self.quick = os.environ.get("BENCHMARKS_QUICK") == "1"
        self.seeds = SEEDS[:1] if self.quick else getattr(self.module, "SEEDS", SEEDS)
        self.options = {**self.module.SETTINGS, **(self.module.QUICK if self.quick else {})}
        self.notes = ["Reduced sizes: the figures mean little"] if self.quick else []
        self._around = surroundings()

    def result(self, contender: str, seed: int, **more: Any) -> dict[str, Any]:
        """Return a trial's result; `more` are settings of this one."""
        trial = Trial(self.number, contender, seed, {**self._around, **self.options, **more})
        return result_of(trial, self.cache / "quick-trials.jsonl" if self.quick else TRIALS, self.cache)

    def all(self, contenders: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
        """Return each contender's results by seed. Within a seed they take turns; each time another one begins."""
        found: dict[str, list[dict[str, Any]]] = {name: [] for name in contenders}
        for seed in self.seeds:
            first = seed % len(contenders)
            for name in (*contenders[first:], *contenders[:first]):
                found[name].append(self.result(name, seed))
        return found

    def finished(self, parts: list[Part], *notes: str) -> Result:
        """Return what the row found, with how it was counted."""
        return Result(parts, [*self.notes, "Each contender in a process of its own", *notes], rounds=len(self.seeds))


def each(results: dict[str, list[dict[str, Any]]], key: str) -> dict[str, list[float]]:
    """Return one value of each result."""
    return {name: [result[key] for result in found] for name, found in results.items()}


def rates(results: dict[str, list[dict[str, Any]]], what: str) -> dict[str, float]:
    """Return each contender's median of something per second."""
    return medians_of({n: [r[what] / r["seconds"] for r in found] for n, found in results.items()})


def work(results: dict[str, list[dict[str, Any]]]) -> str:
    """Return the CPU time of each contender; where other programs ran, it tells more than the seconds."""
    said = medians_of(each(results, "cpu_seconds"))
    return "CPU seconds, of all threads: " + ", ".join(f"{name} {value:.0f}" for name, value in said.items())


def accuracies(results: dict[str, list[dict[str, Any]]]) -> Part:
    """Return the means over the seeds, and how far we are behind each peer in units of noise."""
    found = each(results, "accuracy")
    peers = {f"behind {name}, of noise": behind(found["ours"], found[name]) for name in found if name != "ours"}
    return Part("test accuracy, mean", {n: 100 * statistics.mean(values) for n, values in found.items()}, "%", peers)


def one_epoch(settings: Settings) -> Result:
    """Row 4."""
    trials = Trials("4", settings)
    found = trials.all(trials.module.CONTENDERS)
    seconds = medians_of(each(found, "seconds"))
    names = [f"{name} / ours" for name in found if name != "ours"]
    return trials.finished(
        [Part("", seconds, "s", ratios_of(seconds, *names)), accuracies(found)],
        f"{found['ours'][0]['steps']} steps of 32 rows, the same for all; seconds of the training loop: loading, "
        "tokenising, evaluation and saving don't count",
        work(found),
        "Noise: two standard errors of the difference of the means, or half a point if that is more",
    )


def to_the_target(settings: Settings) -> Result:
    """Row 4b."""
    trials = Trials("4b", settings)
    module, epochs = trials.module, trials.options["epochs"]
    times: dict[str, list[float | None]] = {name: [] for name in ("ours", "peft", "full")}
    spent: dict[str, list[float]] = {name: [] for name in times}
    ratios: dict[str, list[float]] = {"ours / peft": [], "ours / full": []}
    notes, probes = [], []
    for seed in trials.seeds:
        full = [trials.result(name, seed, lr=rate) for name, rate in module.FULL.items()]
        target = round(target_of([result["curve"] for result in full]), 6)
        reached = {
            "peft": trials.result("peft", seed, target=target),
            "ours": trials.result("ours", seed, target=target, adapter=module.RECIPE),
        }
        probes.append(trials.result("logistic regression", seed))
        at = {name: seconds_to(target, result["curve"]) for name, result in reached.items()}
        at["full"] = min(s for r in full if (s := seconds_to(target, r["curve"])) is not None)
        for name, taken in at.items():
            times[name].append(taken)
            spent[name].append(taken if taken is not None else reached[name]["seconds"])
        for name, values in ratios.items():
            peer = name.removeprefix("ours / ")
            values.append(time_in_theirs(at["ours"], at[peer], spent[peer][-1]))
        said = ", ".join(f"{name} {shown(times[name][-1], epochs)}" for name in times)
        notes.append(f"Seed {seed}: target {100 * target:.2f} %; {said}")
    probe = statistics.median(result["seconds"] for result in probes)
    notes.append(
        f"A logistic regression on the frozen sentence embeddings takes {probe:.0f} s and reaches "
        f"{100 * statistics.mean(result['accuracy'] for result in probes):.2f} %"
    )
    return trials.finished(
        [Part("", medians_of(spent), "s", {name: statistics.median(values) for name, values in ratios.items()})],
        f"Test accuracy every {trials.options['every']} steps, the clock stopped; full: the faster of its two rates; "
        "of who never gets there, all seconds",
        *notes,
    )


def masked_words(settings: Settings) -> Result:
    """Row 8."""
    trials = Trials("8", settings)
    found = trials.all(trials.module.CONTENDERS)
    pace = rates(found, "tokens")
    steps = ", ".join(f"{name} {results[0]['tokens'] / results[0]['steps']:.0f}" for name, results in found.items())
    return trials.finished(
        [Part("", pace, "tokens/s", ratios_of(pace, "ours / peft"))],
        f"One epoch of {trials.options['train_rows']} movie-review snippets; padding isn't counted; tokens a step: "
        f"{steps}",
        work(found),
    )


def short_dialogues(settings: Settings) -> Result:
    """Row 9."""
    trials = Trials("9", settings)
    found = trials.all(trials.module.CONTENDERS)
    pace = rates(found, "dialogues")
    steps = ", ".join(f"{name} {results[0]['steps']}" for name, results in found.items())
    mean = found["ours"][0]["tokens"] / found["ours"][0]["dialogues"]
    return trials.finished(
        [Part("", pace, "dialogues/s", ratios_of(pace, "ours / peft"))],
        f"One epoch of {trials.options['rows']} questions and answers of {mean:.0f} tokens on average, "
        f"made of docstrings of Python's standard library; steps: {steps}",
        work(found),
    )


def cached_layers(settings: Settings) -> Result:
    """Row 10."""
    trials = Trials("10", settings)
    found = trials.all(trials.module.CONTENDERS)
    seconds = medians_of(each(found, "later"))
    half, whole = (100 * statistics.mean(values) for values in each(found, "accuracy").values())
    return trials.finished(
        [Part("", seconds, "s", ratios_of(seconds, "all layers / ours"))],
        "Seconds of the second of two epochs; the lower layers are computed once before the first, which isn't counted",
        f"Test accuracy {half:.2f} %, adapters in all layers {whole:.2f} %",
        work(found),
    )


ROWS = (
    Row(
        "4",
        "one epoch on movie-review snippets, MiniLM, LoRA r 8 on all linears",
        (
            Goal("at least 4 x as fast as peft + Trainer", "peft / ours", least=4),
            Goal("at least 1.6 x as fast as its best settings", "peft, best / ours", least=1.6),
            Goal("accuracy within noise of peft's", "behind peft, of noise", most=1),
            Goal("and of its best settings'", "behind peft, best, of noise", most=1),
        ),
        one_epoch,
        long=True,
    ),
    Row(
        "4b",
        "time until test accuracy is within a point of full fine-tuning's best",
        (
            Goal("at most 0.25 x peft's time", "ours / peft", most=0.25),
            Goal("at most 0.4 x full fine-tuning's", "ours / full", most=0.4),
        ),
        to_the_target,
        long=True,
    ),
    Row(
        "8",
        "masked-LM continued pretraining of MiniLM",
        (Goal("at least 1.5 x peft with full logits and padding", "ours / peft", least=1.5),),
        masked_words,
        long=True,
    ),
    Row(
        "9",
        "SmolLM2-135M instruction tuning on short dialogues",
        (Goal("at least 2 x peft + Trainer, padded", "ours / peft", least=2),),
        short_dialogues,
        long=True,
    ),
    Row(
        "10",
        "later epochs of adapters in the upper half, the lower layers cached",
        (Goal("at least 1.8 x as fast as adapters in all layers", "all layers / ours", least=1.8),),
        cached_layers,
        long=True,
    ),
)
