"""From a recipe to all that a run needs: rows read and encoded, backbone and adapter loaded; nothing is written."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers
from rich.console import Console
from rich.markup import escape

from adapterlab.attaching import Summary, attach, summary
from adapterlab.chain import lay
from adapterlab.data import Splits, load_splits
from adapterlab.guests import need_guests
from adapterlab.new_tokens import pieces
from adapterlab.pretrained import limit_length, load_backbone, load_tokenizer, portable_address
from adapterlab.recipe import Recipe
from adapterlab.sharding import load_everywhere, shard_by_layer
from adapterlab.speed import precision
from adapterlab.speed.compiled import check_compiler, compiled
from adapterlab.speed.lean import lean
from adapterlab.speed.stored_bf16 import stored_bf16
from adapterlab.tasks import Task
from adapterlab.trainer_hooks import set_total_step
from adapterlab.training.cached_layers import LowerStates, read_from_disk, room_for
from adapterlab.training.groups import parameter_groups
from adapterlab.training.loggers import check_loggers
from adapterlab.training.lower_layers import LowerLayers, find_lower_layers
from adapterlab.training.replay import General
from adapterlab.training.run_folder import RunFolder
from adapterlab.training.trainer import TaskTrainer, best_metric, planned_steps, row_count

_KEPT = {"merged": "merged into its weights", "beside": "which stays beside the new one, frozen"}


@dataclass
class Prepared:
    """Everything that a run needs, loaded and checked; nothing on disk has been touched."""

    recipe: Recipe
    task: Task
    splits: Splits
    model: Any
    tokenizer: Any
    rows: dict[str, Any]
    counts: Summary
    notes: list[str]
    number_format: str  # of the backbone's maths
    plain: Callable[[str], Any] | None  # encodes a split for the backbone that doesn't know the adapter's new tokens
    lower: LowerLayers | None  # those to compute once, if the recipe wants that

    @contextmanager
    def at_speed(self, trainer: TaskTrainer, folder: Path, console: Console) -> Iterator[LowerStates | None]:
        """Train in the quickest way, inside the `with` block; yield the lower layers' output, if that is cached."""
        in_bf16, optim = precision.stores_bf16(self.number_format), self.recipe.optim
        with (
            read_from_disk(trainer, self.lower, folder, console) as states,
            lean(self.model, byte_dropout=optim.byte_dropout),
            stored_bf16(self.model, in_bf16),
            compiled(self.model, optim.compile),
        ):
            yield states


def prepare(recipe: Recipe, console: Console) -> Prepared:
    """Load data, backbone and adapter, and check that they fit; nothing is written."""
    task = Task.from_recipe(recipe.task, recipe.data)
    best_metric(recipe, task)  # refuses one that training doesn't measure
    check_loggers(list(recipe.log.to))
    number_format, why = precision.choose(recipe.optim.precision)
    if recipe.optim.compile:
        check_compiler(precision.device())
    with console.status("reading the data"):
        general = General(recipe, task) if recipe.data.replay else None
        splits = load_splits(recipe.data, task, recipe.run.seed)
        if general is not None:  # a resumed run shall notice that general text has changed, too
            splits.origins |= {f"replay.{name}": rows for name, rows in general.splits.origins.items()}
        task.fit(splits)
    transformers.set_seed(recipe.run.seed, deterministic=recipe.run.deterministic)
    with console.status(f"loading {recipe.model.name}"):
        tokenizer = load_tokenizer(recipe.model.name)
        load_everywhere()
        model, fresh = load_backbone(recipe.model.name, task.auto_class, tokenizer, **task.model_kwargs())
        links = lay(model, tokenizer, recipe.model.adapters)
        task.begin(model)
    options = recipe.adapter.options()
    if fresh:
        options["modules_to_save"] = [*options.get("modules_to_save", []), *fresh]
    untouched = copy.deepcopy(tokenizer)
    missing = [token for token in task.new_tokens if token not in tokenizer.get_vocab()]
    words = [*missing, *task.new_words(splits.train, tokenizer)]
    brought = pieces(tokenizer, words, special=bool(missing)) if words else None
    attach(model, recipe.adapter.method, new_tokens=brought, **options)
    about = {
        "backbone": portable_address(recipe.model.name),
        "task": task.state(),
        "max_length": recipe.data.max_length,
    }
    if links:
        about["adapters"] = links
    need_guests(model).adapters["default"].about = about
    shard_by_layer(model)
    task.prepare(model, tokenizer)
    for reader in (tokenizer, untouched):
        limit_length(reader, model)

    def encode(reader: Any, names: Iterable[str]) -> dict[str, Any]:
        length = recipe.data.max_length
        rows = {name: task.encode(splits.named[name], reader, length, name=name) for name in names}
        return rows if general is None else general.join(rows, general.encode(task, reader, length), task)

    rows = encode(tokenizer, splits.named)
    parameter_groups(model, recipe.optim)  # here a rate for what isn't there fails
    set_total_step(model, planned_steps(recipe, row_count(rows["train"])))  # here a schedule that can't fit fails
    notes = [*splits.notes, *task.notes, f"Training in {number_format} ({why}); {precision.storage(number_format)}."]
    if recipe.optim.compile and precision.device() == "cpu":
        notes.append("optim.compile: on a CPU, layers that aren't compiled have been measured to be twice as fast.")
    if fresh:
        notes.append(f"The backbone's files have no weights for {', '.join(fresh)}: trained with the adapter.")
    notes += [f"The backbone has the adapter {link['adapter']}, {_KEPT[link['kept']]}." for link in links]
    lower = None
    if recipe.optim.cache_lower_layers:
        lower = find_lower_layers(task, model, tokenizer, rows["train"], number_format)
        notes.append(room_for(lower, str(recipe.run.dir)))
    plain = (lambda split: encode(untouched, [split])[split]) if brought else None
    return Prepared(recipe, task, splits, model, tokenizer, rows, summary(model), notes, number_format, plain, lower)


def announce(prepared: Prepared, folder: RunFolder, checkpoint: Path | None, console: Console) -> None:
    """Say what will be done: backbone, adapter, data, steps, and what was noticed on the way."""
    recipe, counts = prepared.recipe, prepared.counts
    sizes = ", ".join(f"{size:,} {name}" for name, size in prepared.splits.sizes.items())
    steps = planned_steps(recipe, row_count(prepared.rows["train"]))
    share = 100 * counts.trainable / counts.total
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    examples = recipe.optim.batch_size * recipe.optim.accumulate * processes
    spread = f", on {processes} processes" if processes > 1 else ""
    for title, text in (
        ("backbone", f"{recipe.model.name}, {counts.total:,} parameters"),
        ("adapter", f"{recipe.adapter.method}, {counts.trainable:,} trained ({share:.2f} %)"),
        ("data", f"{sizes} rows"),
        ("training", f"{steps:,} steps of {examples} rows{spread}"),
        ("run", f"{folder.path}" + (f", going on from {checkpoint.name}" if checkpoint else "")),
    ):
        console.print(f"[bold]{title:>9}[/bold]  {text}", highlight=False, soft_wrap=True)
    for note in prepared.notes:
        console.print(f"[dim]{'note':>9}  {escape(note)}[/dim]", highlight=False, soft_wrap=True)
