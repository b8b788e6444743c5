"""From a run to a folder that serves: merge or quantize it, compare both on the run's own rows, write all of it."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset

from adapterlab.deploy.comparing import (
    Comparison,
    Side,
    changed_answers,
    logits_apart,
    time_loading,
    time_passes,
    weight_bytes,
)
from adapterlab.deploy.reporting import write_comparison
from adapterlab.deploy.sensitive import what_to_skip
from adapterlab.environment import describe_environment
from adapterlab.errors import AdapterError, ConfigError, DeployedFolderError
from adapterlab.guests import guests_of
from adapterlab.kernels.int8 import is_quantized
from adapterlab.merging import merge
from adapterlab.predicting import Predictor, labelled_rows, recipe_of
from adapterlab.pretrained import load_backbone, load_tokenizer, quiet
from adapterlab.recipe import dump_recipe
from adapterlab.serving.folder import write
from adapterlab.serving.quantizing import quantize
from adapterlab.staging import check_free, new_folder

TOLERANCE = 1e-3  # of merged logits, as a share of the largest
BATCH = 32  # as a model in int8 always takes: padding is the same on both sides


@dataclass(frozen=True)
class Deployed:
    """What came of it.

    Args:
        folder: what was written.
        comparison: with the original, on the run's rows.
        notes: what was found and done on the way.
    """

    folder: Path
    comparison: Comparison
    notes: tuple[str, ...]


def merge_run(
    source: str | Path, out: str | Path, *, rows: int | None = None, tolerance: float = TOLERANCE
) -> Deployed:
    """Write a run's backbone with the adapter folded in: a folder that plain transformers loads.

    Args:
        source: a finished run.
        out: a folder that doesn't exist yet.
        rows: how many of the run's test rows (or eval rows) to compare on; all if left out.
        tolerance: by how much logits may differ, as a share of the largest.

    Raises:
        AdapterError: the adapter can't be merged, or the merged model's logits are too far from the original's.
        DeployedFolderError: `out` holds something or can't be written.
    """
    task = _Task(source, out, rows)
    if guests_of(task.original.model) is None:
        raise ConfigError(f"'{source}' has no adapter to merge: it is a deployed folder. Give the run it was made of.")
    merged = copy.deepcopy(task.original.model)
    with _noted(task.notes):
        merge(merged)

    def write_merged(place: Path) -> None:
        with quiet():
            merged.save_pretrained(place)
        task.original.tokenizer.save_pretrained(place)

    def load_merged(place: Path) -> Any:
        tokenizer, kwargs = load_tokenizer(str(place)), task.original.task.model_kwargs()
        return load_backbone(str(place), task.original.task.auto_class, tokenizer, **kwargs)

    def check(found: Comparison) -> None:
        if found.logits is None:
            raise AdapterError("the merged model's logits can't be compared with the original's. Nothing was written.")
        _, most, largest = found.logits
        if not most <= tolerance * largest:
            raise AdapterError(
                f"the merged model's logits differ by up to {most:.3g} of {largest:.3g}, more than the "
                f"tolerance of {tolerance:g}. Nothing was written. Serve the adapter attached, or raise the tolerance."
            )

    return task.finish(merged, "merged", write_merged, load_merged, check)


def quantize_run(
    source: str | Path,
    out: str | Path,
    *,
    scheme: str = "int8",
    skip: Iterable[str] = (),
    max_drop: float | None = None,
    rows: int | None = None,
) -> Deployed:
    """Write a run's model in int8, its adapter merged, into a folder that `load_deployed` and `Predictor` serve.

    Args:
        source: a finished run.
        out: a folder that doesn't exist yet.
        scheme: "int8".
        skip: modules that stay as they are, as for `quantize`.
        max_drop: what the first metric may lose on the run's eval rows: points (or per cent, of what is no share).
            Where it loses more, the modules that hurt most stay in fp32.
        rows: how many of the run's test rows (or eval rows) to compare on; all if left out.

    Raises:
        AdapterError: the adapter can't be merged.
        BackboneError: nothing in it can be quantized.
        ConfigError: a module to skip doesn't exist, or the drop can't be kept.
        DeployedFolderError: `out` holds something or can't be written.
    """
    task = _Task(source, out, rows)
    if is_quantized(task.original.model):
        raise ConfigError(f"'{source}' is in int8 already. Give the run that it was made of.")
    task.original.model.cpu()  # where it will be served
    small, skipped = copy.deepcopy(task.original.model), list(skip)
    with _noted(task.notes):
        if guests_of(small) is not None:
            merge(small)
        if max_drop is not None:
            skipped += what_to_skip(task.original, small, task.rows("eval"), skipped, max_drop, task.notes)
        quantize(small, scheme, skip=skipped)
    if skipped:
        task.notes.append(f"In fp32 stay {', '.join(skipped)}.")
    about = {key: task.original.about[key] for key in ("backbone", "task", "max_length")}
    recipe = dump_recipe(task.recipe)

    def write_small(place: Path) -> None:
        (place / "recipe.yaml").write_text(recipe, encoding="utf-8")
        write(small, place, task.original.tokenizer, about)

    return task.finish(small, scheme, write_small, Predictor, lambda found: None)


class _Task:
    """A run that something is made of."""

    def __init__(self, source: str | Path, out: str | Path, limit: int | None) -> None:
        self.out, self.limit, self.source = Path(out), limit, source
        check_free(self.out, DeployedFolderError)
        self.recipe = recipe_of(source)
        self.original = Predictor(source)
        self.notes: list[str] = []

    def rows(self, split: str) -> tuple[Dataset, Dataset]:
        """Return a split's rows, encoded and as they are, no more than were asked for."""
        encoded, rows = labelled_rows(self.recipe, self.original, split=split)
        if self.limit is None or len(rows) <= self.limit:
            return encoded, rows
        rows = rows.select(range(self.limit))
        return self.original.encode(rows, "test"), rows

    def finish(
        self,
        model: Any,
        name: str,
        write_model: Callable[[Path], None],
        load_model: Callable[[Path], Any],
        check: Callable[[Comparison], None],
    ) -> Deployed:
        """Compare, write, measure what is written, and put the report beside it; all of it, or nothing."""
        encoded, rows = self.rows("test")
        served = copy.copy(self.original)
        served.model = model
        seen = [predictor.run_encoded(encoded, rows, BATCH) for predictor in (self.original, served)]
        sides = []
        for side, predictor, outputs in zip(("original", name), (self.original, served), seen, strict=True):
            metrics = predictor.task.measure(outputs)
            sides.append(Side(side, metrics, weight_bytes(predictor.model)))
        split = "test" if self.recipe.data.test is not None else "eval"
        changes = changed_answers(self.original.task, *seen)
        found = Comparison(sides[0], sides[1], split, len(rows), changes, logits_apart(self.original.task, *seen))
        check(found)
        with new_folder(self.out, DeployedFolderError) as place:
            write_model(place)
            with quiet():
                time_loading([(sides[0], lambda: Predictor(self.source)), (sides[1], lambda: load_model(place))])
            ids = _flat(encoded["input_ids"][:64]) if "input_ids" in encoded.column_names else [0]
            ids = [token for token in ids if token != self.original.tokenizer.eos_token_id] or [0]
            time_passes([(sides[0], self.original.model), (sides[1], model)], ids)
            title = f"{Path(self.source).name}: {name}"
            write_comparison(place, title, found, self.notes, describe_environment())
        return Deployed(self.out, found, tuple(self.notes))


def _flat(ids: Any) -> list[int]:
    """Return the tokens of rows, or of each row's choices, behind one another."""
    return [ids] if isinstance(ids, int) else [token for some in ids for token in _flat(some)]


@contextmanager
def _noted(notes: list[str]) -> Iterator[None]:
    """Keep warnings as notes."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    notes += [str(warning.message) for warning in caught]
