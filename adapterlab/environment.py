"""What a run ran on: versions and hardware, for reports and `adapterlab env`."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version

LIBRARIES = ("torch", "transformers", "peft", "accelerate", "datasets", "safetensors")


def describe_environment() -> dict[str, str]:
    """Return versions of Python, adapterlab and what it stands on, and the processor or GPU."""
    import torch

    from adapterlab import __version__

    found = {"adapterlab": __version__, "python": platform.python_version()}
    for library in LIBRARIES:
        try:
            found[library] = version(library)
        except PackageNotFoundError:
            found[library] = "not installed"
    found["cpu"] = f"{cpu_name()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    return found


def cpu_name() -> str:
    """Return the processor's name as the system knows it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:  # noqa: PTH123 (a device file, not a path of ours)
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
