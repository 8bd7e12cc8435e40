"""How well teachers rerank the untuned student's top 20, on a split of a corpus, without training anything.

    python experiments/scifact_teacher/headroom.py data=beir data.path=SCIFACT evaluation.split=train \\
        evaluation.headroom_queries=200 -- "teacher=wikivital_minilm" "teacher=custom teacher.path=... "

Overrides for all, then after -- one argument a teacher.
"""

import shlex
import sys
from pathlib import Path

from hydra import compose, initialize_config_dir

from dense_retrieval.chain import baselines, reranked
from dense_retrieval.config import CONF, Config
from dense_retrieval.corpus.read import test_split
from dense_retrieval.evaluation.measure import measure
from dense_retrieval.prepare import prepare
from dense_retrieval.store import Store


def main() -> None:
    cut = sys.argv.index("--")
    shared, teachers = sys.argv[1:cut], sys.argv[cut + 1 :]
    for words in teachers:
        with initialize_config_dir(CONF, version_base=None):
            show(compose("config", overrides=[*shared, *shlex.split(words)]), words)


def show(config: Config, teacher: str) -> None:
    store, part = Store(Path(config.cache_dir)), prepare(config)
    tested = test_split(part.corpus, split=config.evaluation.split)
    steps = baselines(part, tested) | {teacher: reranked(part, tested)}
    store.build(tested, *steps.values())
    rankings = {name: store.load(step) for name, step in steps.items()}
    asked = dict.fromkeys(rankings, config.evaluation.headroom_queries)
    for row in measure(store.load(tested).qrels, rankings, config.evaluation.metrics, asked).rows:
        print(f"{row.means[row.main]:.4f}  {row.n} queries  {row.system}", flush=True)


if __name__ == "__main__":
    main()
