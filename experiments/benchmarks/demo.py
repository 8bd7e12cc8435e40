"""The default run from an empty cache, against another checkout's.

    git worktree add /tmp/before 253f34f
    python experiments/benchmarks/demo.py --against /tmp/before

Each run has a cache of its own, on one thread; time is the CPU seconds of the whole process.
"""

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path

from against import Result, process, report, turns

HERE = str(Path(__file__).parents[2])


def run(checkout: str, overrides: list[str]) -> Callable[[], Result]:
    def once() -> Result:
        with tempfile.TemporaryDirectory() as folder:
            own = ["logger=none", f"cache_dir={folder}/cache", f"hydra.run.dir={folder}/run", *overrides]
            result = process("-m", "dense_retrieval.run", *own, PYTHONPATH=checkout)()
            facts = json.loads(Path(folder, "run/metrics.json").read_text())
            return result | {"table": {name: of["means"] for name, of in facts["systems"].items()}}

    return once


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--against", required=True, help="another checkout of this repository")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("overrides", nargs="*", help="of the run")
    given = parser.parse_args()
    contestants = {"ours": run(HERE, given.overrides), "before": run(given.against, given.overrides)}
    found = turns(contestants, given.repeats)
    ours, theirs = (found[name][0]["table"] for name in ("ours", "before"))
    apart = max(abs(ours[s][m] - theirs[s][m]) for s in ours for m in ours[s] if m in theirs[s])
    main = next(iter(ours["tuned student"]))
    report(
        "default run from an empty cache",
        found["ours"],
        found["before"],
        peer=given.against,
        main=ours["tuned student"][main],
        peer_main=theirs["tuned student"][main],
        greatest_difference=apart,
    )


if __name__ == "__main__":
    main()
