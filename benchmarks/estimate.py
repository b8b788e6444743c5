"""How near `adapterlab estimate` comes: its time and memory against what the same runs then take.

    python -m benchmarks.estimate [--rounds 1]

Three runs of different kinds on the quickstart's model and data; each is estimated in a process of its own and then run
in another, as a user would.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile

RUNS = {
    "quickstart, LoRA": [],
    "prefix, batches of 32, evaluated often": ["adapter.method=prefix", "optim.batch_size=32", "eval.every=25"],
    "AdaLoRA, fp32, two epochs of 1,500": [
        "adapter.method=adalora", "optim.precision=fp32", "data.max_samples=1500", "optim.epochs=2",
    ],
}  # fmt: skip
ESTIMATE = """
import json, sys
from adapterlab.estimating import estimate
found = estimate("quickstart", *sys.argv[1:])
print(json.dumps({"seconds": found.training_seconds, "memory": found.peak_memory}))
"""
RUN = """
import json, sys
import adapterlab
result = adapterlab.run("quickstart", *sys.argv[1:])
print(json.dumps({"seconds": result.seconds, "memory": result.peak_memory}))
"""


def measured(code: str, changes: list[str]) -> dict:
    """Return what a fresh process prints in its last line."""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code, *changes], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=1)
    rounds = parser.parse_args().rounds
    print("| run | estimated | took | ratio | memory, estimated | took |\n|---|--:|--:|--:|--:|--:|")
    for name, changes in RUNS.items():
        estimates, runs = [], []
        for _ in range(rounds):
            estimates.append(measured(ESTIMATE, changes))
            with tempfile.TemporaryDirectory() as folder:
                runs.append(measured(RUN, [*changes, f"run.dir={folder}/run"]))
        middle = {
            what: [statistics.median(found[what] for found in side) for side in (estimates, runs)]
            for what in ("seconds", "memory")
        }
        (before, after), (guess, peak) = middle["seconds"], middle["memory"]
        print(
            f"| {name} | {before:.0f} s | {after:.0f} s | {before / after:.2f} | {guess / 1e9:.2f} GB "
            f"| {peak / 1e9:.2f} GB |",
            flush=True,
        )


if __name__ == "__main__":
    main()
