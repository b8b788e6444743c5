"""Compute the frozen lower layers once for each row to train on, and read their output from disk in every step.

For adapters that sit in the upper layers only. What the lower ones give is the same in each epoch, but for their
dropout and the embeddings', which are left out here: that is what it changes.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import accumulate
from pathlib import Path
from typing import IO, Any

import torch
from rich.console import Console

from adapterlab.data.sources import bars_only_on_terminal
from adapterlab.errors import RunFolderError
from adapterlab.training.lower_layers import (
    KEY,
    Enough,
    LowerLayers,
    Skipping,
    Watching,
    batch_of,
    evaluating,
    hidden_of,
    packed,
    real_tokens,
    replaced,
    tokens_of,
)
from adapterlab.training.report import size
from adapterlab.training.trainer import ROW_NUMBER, TaskTrainer, by_length


def room_for(lower: LowerLayers, folder: str) -> str:
    """Return a line, for console and report, on what is done and what it takes on disk.

    Args:
        lower: what `find_lower_layers` found.
        folder: the run's; it need not be there yet.

    Raises:
        RunFolderError: the disk is too full for it.
    """
    share, wanted = f"{len(lower.modules)} of {lower.of}", Path(folder).absolute()
    free = shutil.disk_usage(next(path for path in (wanted, *wanted.parents) if path.is_dir())).free
    if free < lower.bytes:
        raise RunFolderError(
            f"{KEY}: the output of the lower {share} layers takes {size(lower.bytes)} ({lower.tokens:,} tokens "
            f"of {lower.width:,} bytes), and the disk of run.dir '{folder}' has {size(free)} left. Make room, set "
            f"run.dir to a folder on another disk, or leave the option out."
        )
    return (
        f"The lower {share} layers are computed once, without their dropout and the embeddings', and read from "
        f"disk in each step ({KEY}): {size(lower.bytes)} in {folder} until training ends."
    )


@contextmanager
def read_from_disk(
    trainer: TaskTrainer, lower: LowerLayers | None, folder: Path, console: Console
) -> Iterator[LowerStates | None]:
    """Have a trainer's steps begin above the lower layers inside the `with` block; its evaluations run all of them.

    Before that, those are computed for the rows to train on. The file has no name where the system can do that, so
    that nothing of it stays however the process ends.

    Raises:
        RunFolderError: the disk is full.
    """
    if lower is None:
        yield None
        return
    rows, collate = trainer.train_dataset, trainer.data_collator
    with tempfile.TemporaryFile(dir=folder) as file:
        states = LowerStates(lower, rows, file)
        try:
            with console.status("computing the lower layers"):
                states.compute(rows, collate, int(trainer.args.per_device_eval_batch_size))
        except OSError as error:
            raise RunFolderError(
                f"{KEY}: the lower layers' output can't be written in '{folder}': {error.strerror or error}."
            ) from None
        with bars_only_on_terminal():
            trainer.train_dataset = rows.add_column(ROW_NUMBER, range(len(rows)))
        trainer.data_collator, trainer.lower_states = _numbered(collate), states
        try:
            with replaced(lower.modules, states.skipping):
                yield states
        finally:
            trainer.train_dataset, trainer.data_collator, trainer.lower_states = rows, collate, None


class LowerStates:
    """What the lower layers give for each row: the hidden states of its tokens, without padding, row behind row.

    They are read from the file, not mapped: mapped pages would be counted as the process's memory.
    """

    def __init__(self, lower: LowerLayers, rows: Any, file: IO[bytes]) -> None:
        self.lower, self.file = lower, file
        self.skipping = Skipping(lower.parts)
        self.lengths = [tokens_of(ids) for ids in rows["input_ids"]]
        self.starts = [0] * len(self.lengths)
        self.width, self.dtype = lower.width, torch.float32

    @property
    def tokens(self) -> int:
        """How many there are."""
        return sum(self.lengths)

    def compute(self, rows: Any, collate: Callable[..., Any], batch_size: int) -> None:
        """Fill the file, with rows of about equal length at once."""
        order, end = by_length(rows), 0
        for at in range(0, len(order), batch_size):
            chosen = order[at : at + batch_size]
            lengths = [self.lengths[row] for row in chosen]
            batch = batch_of(collate, [rows[row] for row in chosen], self.lower.model)
            states = packed(self._run(batch), real_tokens(batch, lengths)).cpu()
            self.dtype, self.width = states.dtype, states.shape[-1] * states.element_size()
            self.file.write(states.view(torch.uint8).numpy().data)
            for row, start in zip(chosen, accumulate(lengths, initial=end), strict=False):
                self.starts[row] = start
            end += sum(lengths)
        self.file.flush()

    def _run(self, batch: dict[str, Any]) -> torch.Tensor:
        lower, watching = self.lower, Watching(until=len(self.lower.modules) - 1)
        with (
            evaluating(lower.model, lower.number_format), torch.no_grad(),
            replaced(lower.modules, watching), suppress(Enough),
        ):  # fmt: skip
            lower.task.forward(lower.model, batch)
        return hidden_of(watching.outputs[-1])

    @contextmanager
    def of(self, batch: dict[str, Any]) -> Iterator[None]:
        """Have the model take a batch's states from the file inside the `with` block; its rows' numbers leave it."""
        chosen = batch.pop(ROW_NUMBER).tolist()
        lengths = [self.lengths[row] for row in chosen]
        read = torch.empty(sum(lengths), self.width, dtype=torch.uint8)
        for row, part in zip(chosen, read.split(lengths), strict=True):
            self.file.seek(self.starts[row] * self.width)
            self.file.readinto(part.numpy().data)  # type: ignore[attr-defined]
        real = real_tokens(batch, lengths)
        self.skipping.states, self.skipping.real = read.view(self.dtype).to(real.device), real
        try:
            yield
        finally:
            self.skipping.states = None


def _numbered(collate: Callable[..., Any]) -> Callable[..., dict[str, Any]]:
    """Return a collator that hands on the numbers of rows that have one."""

    def numbered(rows: list[dict[str, Any]]) -> dict[str, Any]:
        batch = dict(collate([{key: value for key, value in row.items() if key != ROW_NUMBER} for row in rows]))
        if ROW_NUMBER in rows[0]:
            batch[ROW_NUMBER] = torch.tensor([row[ROW_NUMBER] for row in rows])
        return batch

    return numbered
