"""May this checkpoint be gone on from? Compared before anything is written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import nn

from adapterlab.adapter_folder import EXTRA
from adapterlab.errors import RunFolderError
from adapterlab.guests import need_guests

_COMPARED = ("method", "options", "heads", "labels", "backbone", "max_length", "adapters")


def check_resumable(checkpoint: Path, model: nn.Module, planned_steps: int) -> None:
    """Refuse a checkpoint of another adapter, backbone or label set, or of a run that is over.

    Raises:
        RunFolderError: with every difference.
    """
    theirs = _read(checkpoint / EXTRA)
    guest = need_guests(model).adapters["default"]
    ours = {
        "method": guest.method_name,
        "options": guest.config.model_dump(mode="json"),
        "heads": sorted(guest.heads),
        "labels": {str(index): label for index, label in guest.labels.items()},
        **guest.about,
    }
    differences = [
        f"{key}: {_tell(theirs.get(key), ours.get(key))}" for key in _COMPARED if theirs.get(key) != ours.get(key)
    ]
    if differences:
        raise RunFolderError(
            f"'{checkpoint}' is of another run than the recipe now describes: {'; '.join(differences)}. "
            "Resume with the recipe in the run folder, or start anew: --replace, or another run.dir."
        )
    done = int(_read(checkpoint / "trainer_state.json").get("global_step", 0))
    if done >= planned_steps and (checkpoint.parent.parent / "adapter").is_dir():
        raise RunFolderError(
            f"'{checkpoint}' is the last of {planned_steps} steps: the run is complete. To train longer raise "
            "optim.epochs or optim.max_steps; to train anew give --replace or another run.dir."
        )


def _tell(theirs: Any, ours: Any) -> str:
    if isinstance(theirs, dict) and isinstance(ours, dict):
        keys = sorted(key for key in {*theirs, *ours} if theirs.get(key) != ours.get(key))
        return ", ".join(f"{key} was {theirs.get(key)!r}, is {ours.get(key)!r}" for key in keys)
    return f"was {theirs!r}, is {ours!r}"


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunFolderError(f"{path} can't be read ({error}), so nothing can be resumed from there.") from None
    return content if isinstance(content, dict) else {}
