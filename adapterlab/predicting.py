"""Use a trained adapter: predict, evaluate."""

from __future__ import annotations

import inspect
import itertools
import threading
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from datasets import Dataset

from adapterlab.adapter_folder import EXTRA, AdapterFiles, read
from adapterlab.chain import lay
from adapterlab.data import load_rows, load_splits
from adapterlab.errors import AdapterFolderError, DataError, RunFolderError
from adapterlab.kernels.int8 import is_quantized
from adapterlab.loading import load, local_folder
from adapterlab.new_tokens import equip
from adapterlab.pretrained import limit_length, load_backbone, load_tokenizer, quiet
from adapterlab.recipe import Recipe, load_recipe
from adapterlab.serving.folder import open_deployed
from adapterlab.serving.manifest import MANIFEST, is_deployed
from adapterlab.speed.precision import device
from adapterlab.tasks import Predictions, Task
from adapterlab.training.replay import General
from adapterlab.training.run_folder import RunFolder
from adapterlab.training.trainer import by_length


class Predictor:
    """A trained adapter on its backbone, ready for rows; several threads may use one.

    Args:
        source: a run folder, an adapter folder that a run wrote, a Hub id of one, or a deployed folder.
        options: of the task, in place of the recipe's: those that say how answers are found, e.g.
            `{"num_beams": 4}` where texts are generated.

    Raises:
        AdapterFolderError: it isn't one, or doesn't say its task and backbone.
        DeployedFolderError: a deployed folder isn't what was written.
        BackboneError: the backbone can't be loaded.
        ConfigError: the task has no such option, or it can't be set now.
    """

    def __init__(self, source: str | Path, options: Mapping[str, Any] | None = None) -> None:
        self._tokenizing = threading.Lock()  # a fast tokenizer can't be set up and used at once
        folder = local_folder(source)
        if is_deployed(folder):
            self.model, manifest = open_deployed(folder)
            self.about = _about(manifest, folder / MANIFEST)
            self.task = self._task(options)
            self.tokenizer = load_tokenizer(str(folder))
        else:
            files = read(folder)
            self.about = _about(files.extra, files.folder / EXTRA)
            self.task = self._task(options)
            self.tokenizer = load_tokenizer(self.about["backbone"])
            self.model = self._adapted(files)
        self.max_length = int(self.about["max_length"])
        limit_length(self.tokenizer, self.model)
        self.task.prepare(self.model, self.tokenizer)
        self.model.eval().to("cpu" if is_quantized(self.model) else device())

    def _task(self, options: Mapping[str, Any] | None) -> Task:
        task = Task.from_state(self.about["task"])
        task.set_options(options or {})
        return task

    def _adapted(self, files: AdapterFiles) -> Any:
        """Return the backbone with the adapter on it."""
        address, kwargs = self.about["backbone"], self.task.model_kwargs()
        model, _ = load_backbone(address, self.task.auto_class, self.tokenizer, **kwargs)
        lay(model, self.tokenizer, self.about.get("adapters") or [])
        load(model, files.folder)
        equip(self.tokenizer, model)
        return model

    def predict(self, rows: Iterable[str | Mapping[str, Any]], batch_size: int = 32) -> Iterator[dict[str, Any]]:
        """Yield an answer per row, in order: the row's inputs, and what the task gives for them.

        Args:
            rows: a mapping of the task's inputs each, or a plain text where the task has one input. They are read as
                answers are taken, so there may be more than memory holds.
            batch_size: rows per forward pass. A model in int8 always takes 32: how its inputs are rounded depends on
                what is in a batch, and answers shouldn't depend on its size.

        Raises:
            DataError: a row lacks an input, or it can't be used; the message counts rows from 1.
        """
        batch_size = self._batch(batch_size)
        numbered = enumerate(rows, start=1)
        for chunk in _chunks(numbered, batch_size * self.task.ahead):
            given = [self._inputs(row, number) for number, row in chunk]
            names = dict.fromkeys(name for row in given for name in row)  # what is optional, some rows may lack
            table = Dataset.from_dict({name: [row.get(name) for row in given] for name in names})
            answers = self.task.decode(self.run(table, batch_size))
            for row, answer in zip(given, answers, strict=True):
                yield {**row, **answer}

    def run(self, rows: Dataset, batch_size: int = 32, *, name: str = "data") -> Predictions:
        """Run the model on rows under the task's column names; `name` is as for `Task.encode`."""
        return self.run_encoded(self.encode(rows, name), rows, batch_size)

    def encode(self, rows: Dataset, name: str) -> Dataset:
        """Return rows as the model reads them."""
        with self._tokenizing, quiet():
            return self.task.encode(rows, self.tokenizer, self.max_length, name=name)

    def run_encoded(self, encoded: Dataset, rows: Dataset, batch_size: int) -> Predictions:
        """Run the model on encoded rows, in batches of about equal length."""
        batch_size = self._batch(batch_size)
        collate = self.task.collator(self.tokenizer)
        taken = {*inspect.signature(self.model.forward).parameters, *self.task.extra_inputs, "labels"}
        features = encoded.select_columns([column for column in encoded.column_names if column in taken])
        order = by_length(encoded)
        results: list[Any] = [None] * len(encoded)
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            with self._tokenizing:
                batch = collate([features[index] for index in chosen])
            batch = {key: tensor.to(self.model.device) for key, tensor in batch.items()}
            with torch.inference_mode():
                _, kept = self.task.answer(self.model, batch)
            parts = [part.float().cpu().numpy() for part in (kept if isinstance(kept, tuple) else (kept,))]
            for place, index in enumerate(chosen):
                found = tuple(part[place] for part in parts)
                results[index] = found if isinstance(kept, tuple) else found[0]
        return Predictions(_stacked(results), encoded, rows)

    def _batch(self, wanted: int) -> int:
        return 32 if is_quantized(self.model) else wanted

    def _inputs(self, row: str | Mapping[str, Any], number: int) -> dict[str, Any]:
        needed = [name for name in self.task.inputs if name not in self.task.optional]
        if isinstance(row, str):
            plain = [self.task.plain_input] if self.task.plain_input else needed
            if len(plain) != 1:
                raise DataError(
                    f"row {number} is a plain text, and a {self.task.type} task reads {' and '.join(needed)}: "
                    "give a mapping with these keys."
                )
            row = {plain[0]: row}
        if missing := [name for name in needed if row.get(name) is None]:
            raise DataError(f"row {number} lacks {', '.join(missing)}; its keys: {', '.join(map(str, row)) or 'none'}.")
        given: dict[str, Any] = {name: row.get(name) for name in self.task.inputs if name in row or name in needed}
        for name, value in given.items():
            try:
                cleaned = None if value is None else self.task.clean(name, value)
            except (TypeError, ValueError) as error:
                raise DataError(f"row {number}, {name}: {error}") from error
            given[name] = value if cleaned is None else cleaned  # an empty text is a fair question
        if wrong := self.task.check(given):
            raise DataError(f"row {number}: {wrong}")
        return given


def evaluate(
    source: str | Path, data: str | None = None, batch_size: int = 64, *, options: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Measure a run's adapter with its task's metrics.

    Args:
        source: a run folder, or a deployed folder made of one.
        data: address of the rows to measure on; the run's own test rows (or eval rows) if left out.
        batch_size: rows per forward pass.
        options: as for `Predictor`.

    Returns:
        The metrics, and the number of rows. For the run's own rows also those of its general text, if it has replay.

    Raises:
        RunFolderError: no recipe is there to say how rows are read.
        DataError: the rows can't be used, or have labels that the adapter doesn't know.
    """
    recipe = recipe_of(source)
    predictor = Predictor(source, options)
    encoded, rows = labelled_rows(recipe, predictor, data)
    return {**predictor.task.measure(predictor.run_encoded(encoded, rows, batch_size)), "rows": len(rows)}


def recipe_of(source: str | Path) -> Recipe:
    """Return the recipe that a folder was made by.

    Raises:
        RunFolderError: there is none.
    """
    file = RunFolder(Path(source)).recipe
    if not file.is_file():
        raise RunFolderError(
            f"'{source}' has no recipe.yaml, so nothing says how its data is read. Give the folder of a run."
        )
    return load_recipe(file)


def labelled_rows(
    recipe: Recipe, predictor: Predictor, data: str | None = None, split: str = "test"
) -> tuple[Any, Dataset]:
    """Return rows to measure on, encoded and as they are: a run's own of a split, or others.

    Args:
        data: address of others.
        split: "test" (eval rows where a run has none) or "eval".

    Raises:
        DataError: the rows can't be used, or have labels that the adapter doesn't know.
    """
    task = predictor.task
    if data is None:
        splits = load_splits(recipe.data, task, recipe.run.seed)
        rows = splits.eval if splits.test is None or split == "eval" else splits.test
    else:
        rows, _ = load_rows(data, recipe.data, task)
    task.check_labels(rows, data or "test")
    encoded = predictor.encode(rows, "test")
    if data is None and recipe.data.replay:  # the run's general text belongs to its own rows
        general = General(recipe, task)
        held_out = general.encode(task, predictor.tokenizer, predictor.max_length, ["eval"])
        encoded = general.join({"test": encoded}, held_out, task)["test"]
    return encoded, rows


def _about(said: dict[str, Any], file: Path) -> dict[str, Any]:
    lacking = [key for key in ("backbone", "task", "max_length") if key not in said]
    if lacking:
        raise AdapterFolderError(
            f"'{file.parent}' doesn't say what it is for ({file.name} lacks {', '.join(lacking)}): it wasn't made "
            "of a run. Load it in code: adapterlab.load(model, folder), adapterlab.load_deployed(folder)."
        )
    if not isinstance(said["task"], dict) or not isinstance(said["max_length"], int):
        raise AdapterFolderError(f"{file}: task must be a mapping and max_length a whole number.")
    if not isinstance(said["backbone"], str):
        raise AdapterFolderError(f"{file}: backbone must be an address.")
    return said


def _stacked(results: list[Any]) -> Any:
    """Return what the Trainer would: arrays, padded with -100 where rows differ in length."""
    if isinstance(results[0], tuple):
        return tuple(_stacked(list(parts)) for parts in zip(*results, strict=True))
    longest: Any = np.max([part.shape for part in results], axis=0)
    stacked = np.full((len(results), *map(int, longest)), -100, dtype=np.float32)
    for row, part in enumerate(results):
        place: Any = (row, *(slice(length) for length in part.shape))
        stacked[place] = part
    return stacked


T = TypeVar("T")


def _chunks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    iterator = iter(items)
    while chunk := list(itertools.islice(iterator, size)):
        yield chunk
