"""How well teachers rerank the untuned student's top 20, on a split of a corpus, without training anything.

    python experiments/scifact_teacher/headroom.py data=beir data.path=SCIFACT evaluation.split=train \\
        evaluation.headroom_queries=200 -- "teacher=wikivital_minilm" "teacher=custom teacher.path=... "

Overrides for all, then after -- one argument a teacher.
"""

import shlex
import sys

import numpy as np
from hydra import compose, initialize_config_dir

from dense_retrieval.config import CONF
from dense_retrieval.evaluation import evaluate
from dense_retrieval.stages import Stages


def main() -> None:
    cut = sys.argv.index("--")
    shared, teachers = sys.argv[1:cut], sys.argv[cut + 1 :]
    for words in teachers:
        with initialize_config_dir(CONF, version_base=None):
            overrides = [*shared, *shlex.split(words)]
            show(Stages(compose("config", overrides=overrides), lambda *_: None), words)


def show(stages: Stages, teacher: str) -> None:
    _, qrels = stages.test_queries(stages.split)
    rankings = {
        "BM25": stages.bm25_ranking(stages.split),
        "untuned student": stages.student_ranking(False, stages.split),
        teacher: stages.teacher_ranking,
    }
    for name, ranking in rankings.items():
        values = evaluate.per_query(ranking, qrels, stages.teacher_queries)["nDCG@10"]
        print(f"{np.nanmean(values):.4f}  {int((~np.isnan(values)).sum())} queries  {name}", flush=True)


if __name__ == "__main__":
    if "--" not in sys.argv:
        sys.exit(__doc__)
    main()
