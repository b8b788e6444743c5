"""A task that is no part of adapterlab: classes that have an order, such as one to five stars."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field

from adapterlab.tasks import Classification, MetricSpec, Predictions, number_metric, register_metric, register_task


def _steps(true: Any, predicted: Any) -> float:
    return float(abs(true - predicted).mean())


ABOUT = "mean distance between the predicted class and the true one, in classes"
register_metric(
    MetricSpec("steps", ABOUT, number_metric("steps", ABOUT, _steps, (0, 0)), ("ordinal",), False, is_share=False)
)


class OrdinalOptions(Classification.Options):
    """The task's own keys in a recipe, each with its type, default, bounds and a line of help."""

    distance: float = Field(1.0, ge=0, description="how much the distance counts in the loss, beside the cross-entropy")


@register_task("ordinal")
class Ordinal(Classification):
    """Classification whose loss knows the order of the classes: a far miss costs more than a near one.

    `loss = CE + distance * sum over k of (CDF_p(k) - CDF_y(k))^2`: beside the cross-entropy the squared earth mover's
    distance (Hou et al. 2016, arXiv:1611.05916), what it takes to carry the predicted mass to the true class. The order
    is that of `data.labels`; numbers sort by themselves.
    """

    summary = "one of several classes that have an order (stars, grades)"
    default_metrics: ClassVar[tuple[str, ...]] = ("steps", "accuracy")
    Options = OrdinalOptions

    def loss(self, logits: Any, targets: Any) -> Any:
        """Return both, of each row times its class's weight."""
        from torch.nn.functional import one_hot

        short = logits.float().softmax(-1).cumsum(-1) - one_hot(targets, len(self.labels)).cumsum(-1)
        return super().loss(logits, targets) + self.options.distance * self.weighted(short.square().sum(-1), targets)

    def decode(self, seen: Predictions) -> list[dict[str, Any]]:
        """Add the expected place in the order, 0 for the first class."""
        answers = super().decode(seen)
        return [a | {"place": sum(k * p for k, p in enumerate(a["probabilities"].values()))} for a in answers]
