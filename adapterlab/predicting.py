"""Use a trained adapter: predict, evaluate."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from adapterlab.adapter_folder import EXTRA, AdapterFiles, read
from adapterlab.data import load_rows, load_splits
from adapterlab.errors import AdapterFolderError, RunFolderError
from adapterlab.loading import load, local_folder
from adapterlab.pretrained import load_backbone, load_tokenizer, quiet
from adapterlab.recipe import load_recipe
from adapterlab.tasks import Task
from adapterlab.training.precision import device
from adapterlab.training.run_folder import RunFolder

_CHUNK = 64  # batches that are sorted by length together: memory stays bounded, padding small


class Predictor:
    """A trained adapter on its backbone, ready for texts.

    Args:
        source: a run folder, an adapter folder that a run wrote, or a Hub id of one.

    Raises:
        AdapterFolderError: it isn't one, or doesn't say its task and backbone.
        BackboneError: the backbone can't be loaded.
    """

    def __init__(self, source: str | Path) -> None:
        files = read(local_folder(source))
        about = _about(files)
        self.task = Task.from_state(about["task"])
        self.max_length = int(about["max_length"])
        self.tokenizer = load_tokenizer(about["backbone"])
        self.model, _ = load_backbone(
            about["backbone"], self.task.auto_class, self.tokenizer, **self.task.model_kwargs()
        )
        load(self.model, files.folder)
        self.model.eval().to(device())

    def predict(self, texts: Iterable[str], batch_size: int = 32) -> Iterator[dict[str, Any]]:
        """Yield an answer per text, in order: text, label, score and the probability of each label.

        `texts` is read as answers are taken, so it may be longer than memory.
        """
        for chunk in _chunks(texts, batch_size * _CHUNK):
            answers = self.task.decode(self.logits([{"text": text} for text in chunk], batch_size))
            for text, answer in zip(chunk, answers, strict=True):
                yield {"text": text, **answer}

    def logits(self, rows: list[dict[str, Any]], batch_size: int = 32) -> np.ndarray[Any, Any]:
        """Return the logits of rows, in order; batches hold texts of about equal length."""
        from datasets import Dataset

        with quiet():
            encoded = self.task.encode(Dataset.from_list(rows), self.tokenizer, self.max_length)
        collate = self.task.collator(self.tokenizer)
        order = np.argsort([-len(ids) for ids in encoded["input_ids"]], kind="stable")
        results: list[Any] = [None] * len(rows)
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            batch = collate([encoded[int(index)] for index in chosen])
            batch = {key: tensor.to(self.model.device) for key, tensor in batch.items() if key != "labels"}
            with torch.inference_mode():
                output = self.model(**batch).logits.float().cpu().numpy()
            for index, row in zip(chosen, output, strict=True):
                results[index] = row
        return np.stack(results)


def evaluate(source: str | Path, data: str | None = None, batch_size: int = 64) -> dict[str, Any]:
    """Measure a run's adapter with its task's metrics.

    Args:
        source: a run folder.
        data: address of the rows to measure on; the run's own test rows (or eval rows) if left out.

    Returns:
        The metrics, and the number of rows.

    Raises:
        RunFolderError: no recipe is there to say how rows are read.
        DataError: the rows can't be used, or have labels that the adapter doesn't know.
    """
    folder = RunFolder(Path(source))
    if not folder.recipe.is_file():
        raise RunFolderError(
            f"'{source}' has no recipe.yaml, so nothing says how its data is read. Give the folder of a run."
        )
    recipe = load_recipe(folder.recipe)
    predictor = Predictor(source)
    if data is None:
        splits = load_splits(recipe.data, predictor.task, recipe.run.seed)
        rows = splits.eval if splits.test is None else splits.test
    else:
        rows, _ = load_rows(data, recipe.data, predictor.task)
    predictor.task.check_labels(rows, data or "test")
    logits = predictor.logits(rows.to_list(), batch_size)
    labels = predictor.task.encode(rows, predictor.tokenizer, predictor.max_length)["labels"]
    return {**predictor.task.compute_metrics(logits, np.asarray(labels)), "rows": len(rows)}


def _about(files: AdapterFiles) -> dict[str, Any]:
    lacking = [key for key in ("backbone", "task", "max_length") if key not in files.extra]
    if lacking:
        raise AdapterFolderError(
            f"'{files.folder}' doesn't say what it is for ({EXTRA} lacks {', '.join(lacking)}): it wasn't written "
            "by a run. Load it in code: adapterlab.load(model, folder)."
        )
    if not isinstance(files.extra["task"], dict) or not isinstance(files.extra["max_length"], int):
        raise AdapterFolderError(f"{files.folder / EXTRA}: task must be a mapping and max_length a whole number.")
    if not isinstance(files.extra["backbone"], str):
        raise AdapterFolderError(f"{files.folder / EXTRA}: backbone must be an address.")
    return files.extra


def _chunks(items: Iterable[str], size: int) -> Iterator[list[str]]:
    iterator = iter(items)
    while chunk := list(itertools.islice(iterator, size)):
        yield chunk
