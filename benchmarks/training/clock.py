"""One clock for every contender that trains through `transformers.Trainer`: ours and the peers."""

from __future__ import annotations

import time
from typing import Any

from transformers import TrainerCallback, trainer


class Clock(TrainerCallback):
    """Measures the seconds of the training loop; it stands still during evaluation and saving.

    Batches, forward, backward, optimizer and logging are in; loading, tokenising and the Trainer's set-up are not.

    Args:
        target: end training as soon as an evaluation's accuracy is at it.
    """

    def __init__(self, target: float | None = None) -> None:
        self.target = target
        self.seconds, self.cpu_seconds, self.steps, self.tokens = 0.0, 0.0, 0, 0
        self.curve: list[dict[str, float]] = []
        self.over = False
        self._since: tuple[float, float] | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start; of what a process trains, the first run counts."""
        if not self.over:
            self._since = _now()

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Go on after an evaluation."""
        if self._since is None and not self.over:
            self._since = _now()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take the time; stand still if an evaluation or a checkpoint follows."""
        if self._since is None:
            return
        now = _now()
        self.seconds += now[0] - self._since[0]
        self.cpu_seconds += now[1] - self._since[1]
        self.steps, self.tokens = state.global_step, int(state.num_input_tokens_seen)
        self._since = None if control.should_evaluate or control.should_save else now

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """An evaluation may follow here as well; what an epoch's end itself takes is next to nothing."""
        if control.should_evaluate or control.should_save:
            self._since = None

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> None:
        """Keep the accuracy."""
        accuracy = (metrics or {}).get("eval_accuracy")
        if self.over or accuracy is None:
            return
        self.curve.append({"step": state.global_step, "seconds": self.seconds, "accuracy": accuracy})
        if self.target is not None and accuracy >= self.target:
            control.should_training_stop = True

    def found(self) -> dict[str, Any]:
        """Return what was measured; `cpu_seconds`, of all threads, tell whether other programs disturbed."""
        return {"seconds": self.seconds, "cpu_seconds": self.cpu_seconds, "steps": self.steps, "curve": self.curve}

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """What else this process trains doesn't count."""
        self.over, self._since = True, None


def _now() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def start_clock(target: float | None = None) -> Clock:
    """Give each Trainer of this process, whoever makes it, one clock among its default callbacks."""
    clock = Clock(target)
    trainer.DEFAULT_CALLBACKS.append(clock)
    return clock
