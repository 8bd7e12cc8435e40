"""How long a comparison of many runs takes, and how much memory.

    python experiments/benchmarks/compare.py --runs 1000 --queries 10000 --seeds 4

makes the folders of runs, four systems each, and compares them as python -m dense_retrieval.compare does.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas
import yaml

from dense_retrieval.evaluation.table import TUNED, UNTUNED

METRICS = ["nDCG@10", "R@100", "RR@10", "AP@100"]


def write(folder: Path, runs: int, queries: int, seeds: int) -> None:
    rng = np.random.default_rng(0)
    names = [f"q{i}" for i in range(queries)]
    base = rng.random(queries)
    shared = {
        "BM25": rng.random(queries),
        UNTUNED: base,
        "teacher (reranks top 20)": np.where(np.arange(queries) < 100, base, np.nan),
    }
    for number in range(runs):
        line, seed = divmod(number, seeds)
        run = folder / f"{number}"
        (run / ".hydra").mkdir(parents=True)
        settings = {"seed": seed, "trainer": {"learning_rate": 1e-5 * line}, "logger": {"enabled": False}}
        (run / "config.yaml").write_text(yaml.safe_dump(settings))
        facts = {"systems": {}, "corpus": "made up", "split": "test", "choices": {"loss": "listwise"}}
        (run / "metrics.json").write_text(json.dumps(facts))
        systems = shared | {TUNED: np.clip(base + rng.normal(line / runs / 10, 0.2, queries), 0, 1)}
        parts = [
            pandas.DataFrame({"system": system, "query": names} | dict.fromkeys(METRICS, values)).dropna()
            for system, values in systems.items()
        ]
        pandas.concat(parts).to_parquet(run / "per_query.parquet", index=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--queries", type=int, default=10_000)
    parser.add_argument("--seeds", type=int, default=4, help="runs that differ in their seed only")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), given.runs, given.queries, given.seeds)
        start = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "dense_retrieval.compare", folder], check=True, capture_output=True
        )
        seconds = time.perf_counter() - start
        size = (Path(folder) / "comparison" / "comparison.html").stat().st_size
    memory = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    print(
        f"{given.runs} runs, {given.runs // given.seeds} lines, {given.queries} queries: {seconds:.0f} s, "
        f"{memory / 2**20:.1f} GB, a page of {size / 2**20:.1f} MB"
    )


if __name__ == "__main__":
    main()
