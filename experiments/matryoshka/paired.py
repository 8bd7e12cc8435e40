"""Two runs' tuned students, by what their vectors are worth: nDCG@10 by dimension and kind, and a paired test.

    python experiments/matryoshka/paired.py runs/WITHOUT runs/WITH

Both runs have the same test queries, ``evaluation.dimensions`` and ``evaluation.vectors``, and their cache is here.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from hydra import compose, initialize_config_dir
from scipy.stats import ttest_rel

from dense_retrieval.chain import describe
from dense_retrieval.config import CONF
from dense_retrieval.evaluation.evaluate import per_query
from dense_retrieval.evaluation.table import TUNED
from dense_retrieval.evaluation.vectors import Vectors
from dense_retrieval.store import Store
from dense_retrieval.views import whole_dimension

METRIC = "nDCG@10"


def of_run(run: Path) -> tuple[int, dict[Vectors, np.ndarray]]:
    """Components of a whole embedding, and of each kind of vectors the metric of each judged query."""
    with initialize_config_dir(CONF, version_base=None):
        overrides = yaml.safe_load((run / ".hydra" / "overrides.yaml").read_text())
        config: Any = compose("config", overrides=overrides)
    chain, store = describe(config, lambda *_: None), Store(Path(config.cache_dir))
    rankings = chain.smaller[""][TUNED]
    store.build(chain.tests[""], *rankings.values())  # all of it is there
    qrels = store.load(chain.tests[""]).qrels
    values = {
        vectors: per_query(store.load(ranking), qrels, [METRIC])[METRIC]
        for vectors, ranking in rankings.items()
    }
    return whole_dimension(config), {vectors: of[~np.isnan(of)] for vectors, of in values.items()}


def main() -> None:
    (full, without), (_, nested) = of_run(Path(sys.argv[1])), of_run(Path(sys.argv[2]))
    print("| vectors | bytes a passage | without | with | difference |\n| --- | ---: | ---: | ---: | --- |")
    for vectors, values in without.items():
        ours = nested[vectors]
        p = ttest_rel(ours, values).pvalue
        said = "p<0.001" if p < 0.001 else f"p={p:.3f}"
        print(
            f"| {vectors.named(full)} | {vectors.size(full):,} | {values.mean():.3f} | {ours.mean():.3f} | "
            f"{(ours - values).mean():+.3f} ({said}) |"
        )


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main()
