"""The verb env: what this machine and installation are, for bug reports and for choosing a precision."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from importlib import metadata
from typing import Any

from adapterlab.cli.console import busy, examples, out

_SWITCHES = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE", "HF_HOME", "HF_ENDPOINT")
_BROKEN = "torch fails"


@examples("adapterlab env")
def env() -> None:
    """Print versions, processor, accelerator and what `precision: auto` means here."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False, show_header=False)
    with busy("looking around"):
        found = _found()
        found["system"] = f"{platform.system()} {platform.machine()}"
        rows = [*found.items(), *_settings()]
        if _BROKEN not in found:
            found.pop("gpu", None)  # every one is listed, with its memory
            rows = [*found.items(), *_hardware(), *_settings(), *_broken_plugins()]
        for name, value in rows:
            table.add_row(f"[cyan]{name}[/cyan]", escape(value))
    out().print(table, highlight=False)


def _found() -> dict[str, str]:
    """Describe what is installed, also where torch is broken: that is just what one runs `env` for."""
    from adapterlab import __version__
    from adapterlab.environment import LIBRARIES, cpu_name, describe_environment

    try:
        return describe_environment()
    except Exception as error:
        installed = {package.name: package.version for package in metadata.distributions()}
        versions = {"adapterlab": __version__, "python": platform.python_version()}
        versions |= {name: installed.get(name, "not installed") for name in LIBRARIES}
        return {**versions, "cpu": cpu_name(), _BROKEN: f"{type(error).__name__}: {error}"}


def _hardware() -> Iterator[tuple[str, str]]:
    import torch

    from adapterlab.speed.precision import choose, storage

    yield "cpu can", ", ".join(_abilities(torch))
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            memory = torch.cuda.get_device_properties(index).total_memory / 2**30
            yield f"gpu {index}", f"{torch.cuda.get_device_name(index)}, {memory:.0f} GiB"
    elif torch.backends.mps.is_available():
        yield "gpu", "Apple (mps)"
    else:
        yield "gpu", "none that torch can use"
    precision, reason = choose("auto")
    yield "precision: auto", f"{precision} ({reason}); {storage(precision)}"


def _abilities(torch: Any) -> list[str]:
    """Name the instructions that decide how fast bf16 and int8 are."""
    found = [torch.backends.cpu.get_cpu_capability()]
    flags: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # newer than the oldest torch we take
    named = {
        "avx512_bf16": "AVX512-BF16",
        "amx_bf16": "AMX-BF16",
        "amx_int8": "AMX-INT8",
        "avx512_vnni": "VNNI",
    }
    return found + [name for flag, name in named.items() if flags.get(flag)]


def _settings() -> Iterator[tuple[str, str]]:
    from adapterlab.recipe import catalog

    for switch in _SWITCHES:
        if switch in os.environ:
            yield switch, os.environ[switch]
    if not any(os.environ.get(switch) for switch in _SWITCHES[:3]):
        yield "offline", "no; HF_HUB_OFFLINE=1 keeps everything off the network"
    yield "recipes", str(catalog.folder())


def _broken_plugins() -> Iterator[tuple[str, str]]:
    from adapterlab.adapters import METHODS
    from adapterlab.tasks import METRICS, TASKS

    for registry in (METHODS, TASKS, METRICS):
        registry.names()  # loads the plugins
        for plugin, why in registry.failures.items():
            yield f"broken {registry.kind} plugin", f"{plugin}: {why}"
