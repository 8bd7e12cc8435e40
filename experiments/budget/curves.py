"""What a budget of queries buys: the dev and the test metric of each part, whether or not it would have been the last,
with passages chosen by disagreement and at random.

    python experiments/budget/curves.py seed,seed,... OVERRIDE ...
"""

import sys
from pathlib import Path

import numpy as np
from hydra import compose, initialize_config_dir

from dense_retrieval.budget import never, prepared
from dense_retrieval.chain import ranked
from dense_retrieval.config import CONF
from dense_retrieval.corpus.read import test_split
from dense_retrieval.evaluation.evaluate import per_query
from dense_retrieval.evaluation.verdict import verdict
from dense_retrieval.store import Store


def main() -> None:
    seeds, overrides = sys.argv[1].split(","), sys.argv[2:]
    found: dict[tuple[str, int], list[np.ndarray]] = {}
    for seed in seeds:
        parts = {}
        for choice in ("disagreement", "random"):
            with initialize_config_dir(CONF, version_base=None):
                own = [f"seed={seed}", f"generator.choose={choice}"]
                parts[choice] = prepared(compose("config", overrides=[*overrides, *own]), never)
        for number in range(len(parts["random"].spent.curve)):
            for choice, part in parts.items():
                values = measured(part, number, f"seed {seed}, {choice}")
                found.setdefault((choice, number), []).append(values)
    print("mean over seeds on the test queries, and disagreement less random, with its interval")
    for number in range(len(found) // 2):
        by, at_random = (np.stack(found[choice, number]) for choice in ("disagreement", "random"))
        of = verdict(by - at_random, "")
        shown = f"{of.mean:+.4f} [{of.low:+.4f}, {of.high:+.4f}]"
        print(f"part {number}: {by.mean():.4f} {at_random.mean():.4f} {shown}", flush=True)


def measured(part, number: int, name: str) -> np.ndarray:
    """The metric of each test query, by the student of a part; 0 is the untuned one."""
    point = part.spent.curve[number]
    weights = point.arguments["ranking"].arguments["passage_embeddings"].arguments["weights"]
    tested = test_split(part.corpus, split="test")
    ranking = ranked(part, tested, weights)
    store = Store(Path(part.c.cache_dir))
    store.build(point, tested, ranking)
    of, test = store.load(point), store.load(tested)
    values = per_query(store.load(ranking), test.qrels, [of.metric])[of.metric]
    gain = (
        "" if of.gain is None else f" {of.gain:+.4f} [{of.low:+.4f}, {of.high:+.4f}]{' the last' * of.ended}"
    )
    print(
        f"{name}, {of.queries} queries of {of.passages}: dev {of.mean:.4f}{gain}, {of.dev} queries; ", end=""
    )
    print(f"test {np.nanmean(values):.4f}", flush=True)
    return values[~np.isnan(values)]


if __name__ == "__main__":
    main()
