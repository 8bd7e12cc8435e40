"""How well teachers rerank the untuned student's top 20, on a split of a corpus, without training anything.

    python experiments/scifact_teacher/headroom.py data=beir data.path=SCIFACT evaluation.split=train \\
        evaluation.headroom_queries=200 -- "teacher=wikivital_minilm" "teacher=custom teacher.path=... "

Overrides for all, then after -- one argument a teacher.
"""

import shlex
import sys
from pathlib import Path

import numpy as np
from hydra import compose, initialize_config_dir

from dense_retrieval import pipeline
from dense_retrieval.config import CONF, Config
from dense_retrieval.evaluation import evaluate
from dense_retrieval.evaluation.rank import asked, headroom_rows
from dense_retrieval.store import Store


def main() -> None:
    cut = sys.argv.index("--")
    shared, teachers = sys.argv[1:cut], sys.argv[cut + 1 :]
    for words in teachers:
        with initialize_config_dir(CONF, version_base=None):
            show(compose("config", overrides=[*shared, *shlex.split(words)]), words)


def show(config: Config, teacher: str) -> None:
    store, part = Store(Path(config.cache_dir)), pipeline.prepare(config)
    store.build(part.corpus)
    corpus = store.load(part.corpus)
    tested = pipeline.tested_on(part, pipeline.label(part), list(corpus.queries))
    _, qrels = asked(corpus, tested.of, None)
    judged = headroom_rows(qrels, config.evaluation.headroom_queries)
    rankings = {
        "BM25": pipeline.bm25(part, tested),
        "untuned student": pipeline.by_student(part, tested, part.student),
        teacher: pipeline.by_teacher(part, tested, judged),
    }
    store.build(*rankings.values())
    for name, ranking in rankings.items():
        values = evaluate.per_query(store.load(ranking), qrels, judged)["nDCG@10"]
        print(f"{np.nanmean(values):.4f}  {int((~np.isnan(values)).sum())} queries  {name}", flush=True)


if __name__ == "__main__":
    main()
