"""Memory that a step frees stays for the next one, and goes back in the end."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
import resource, torch
from adapterlab.speed.allocator import freed_memory_kept

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        tensors = [torch.ones(2**20 + n) for n in range(8)]  # 32 MB, freed each time
        del tensors
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident():
    return int(open("/proc/self/statm").read().split()[1])

torch.set_num_threads(1)
plain = faults()
with freed_memory_kept() as kept:
    faults()
    inside, held = faults(), resident()
print(kept, plain, inside, held - resident())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc is Linux's")
@pytest.mark.parametrize("tuned", [False, True])
def test_pages_are_not_mapped_anew(tuned, monkeypatch):
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    monkeypatch.delenv("MALLOC_TRIM_THRESHOLD_", raising=False)
    if tuned:
        monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "131072")
    told = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    kept, plain, inside, given_back = told.stdout.split()
    if tuned:
        assert kept == "False", "who tunes malloc is left alone"
        return
    if kept == "False":
        pytest.skip("this Linux has another malloc than glibc's")
    assert int(inside) < int(plain) / 4, "pages faulted in"
    assert int(given_back) > 0
