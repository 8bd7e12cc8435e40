"""What a command costs that computes nothing, beside the same command of another checkout.

    git worktree add /tmp/before 253f34f
    python experiments/benchmarks/startup.py --against /tmp/before --cache-dir cache

The two take turns within one run, so that a busy machine is busy for both. A JSON line a measure; the ratio
is the other checkout's over ours, the median over the repeats, from the lowest to the highest.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

OURS = Path(__file__).resolve().parents[2]
COMMANDS = {
    "--help": ["--help"],
    "--cfg job": ["--cfg", "job"],
    "plan=true": ["plan=true"],
    "cached run": [],
    "cached run, logger=none": ["logger=none"],
}


class Cost(NamedTuple):
    cpu: float  # seconds, of all processes that the command waited for
    wall: float  # seconds
    peak: float  # MB of memory, of the largest process


def run(checkout: Path, arguments: list[str], folder: Path) -> Cost:
    command = [sys.executable, "-m", "dense_retrieval.run", *arguments]
    with (folder / "log.txt").open("w") as log:
        start = time.perf_counter()
        process = subprocess.Popen(
            command, cwd=folder, env=os.environ | {"PYTHONPATH": str(checkout)}, stdout=log, stderr=log
        )
        _, status, used = os.wait4(process.pid, 0)
        wall = time.perf_counter() - start
    if status:
        sys.exit(f"error: {' '.join(command)} in {checkout}:\n{(folder / 'log.txt').read_text()[-2000:]}")
    return Cost(used.ru_utime + used.ru_stime, wall, used.ru_maxrss / 1024)


def measures(name: str, ours: list[Cost], peers: list[Cost]) -> Iterator[dict[str, str | float]]:
    for unit in ("cpu", "wall"):
        mine, other = ([getattr(cost, unit) for cost in costs] for costs in (ours, peers))
        ratios = [b / a for a, b in zip(mine, other, strict=True)]
        yield {
            "measure": f"{name}: {unit} seconds",
            "ours": round(statistics.median(mine), 3),
            "peer": round(statistics.median(other), 3),
            "ratio": round(statistics.median(ratios), 2),
            "ratio_low": round(min(ratios), 2),
            "ratio_high": round(max(ratios), 2),
            "peak_mb_ours": round(max(cost.peak for cost in ours)),
            "peak_mb_peer": round(max(cost.peak for cost in peers)),
            "repeats": len(ours),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--against", type=Path, required=True, help="another checkout")
    parser.add_argument(
        "--cache-dir", type=Path, help="default: a new one, filled first, which takes minutes"
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("overrides", nargs="*", help="of another run than the default one")
    given = parser.parse_intermixed_args()
    checkouts = [OURS, given.against.resolve()]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        cache = given.cache_dir.resolve() if given.cache_dir else folder / "cache"

        def cost(which: int, name: str) -> Cost:
            output = tempfile.mkdtemp(dir=folder)  # a run in a finished one's folder would do nothing
            where = [f"cache_dir={cache}", f"hydra.run.dir={output}"]
            return run(checkouts[which], [*COMMANDS[name], *given.overrides, *where], folder)

        for which in range(len(checkouts)):  # after this all is in the cache, and compiled
            cost(which, "cached run")
        for name in COMMANDS:
            costs: list[list[Cost]] = [[], []]
            for repeat in range(given.repeats):
                for which in (0, 1) if repeat % 2 == 0 else (1, 0):
                    costs[which].append(cost(which, name))
            for line in measures(name, *costs):
                print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
