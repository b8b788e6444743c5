"""Where training stands in a streamed corpus, kept in its checkpoints; and how fast it reads."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from adapterlab.errors import DataError, RunFolderError

PLACE = "corpus.json"  # in a checkpoint


class PlaceInCorpus(TrainerCallback):
    """Writes into each checkpoint where the corpus stood after the last row that was trained on.

    Args:
        rows: the streamed blocks.
        each_step: rows that one optimizer step takes, over all processes.
    """

    def __init__(self, rows: Any, each_step: int) -> None:
        self.rows, self.each_step = rows, each_step

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write the place beside the optimizer's state."""
        checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if state.is_world_process_zero and checkpoint.is_dir():
            place = self.rows.state_after(state.global_step * self.each_step)
            (checkpoint / PLACE).write_text(json.dumps(place), encoding="utf-8")


def go_on(rows: Any, checkpoint: Path) -> None:
    """Let streamed blocks begin where a checkpoint's training stopped.

    Raises:
        RunFolderError: the checkpoint doesn't say where, or the corpus isn't what it was.
    """
    try:
        place = json.loads((checkpoint / PLACE).read_text(encoding="utf-8"))
        rows.go_on(place)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunFolderError(
            f"'{checkpoint}' doesn't say where in the corpus its training stopped ({PLACE}: {error}). It wasn't "
            "streamed then; resume with data.streaming as it was, or start anew: --replace."
        ) from None
    except DataError as error:
        raise RunFolderError(
            f"'{checkpoint}' can't be gone on from: {error} Put the files back as they were, or start anew: --replace."
        ) from None


class Pace(TrainerCallback):
    """Measures the tokens that are trained on each second; evaluations don't count."""

    def __init__(self) -> None:
        self.seconds, self.before, self.tokens = 0.0, 0, 0
        self._began = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """A resumed run has seen some already."""
        self.before = state.num_input_tokens_seen

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the clock."""
        self._began = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop it."""
        self.seconds += time.perf_counter() - self._began
        self.tokens = state.num_input_tokens_seen

    def said(self) -> str:
        """Return the line for the report."""
        rate = (self.tokens - self.before) / self.seconds if self.seconds else 0.0
        return f"{self.tokens:,} tokens seen in training, {rate:,.0f} a second."
