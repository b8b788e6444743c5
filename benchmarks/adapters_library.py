"""The `adapters` library as a contender: its own environment, made on demand, and a worker process that takes turns.

The library asks for an older transformers than ours. Its environment has that and what else it needs of its own, and
borrows everything it doesn't from the one that runs this: the very same torch, so that only the libraries differ.
"""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any, Self

import torch

VERSION = "1.3.0"


def environment(cache: Path) -> Path:
    """Return the python of an environment with the library, made in `cache` if it isn't there.

    Raises:
        RuntimeError: it can't be made; the reason is pip's.
    """
    name = f"adapters-{VERSION}-torch-{torch.__version__}-python-{sys.version_info[0]}.{sys.version_info[1]}"
    folder = cache / name
    python, whole = folder / "bin" / "python", folder / "whole"
    if whole.is_file():
        return python
    _do([sys.executable, "-m", "venv", "--clear", str(folder)])
    purelib = "import sysconfig; print(sysconfig.get_path('purelib'))"
    own = Path(_do([str(python), "-c", purelib]).strip())
    # behind the environment's own packages, which pip therefore installs only where ours don't do
    (own / "borrowed.pth").write_text(f"{sysconfig.get_path('purelib')}\n{sysconfig.get_path('platlib')}\n")
    _do([str(python), "-m", "pip", "install", "--quiet", f"adapters=={VERSION}"])
    whole.touch()
    return python


class Worker:
    """A process with one model; calling it runs a training step there and returns its seconds.

    Args:
        cache: where the environment is, or is made.
        method: "bottleneck" (Pfeiffer, reduction 12) or "prefix" (50 tokens).
        layers, batch, length: sizes of the model and the batch.

    Raises:
        RuntimeError: the environment can't be made, the process died, or its torch or threads aren't ours.
    """

    def __init__(self, cache: Path, method: str, layers: int, batch: int, length: int) -> None:
        asked = {"method": method, "layers": layers, "batch": batch, "length": length}
        asked["threads"] = torch.get_num_threads()
        script = Path(__file__).with_name("adapters_worker.py")
        self.process = subprocess.Popen(
            [str(environment(cache)), "-P", "-W", "ignore", str(script), json.dumps(asked)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.about: dict[str, Any] = self._answer()
        if (self.about["torch"], self.about["threads"]) != (torch.__version__, asked["threads"]):
            self.process.kill()
            raise RuntimeError(f"not comparable: {self.about} there, torch {torch.__version__}, {asked} here.")

    def __call__(self) -> float:
        """Run a step; return its seconds."""
        assert self.process.stdin is not None
        self.process.stdin.write("step\n")
        self.process.stdin.flush()
        return self._answer()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.process.communicate()  # it ends with its input

    def _answer(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(
                f"the worker with the adapters library ended with status {self.process.wait()}; see above."
            )
        return json.loads(line)


def _do(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"`{' '.join(command)}` failed:\n{(done.stderr or done.stdout).strip()[-2000:]}")
    return done.stdout
