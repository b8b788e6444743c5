"""Where metrics go beside metrics.jsonl: TensorBoard, Weights & Biases, MLflow."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from adapterlab.errors import ConfigError

_NEEDS = {"tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow"}  # logger: module


def check_loggers(names: list[str]) -> None:
    """Refuse loggers whose library isn't installed, before anything is loaded.

    Raises:
        ConfigError: with the command that installs it.
    """
    missing = [name for name in names if name in _NEEDS and importlib.util.find_spec(_NEEDS[name]) is None]
    if missing:
        extras = ",".join(missing)
        raise ConfigError(
            f"log.to: {', '.join(missing)} is not installed. Run: pip install 'adapterlab[{extras}]'  "
            "(or leave it out: jsonl needs nothing)."
        )


def logger_callbacks(names: list[str], folder: Path) -> list[Any]:
    """Return transformers' own callbacks for the loggers named; TensorBoard's files go into the run folder."""
    from transformers.integrations import MLflowCallback, TensorBoardCallback, WandbCallback

    made: list[Any] = []
    for name in names:
        if name == "tensorboard":
            from torch.utils.tensorboard import SummaryWriter

            made.append(TensorBoardCallback(SummaryWriter(folder / "tensorboard")))
        elif name in _NEEDS:
            made.append({"wandb": WandbCallback, "mlflow": MLflowCallback}[name]())
    return made
