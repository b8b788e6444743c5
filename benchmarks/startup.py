"""How long it takes until one can do anything: our import and help against importing peft, interleaved.

python -m benchmarks.startup
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "import adapterlab": ["-c", "import adapterlab"],
    "adapterlab --help": ["-m", "adapterlab", "--help"],
    "import torch": ["-c", "import torch"],
    "import peft": ["-c", "import peft"],
}
ROUNDS = 7


def main() -> None:
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for number in range(ROUNDS + 1):
        for name, arguments in COMMANDS.items():
            begun = time.perf_counter()
            subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
            if number:  # the first round warms the file cache
                times[name].append(time.perf_counter() - begun)
    medians = {name: statistics.median(taken) for name, taken in times.items()}
    bare = medians["python -c pass"]
    print(f"whole processes, median of {ROUNDS} interleaved rounds")
    for name, median in medians.items():
        print(f"{name:<18} {median:6.3f} s   {median - bare:6.3f} s over a bare python")
    print(f"import adapterlab / import peft: {medians['import adapterlab'] / medians['import peft']:.3f}")


if __name__ == "__main__":
    main()
