"""The run folder: refuse one that holds a run, find its checkpoints, clear it when told to."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from adapterlab.errors import RunFolderError

_CHECKPOINT = re.compile(r"checkpoint-(\d+)")


@dataclass(frozen=True)
class RunFolder:
    """Paths of a run."""

    path: Path

    @property
    def adapter(self) -> Path:
        """The trained adapter, a PEFT folder."""
        return self.path / "adapter"

    @property
    def checkpoints(self) -> Path:
        """What training can be resumed from."""
        return self.path / "checkpoints"

    @property
    def recipe(self) -> Path:
        """The resolved recipe."""
        return self.path / "recipe.yaml"

    @property
    def splits(self) -> Path:
        """Which rows of which files each split has."""
        return self.path / "splits.json"

    @property
    def metrics(self) -> Path:
        """A JSON object a line: losses and metrics by step."""
        return self.path / "metrics.jsonl"

    @property
    def report(self) -> Path:
        """The report."""
        return self.path / "report.md"

    @property
    def picture(self) -> Path:
        """The loss curves."""
        return self.path / "loss.png"

    def parts(self) -> list[Path]:
        """Return what of a run is there."""
        every = (self.adapter, self.checkpoints, self.recipe, self.splits, self.metrics, self.report, self.picture)
        return [part for part in every if part.exists()]

    def last_checkpoint(self) -> Path | None:
        """Return the checkpoint of the highest step, if there is one."""
        found = [(int(match[1]), path) for path in self._entries() if (match := _CHECKPOINT.fullmatch(path.name))]
        return max(found)[1] if found else None

    def admit(self, resume: str, replace: bool, *, refuses: bool = True) -> Path | None:
        """Decide how to begin, before anything is touched.

        Args:
            resume: "never", "auto" (go on if there is a checkpoint) or a checkpoint's path.
            replace: whether a run that is here may be deleted.
            refuses: whether this process minds a run that is here. Of several processes only one does: the others
                may look when that one has begun to write.

        Returns:
            The checkpoint to go on from, or None to begin anew.

        Raises:
            RunFolderError: the folder holds a run and nothing was said of it, there is no such checkpoint, or it
                is another run's.
        """
        if self.path.exists() and not self.path.is_dir():
            raise RunFolderError(f"run.dir: '{self.path}' is a file; give another folder: run.dir=runs/other.")
        if resume not in ("never", "auto"):
            checkpoint = Path(resume)
            if not (checkpoint / "trainer_state.json").is_file():
                raise RunFolderError(
                    f"--resume {resume}: that is no checkpoint (no trainer_state.json in it). "
                    f"{self._known_checkpoints()}"
                )
            if refuses and self.parts() and checkpoint.resolve().parent != self.checkpoints.resolve():
                raise RunFolderError(
                    f"--resume {resume}: run folder '{self.path}' holds another run. Write elsewhere: "
                    f"run.dir={self.path}-2."
                )
            return checkpoint
        if resume == "auto" and (last := self.last_checkpoint()):
            return last
        begun_only = resume == "auto" and not self.adapter.exists()  # stopped before its first checkpoint
        if refuses and self.parts() and not replace and not begun_only:
            held = ", ".join(part.name for part in self.parts())
            go_on = "go on with it (--resume auto), " if self.last_checkpoint() else ""
            raise RunFolderError(
                f"run folder '{self.path}' holds a run already ({held}). Choose: {go_on}"
                f"delete it first (--replace), or write elsewhere (run.dir={self.path}-2)."
            )
        return None

    @contextmanager
    def begin(self) -> Iterator[None]:
        """Make room for a new run. One that fails before its first checkpoint leaves what was there before.

        Raises:
            RunFolderError: the folder can't be written.
        """
        aside = self.path / ".replaced"
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if self.parts():
                shutil.rmtree(aside, ignore_errors=True)
                aside.mkdir()
            for part in self.parts():
                part.rename(aside / part.name)
        except OSError as error:
            raise RunFolderError(f"run.dir: '{self.path}' can't be written: {error.strerror or error}.") from None
        try:
            yield
        except BaseException:
            if not self.last_checkpoint():
                self._clear()
                for part in aside.iterdir() if aside.is_dir() else ():
                    part.rename(self.path / part.name)
                if aside.is_dir():
                    aside.rmdir()
                elif not any(self.path.iterdir()):
                    self.path.rmdir()
            raise
        finally:
            shutil.rmtree(aside, ignore_errors=True)

    def _clear(self) -> None:
        for part in self.parts():
            if part.is_dir():
                shutil.rmtree(part)
            else:
                part.unlink()

    def _entries(self) -> list[Path]:
        return list(self.checkpoints.iterdir()) if self.checkpoints.is_dir() else []

    def _known_checkpoints(self) -> str:
        names = sorted(path.name for path in self._entries() if _CHECKPOINT.fullmatch(path.name))
        return f"'{self.checkpoints}' has: {', '.join(names)}." if names else f"'{self.checkpoints}' has none."
