"""Recipes of the tasks that write and of those that read raw text, on tiny backbones and a few rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from corpora import DOMAIN, GENERAL, tiny_bert, write_corpora
from folders import backbone

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven")
PAIRS = [(f"What is {n} in words? {turn}", f"It is {w}.") for turn in "abc" for n, w in enumerate(WORDS)]


def language_recipes(folder: Path) -> dict[str, dict[str, Any]]:
    """Write backbones and data into a folder; return a recipe for each kind of task, by name."""
    texts = [text for pair in PAIRS for text in pair]
    for names in (("prompt", "completion"), ("source", "target")):
        lines = "".join(json.dumps(dict(zip(names, pair, strict=True))) + "\n" for pair in PAIRS)
        (folder / f"{names[0]}.jsonl").write_text(lines)
    train, held_out, general = write_corpora(folder)
    writes = {"metrics": ["perplexity", "chrf"], "max_new_tokens": 6}
    corpus = {"train": train, "eval": held_out, "replay": {"train": general, "share": 0.25}}
    reader = backbone(folder / "reader", "gpt2", [*DOMAIN[:20], *GENERAL])
    made = {
        "instruction": (
            backbone(folder / "writer", "gpt2", texts), writes,
            {"train": str(folder / "prompt.jsonl"), "eval": 0.3},
        ),
        "seq2seq": (
            backbone(folder / "t5", "t5", texts), writes,
            {"train": str(folder / "source.jsonl"), "eval": 0.3},
        ),
        "masked_lm": (tiny_bert(folder / "bert"), {}, corpus),
        "causal_lm": (reader, {}, corpus),
        "streamed": (reader, {}, {"train": train, "eval": held_out, "streaming": True}),
    }  # fmt: skip
    return {
        name: {
            "version": 1,
            "run": {"dir": str(folder / "runs" / name)},
            "model": {"name": model},
            "adapter": {"method": "lora", "r": 4, "dropout": 0.0},
            "task": {"type": "causal_lm" if name == "streamed" else name, **options},
            "data": {**data, "max_length": 64},
            "optim": {"lr": 1e-2, "batch_size": 4, "max_steps": 6, "precision": "fp32"},
            "log": {"plot": False},
        }
        for name, (model, options, data) in made.items()
    }
