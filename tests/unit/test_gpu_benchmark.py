"""benchmarks/gpu.py, tried on a CPU: its checks pass, what fails or has no time is named, and the rest is measured."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_it_runs_without_a_gpu(tmp_path):
    options = (
        "--device",
        "cpu",
        "--tiny",
        "--rounds",
        "1",
        "--steps",
        "1",
        "--budget",
        "10",
        "--json",
        str(tmp_path / "gpu.json"),
    )
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", *options], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert found["wrong"] == {}
    assert len(found["checks"]) == 6
    assert "floor" in found["ms"] or "floor" in found["left_out"]
    assert all("graph" in name for name in found["failed"]), "CUDA's graphs need a GPU"
    assert f"no time for: {', '.join(found['left_out'])}" in done.stdout or not found["left_out"]
    for name in found["ms"]:
        assert f"| {name} |" in done.stdout


def test_it_ends_with_an_error_when_a_check_fails(tmp_path, monkeypatch):
    from benchmarks import gpu

    def looked_at(bench):
        raise RuntimeError("another number")

    monkeypatch.setattr(gpu.gpu_checks, "CHECKS", [looked_at])
    monkeypatch.setattr(gpu, "measure", lambda *_: {"ms": {}, "left_out": [], "failed": {}})
    monkeypatch.setattr(gpu, "table", lambda found: "")
    monkeypatch.setattr("sys.argv", ["gpu", "--device", "cpu", "--tiny", "--json", str(tmp_path / "gpu.json")])
    with pytest.raises(SystemExit, match="went wrong: looked_at"):
        gpu.main()
    assert "another number" in json.loads((tmp_path / "gpu.json").read_text())["wrong"]["looked_at"]
