"""Row 9: SmolLM2-135M learns to answer short questions: ours packed, peft with Trainer padded to a batch's longest.

The dialogues are real text: what a function or class of Python's standard library does, by its own docstring.
"""

from __future__ import annotations

import importlib
import inspect
import random
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.pretraining import smollm
from benchmarks.training.clock import start_clock
from benchmarks.training.judging import per_step
from benchmarks.training.reviews import write

CONTENDERS = ("ours", "peft")
SETTINGS: dict[str, Any] = {"rows": 96, "batch": 8, "window": 256, "lr": 3e-4}
QUICK: dict[str, Any] = {"rows": 32}
ADAPTER = {"r": 8, "alpha": 16, "dropout": 0.05}
LONGEST = 500  # characters of an answer
LIBRARY = """
    argparse asyncio calendar collections configparser contextlib csv dataclasses datetime decimal difflib email
    enum fractions functools heapq html http.client inspect ipaddress itertools json logging math os pathlib pickle
    random re shutil socket sqlite3 statistics string subprocess tempfile textwrap threading tokenize traceback
    types typing unittest urllib.parse urllib.request uuid weakref zipfile
"""


def dialogues(count: int) -> list[list[dict[str, str]]]:
    """Return so many dialogues of two messages, drawn from the standard library's docstrings."""
    found: dict[str, str] = {}
    for name in LIBRARY.split():
        module = importlib.import_module(name)
        for public in sorted(getattr(module, "__all__", dir(module))):
            thing = getattr(module, public, None)
            text = inspect.getdoc(thing) if inspect.isroutine(thing) or inspect.isclass(thing) else None
            if text and not public.startswith("_") and len(text) <= LONGEST and text not in found.values():
                found[f"What does {name}.{public} of Python's standard library do?"] = text
    chosen = random.Random(0).sample(sorted(found), count)
    return [
        [{"role": "user", "content": question}, {"role": "assistant", "content": found[question]}]
        for question in chosen
    ]


def trial(contender: str, seed: int, settings: dict[str, Any], cache: Path) -> dict[str, Any]:
    """Train one epoch; return dialogues and seconds. A step has about the same dialogues on both sides."""
    from transformers import AutoTokenizer

    every = dialogues(settings["rows"])
    place = smollm(cache / "smollm2")
    tokenizer = AutoTokenizer.from_pretrained(place)
    encoded = [encode(tokenizer, messages) for messages in every]
    tokens = sum(len(row["input_ids"]) for row in encoded)
    if contender == "ours":
        windows = per_step(settings["batch"], tokens / len(every), settings["window"])
        found = ours(place, every, windows, settings, seed)
    else:
        found = through_trainer(place, tokenizer, encoded, settings, seed)
    return {**found, "dialogues": len(every), "tokens": tokens}


def encode(tokenizer: Any, messages: list[dict[str, str]]) -> dict[str, list[int]]:
    """Return a dialogue's tokens, and labels for its answer only."""
    whole = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True)["input_ids"]
    asked = tokenizer.apply_chat_template(
        messages[:-1], tokenize=True, add_generation_prompt=True, return_dict=True
    )["input_ids"]  # fmt: skip
    return {"input_ids": whole, "labels": [-100] * len(asked) + whole[len(asked) :]}


def ours(place: str, every: list[Any], windows: int, settings: dict[str, Any], seed: int) -> dict[str, Any]:
    """Train through `adapterlab.run`, short rows packed into windows as the shipped recipe has it."""
    import adapterlab

    clock = start_clock()
    with tempfile.TemporaryDirectory() as folder:
        rows = [{"messages": messages} for messages in every]
        result = adapterlab.run({
            "version": 1,
            "run": {"dir": f"{folder}/run", "seed": seed},
            "model": {"name": place},
            "adapter": {"method": "lora", "target_modules": "all-linear", **ADAPTER},
            "task": {"type": "instruction", "metrics": ["perplexity"], "packing": True},
            "data": {
                "train": write(Path(folder) / "train.jsonl", rows),
                "eval": write(Path(folder) / "eval.jsonl", rows[:4]),
                "max_length": settings["window"],
            },
            "optim": {"lr": settings["lr"], "schedule": "cosine", "warmup_ratio": 0.03, "batch_size": windows,
                      "epochs": 1, "precision": "auto"},
        })  # fmt: skip
    return {**clock.found(), "trained": result.trained}


def through_trainer(place: str, tokenizer: Any, encoded: list[Any], settings: dict[str, Any], seed: int) -> Any:
    """Train peft's LoRA as its documents do: each batch padded to its longest, labels only on answers, all logits."""
    import datasets
    import peft
    import torch
    from transformers import AutoModelForCausalLM, DataCollatorForSeq2Seq, Trainer, TrainingArguments, set_seed

    from adapterlab.speed import precision

    clock = start_clock()
    set_seed(seed)
    config = peft.LoraConfig(
        task_type="CAUSAL_LM", r=ADAPTER["r"], lora_alpha=ADAPTER["alpha"], lora_dropout=ADAPTER["dropout"],
        target_modules="all-linear",
    )  # fmt: skip
    model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32), config)
    steps = -(-len(encoded) // settings["batch"])
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(
            folder, seed=seed, learning_rate=settings["lr"], lr_scheduler_type="cosine",
            warmup_steps=round(0.03 * steps), num_train_epochs=1, per_device_train_batch_size=settings["batch"],
            bf16=precision.choose("auto")[0] == "bf16", save_strategy="no", report_to=[], disable_tqdm=True,
            dataloader_pin_memory=False, use_cpu=not torch.cuda.is_available(),
        )  # fmt: skip
        rows = datasets.Dataset.from_list(encoded)
        Trainer(model, args, train_dataset=rows, data_collator=DataCollatorForSeq2Seq(tokenizer)).train()
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return {**clock.found(), "trained": trained}
