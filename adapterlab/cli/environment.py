"""The verb env: what this machine and installation are, for bug reports and for choosing a precision."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from typing import Any

from adapterlab.cli.console import busy, examples, out

_SWITCHES = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE", "HF_HOME", "HF_ENDPOINT")


@examples("adapterlab env")
def env() -> None:
    """Print versions, processor, accelerator and what `precision: auto` means here."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False, show_header=False)
    with busy("looking around"):
        for name, value in (*_software(), *_hardware(), *_settings()):
            table.add_row(f"[cyan]{name}[/cyan]", escape(value))
    out().print(table, highlight=False)


def _software() -> Iterator[tuple[str, str]]:
    from importlib import metadata

    from adapterlab import __version__
    from adapterlab.environment import LIBRARIES

    yield "adapterlab", __version__
    yield "python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    for package in LIBRARIES:
        try:
            yield package, metadata.version(package)
        except metadata.PackageNotFoundError:
            yield package, f"not installed; pip install {package}"


def _hardware() -> Iterator[tuple[str, str]]:
    from adapterlab.environment import cpu_name

    try:
        import torch
    except Exception as error:  # a broken torch is just what one runs `env` for
        yield "cpu", f"{cpu_name()}, {os.cpu_count()} cores"
        yield "torch fails", f"{type(error).__name__}: {error}"
        return
    threads = f"{cpu_name()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"
    yield "cpu", f"{threads}; {', '.join(_abilities(torch))}"
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            memory = torch.cuda.get_device_properties(index).total_memory / 2**30
            yield f"gpu {index}", f"{torch.cuda.get_device_name(index)}, {memory:.0f} GiB"
    elif torch.backends.mps.is_available():
        yield "gpu", "Apple (mps)"
    else:
        yield "gpu", "none that torch can use"
    from adapterlab.training.precision import choose

    precision, reason = choose("auto")
    yield "precision: auto", f"{precision} ({reason})"


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
    yield from _broken_plugins()


def _broken_plugins() -> Iterator[tuple[str, str]]:
    from adapterlab.adapters import METHODS
    from adapterlab.tasks import METRICS, TASKS

    for registry in (METHODS, TASKS, METRICS):
        registry.names()  # loads the plugins
        for plugin, why in registry.failures.items():
            yield f"broken {registry.kind} plugin", f"{plugin}: {why}"
