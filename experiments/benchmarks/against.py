"""How the benchmarks measure: processes that take turns, and one line of JSON a measure."""

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import Any

Result = dict[str, Any]  # "seconds" and "tokens" as a contestant counts them, "mb" its peak memory


def process(*arguments: str, threads: int = 1, **environment: str) -> Callable[[], Result]:
    """A contestant that runs Python in a process of its own.

    Its last line may be JSON with "seconds"; else they are the CPU seconds of the whole process.
    """

    def run() -> Result:
        limits = {"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"} | environment
        done = subprocess.Popen(
            [sys.executable, *arguments], stdout=subprocess.PIPE, text=True, env=os.environ | limits
        )
        assert done.stdout
        lines = done.stdout.read().splitlines()
        _, status, used = os.wait4(done.pid, 0)
        if status:
            raise SystemExit(f"{' '.join(arguments)} failed")
        whole = {"seconds": used.ru_utime + used.ru_stime, "mb": used.ru_maxrss // 1024}
        return whole | (json.loads(lines[-1]) if lines and lines[-1].startswith("{") else {})

    return run


def turns(contestants: Mapping[str, Callable[[], Result]], repeats: int) -> dict[str, list[Result]]:
    """Each contestant's results; they take turns, so that a busy minute is nobody's alone."""
    found: dict[str, list[Result]] = {name: [] for name in contestants}
    for number in range(repeats):
        for name, run in contestants.items():
            found[name].append(run())
            print(
                f"{number + 1}/{repeats} {name}: {found[name][-1]['seconds']:.3g} s",
                file=sys.stderr,
                flush=True,
            )
    return found


def report(measure: str, ours: list[Result], theirs: list[Result], *, peer: str, **more: Any) -> None:
    """Print one line: seconds of both (medians), how many times faster we are (median, least, most), and memory."""
    ratios = [t["seconds"] / o["seconds"] for o, t in zip(ours, theirs, strict=True)]
    line = {
        "measure": measure,
        "peer": peer,
        "seconds": round(statistics.median(o["seconds"] for o in ours), 3),
        "peer_seconds": round(statistics.median(t["seconds"] for t in theirs), 3),
        "ratio": round(statistics.median(ratios), 2),
        "ratio_least": round(min(ratios), 2),
        "ratio_most": round(max(ratios), 2),
        "repeats": len(ratios),
    }
    for key in ("mb", "tokens"):
        if key in ours[0] and key in theirs[0]:
            line |= {key: max(o[key] for o in ours), f"peer_{key}": max(t[key] for t in theirs)}
    print(
        json.dumps(
            line | {name: float(f"{v:.3g}") if isinstance(v, float) else v for name, v in more.items()}
        )
    )
    sys.stdout.flush()
