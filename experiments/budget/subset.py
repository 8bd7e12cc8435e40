"""600 passages of wikiscience in BEIR's layout: the 200 that have written queries, and 400 that a test query finds.

python experiments/budget/subset.py FOLDER
"""

import json
import sys
from pathlib import Path

import numpy as np

from dense_retrieval.corpus.embedded import wikiscience
from dense_retrieval.queries.files import read

QUERIES = Path(__file__).parents[2] / "dense_retrieval/corpus/wikivital/queries.jsonl"


def main() -> None:
    folder = Path(sys.argv[1])
    (folder / "qrels").mkdir(parents=True)
    corpus = wikiscience()
    sources = np.unique(read(str(QUERIES), corpus.passages)["source"])
    qrels = corpus.qrels["test"]
    others = np.setdiff1d(qrels.passage, sources)
    kept = np.union1d(sources, np.random.default_rng(0).choice(others, 400, replace=False))
    judged = np.isin(qrels.passage, kept)
    tested = corpus.queries["test"]
    passages = [
        {"_id": p["id"], "title": p["title"], "text": p["text"]} for p in corpus.passages.select(kept)
    ]
    queries = [{"_id": q["id"], "text": q["text"]} for q in tested.select(qrels.query[judged])]
    ids = tested["id"], corpus.passages["id"]
    pairs = zip(qrels.query[judged].tolist(), qrels.passage[judged].tolist(), strict=True)
    lines = [f"{ids[0][query]}\t{ids[1][passage]}\t1" for query, passage in pairs]
    for name, rows in {"corpus": passages, "queries": queries}.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "qrels/test.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *lines]) + "\n")
    print(f"{len(passages)} passages, {len(queries)} test queries")


if __name__ == "__main__":
    main()
