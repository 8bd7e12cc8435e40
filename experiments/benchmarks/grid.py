"""A grid of 12 runs that share their stages, against 12 runs that share nothing.

    python experiments/benchmarks/grid.py querytype.total=130 student.passage_length=64

On one thread; time is the CPU seconds of all processes.
"""

import argparse
import json
import tempfile
from collections.abc import Callable
from itertools import product
from pathlib import Path

from against import Result, process, report, turns

LOSSES, TYPES = ["infonce", "listwise", "combined"], ["claim", "keyword", "question", "mixed"]


def main_metric(folder: Path) -> float:
    facts = json.loads((folder / "metrics.json").read_text())
    return next(iter(facts["systems"]["tuned student"]["means"].values()))


def together(overrides: list[str]) -> Result:
    with tempfile.TemporaryDirectory() as folder:
        own = ["logger=none", f"cache_dir={folder}/cache", f"hydra.sweep.dir={folder}/runs", *overrides]
        grid = [f"loss={','.join(LOSSES)}", f"querytype={','.join(TYPES)}"]
        result = process("-m", "dense_retrieval.run", "-m", *grid, *own)()
        return result | {"table": sorted(main_metric(f.parent) for f in Path(folder).rglob("metrics.json"))}


def apart(overrides: list[str]) -> Result:
    results, table = [], []
    for loss, querytype in product(LOSSES, TYPES):
        with tempfile.TemporaryDirectory() as folder:
            own = ["logger=none", f"cache_dir={folder}/cache", f"hydra.run.dir={folder}/run", *overrides]
            choice = f"loss={loss}", f"querytype={querytype}"
            results.append(process("-m", "dense_retrieval.run", *choice, *own)())
            table.append(main_metric(Path(folder, "run")))
    seconds, mb = sum(r["seconds"] for r in results), max(r["mb"] for r in results)
    return {"seconds": seconds, "mb": mb, "table": sorted(table)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("overrides", nargs="*", help="of each run")
    given = parser.parse_args()
    ways: dict[str, Callable[[], Result]] = {
        "ours": lambda: together(given.overrides),
        "apart": lambda: apart(given.overrides),
    }
    found = turns(ways, given.repeats)
    same = found["ours"][0]["table"] == found["apart"][0]["table"]
    report("grid of 12 runs", found["ours"], found["apart"], peer="12 runs of their own", same_metrics=same)


if __name__ == "__main__":
    main()
