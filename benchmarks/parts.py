"""Parts beside their peers: `make bench` prints one table of time, memory and quality.

Every measurement is a process of its own, `python benchmarks/parts.py CASE SIDE`, with the same
input and both cores: the best of three repeats after one that warms up, and how far the process
grew beyond what the input and the imports take. What both sides return is compared by the parent.
The peers live in an environment of their own (`benchmarks/peers.txt`), with paperworks in it.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from cases import compress, incontext, representation, wide
from cases.case import Case

CASES = wide.CASES | compress.CASES | representation.CASES | incontext.CASES


def memory() -> float:
    """The most this process has held since the last call, in MB (Linux)."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    Path("/proc/self/clear_refs").write_text("5")  # the peak is now what is held now
    return int(found[1]) / 1024 if found else float("nan")


def measure(case: Case, side: str, out: Path) -> dict[str, float]:
    run = case.sides[side]()
    memory()
    before, times, result = memory(), [], None
    for _ in range(case.repeats + (case.repeats > 1)):
        result = None  # the last one's memory is free before the next
        start = time.perf_counter()
        result = np.asarray(run())
        times.append(time.perf_counter() - start)
    grown = memory() - before
    np.save(out, result)
    return {"seconds": min(times[1:] or times), "megabytes": grown}


def compare(name: str) -> tuple[str, ...]:
    case, figures, results = CASES[name], [], []
    with tempfile.TemporaryDirectory() as folder:
        for side in ("ours", "peer"):
            out = Path(folder) / f"{side}.npy"
            words = [sys.executable, __file__, name, side, str(out)]
            done = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True)
            figures.append(json.loads(done.stdout.splitlines()[-1]))
            results.append(np.load(out))
    (ours, peer), quality = figures, case.quality(*results)
    return (
        case.what,
        case.peer,
        f"{ours['seconds']:.2f} s | {peer['seconds']:.2f} s",
        f"{peer['seconds'] / ours['seconds']:.2f} x",
        f"{ours['megabytes']:.0f} | {peer['megabytes']:.0f} MB",
        quality,
    )


def main() -> None:
    if len(sys.argv) == 4:
        name, side, out = sys.argv[1:]
        print(json.dumps(measure(CASES[name], side, Path(out))))
        return
    print("| part | peer | time, ours and peer's | faster | memory | quality |\n|-|-|-|-|-|-|")
    for name in sys.argv[1:] or CASES:
        row = " | ".join(cell.replace("|", "/") for cell in compare(name))
        print(f"| {row} |", flush=True)


if __name__ == "__main__":
    main()
