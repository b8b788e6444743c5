"""Two processes on this machine's CPU, launched as a user would."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def launch_two(folder: Path, *program: str, how: tuple[str, ...] = ("--multi_gpu",)) -> str:
    """`accelerate launch` a program in a folder, on two processes; return what it wrote to stderr.

    Args:
        program: as accelerate takes it: a script or `-m` and a module, and its arguments.
        how: what makes it DDP (without a GPU too) or FSDP.
    """
    command = [
        sys.executable, "-m", "accelerate.commands.launch", *how, "--num_processes", "2", "--num_machines", "1",
        "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0", *program,
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stderr
