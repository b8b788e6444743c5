"""Regression: a number for a text (a rating), or for a pair of texts (how similar they are)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from adapterlab.errors import AdapterLabError, ConfigError, DataError
from adapterlab.tasks.base import register_task
from adapterlab.tasks.exchange import Evidence, Predictions, ReportTable
from adapterlab.tasks.sentence import SentenceTask, as_text, finite, fit_probe

if TYPE_CHECKING:
    from adapterlab.data import Splits


@register_task("regression")
class Regression(SentenceTask):
    """Learns a number. The model sees it with train's mean taken off and in units of its deviation."""

    summary = "a number per text, or per pair of texts"
    columns: ClassVar[dict[str, str]] = {
        "text": "the text",
        "text_pair": "the second text, of a task on pairs",
        "label": "its number",
    }
    default_metrics = ("pearson", "spearman", "mae")

    def clean_label(self, value: Any) -> float | None:
        """A label is a finite number."""
        if isinstance(value, bool):
            raise ValueError(f"holds {value!r} where regression needs a number")
        text = as_text(value, "label", self.type)
        if text is None:
            return None
        try:
            number = float(text)
        except ValueError:
            hint = " Write decimals with a point." if "," in text else ""
            raise ValueError(f"holds '{text.strip()}' where regression needs a number.{hint}") from None
        if math.isnan(number):
            return None
        if math.isinf(number):
            raise ValueError(f"holds '{text.strip()}' where regression needs a finite number")
        return number

    def fit(self, splits: Splits) -> None:
        """Learn the mean and deviation of train's numbers."""
        super().fit(splits)
        if self.labels:
            raise ConfigError("data.labels: regression has no classes to name. Leave it out, or use classification.")
        numbers = np.asarray(splits.train["label"], dtype=np.float64)
        mean, deviation = float(numbers.mean()), float(numbers.std())
        if not deviation > 1e-9 * max(1.0, abs(mean)):
            raise DataError(
                f"all {len(numbers):,} numbers of train are {numbers[0]:g}: there is nothing to learn. "
                "Is data.columns.label the right column?"
            )
        self.learned["mean"], self.learned["deviation"] = mean, deviation
        low, high = numbers.min(), numbers.max()
        self.note(f"Numbers of train: {low:g} to {high:g}, mean {mean:.4g}, standard deviation {deviation:.4g}.")

    def targets(self, labels: Sequence[Any]) -> list[Any]:
        """Return the numbers as the model sees them."""
        mean, deviation = self._scale()
        return [(label - mean) / deviation for label in labels]

    def loss(self, logits: Any, targets: Any) -> Any:
        """Return the mean squared error, in units of train's variance: a model that always gives the mean has 1."""
        from torch.nn.functional import mse_loss

        return mse_loss(logits.squeeze(-1), targets.float())

    def need_fit(self) -> None:
        """Raise an error unless the scale is known."""
        self._scale()

    def model_kwargs(self) -> dict[str, Any]:
        """Return that one number is wanted."""
        return {"num_labels": 1, "problem_type": "regression"}

    def measure(self, seen: Predictions) -> dict[str, float]:
        """Compute the task's metrics, in the labels' own units."""
        return self.score(self._numbers(seen.outputs), self._truth(seen.encoded))

    def decode(self, seen: Predictions) -> list[dict[str, Any]]:
        """Return the number, one dict a row."""
        return [{"value": float(number)} for number in self._numbers(seen.outputs)]

    def baselines(self, evidence: Evidence) -> dict[str, dict[str, float]]:
        """Compare with train's mean, and with a ridge regression on the frozen features."""
        from sklearn.linear_model import RidgeCV

        rows = evidence.encoded(evidence.split)
        probe = fit_probe(self, evidence, RidgeCV(np.logspace(0, 5, 11)), "a ridge regression")
        return {
            "mean": self.score(self._numbers(np.zeros(len(rows))), self._truth(rows)),
            "untouched backbone": self.score(self._numbers(probe.predict(evidence.features(rows))), self._truth(rows)),
        }

    def tables(self, seen: Predictions) -> list[ReportTable]:
        """Show how far off the predictions are, for each quarter of the rows by their true number."""
        true, predicted = self._truth(seen.encoded), self._numbers(seen.outputs)
        body = []
        for quarter in np.array_split(np.argsort(true, kind="stable"), min(4, len(true))):
            errors = predicted[quarter] - true[quarter]
            low, high = true[quarter[0]], true[quarter[-1]]
            body.append(
                [f"{low:.4g} to {high:.4g}", f"{len(quarter):,}", f"{abs(errors).mean():.4g}", f"{errors.mean():+.4g}"]
            )
        said = "A quarter of the rows a line, by what is true; the mean error's sign says which way predictions lean."
        return [ReportTable("Where the errors are", ["true", "rows", "mean absolute error", "mean error"], body, said)]

    def _numbers(self, outputs: Any) -> Any:
        mean, deviation = self._scale()
        return finite(outputs).reshape(-1) * deviation + mean

    def _truth(self, encoded: Any) -> Any:
        return self._numbers(np.asarray(encoded["labels"]))

    def _scale(self) -> tuple[float, float]:
        if "mean" not in self.learned or "deviation" not in self.learned:
            raise AdapterLabError("the scale of the numbers isn't known yet: call task.fit(splits)")
        return self.learned["mean"], self.learned["deviation"]
