"""How long `terakoya --help` takes, beside Python itself and beside importing torch: medians of interleaved runs.

python bench/startup.py [runs]
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "terakoya --help": ["-m", "terakoya", "--help"],
    "terakoya train --help": ["-m", "terakoya", "train", "--help"],
    "terakoya lineage": ["-m", "terakoya", "lineage", "--lang", "en"],
    "import torch": ["-c", "import torch"],
}
AIM = 0.4  # seconds, for --help


def seconds(arguments: list[str]) -> float:
    """Time one start of Python."""
    tick = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - tick


def main(runs: int) -> None:
    """Interleave the commands, so that a busy moment slows all of them."""
    for arguments in COMMANDS.values():
        seconds(arguments)  # warm the caches of the file system
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(runs):
        for name, arguments in COMMANDS.items():
            times[name].append(seconds(arguments))
    for name, all_ in times.items():
        print(f"{name:24} {statistics.median(all_):6.3f} s median  {min(all_):6.3f} s best of {runs}")
    found = statistics.median(times["terakoya --help"])
    print(f"--help in {found:.3f} s; the aim is below {AIM} s: {'reached' if found < AIM else 'missed'}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
