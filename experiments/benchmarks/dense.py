"""Exact search of embeddings, against sentence-transformers' semantic_search and FAISS's own flat index.

    python experiments/benchmarks/dense.py

Random unit vectors, which are as hard as any for an exact search. Every measurement is a process of its own, on one
thread, the contestants taking turns; time is CPU seconds.
"""

import argparse
import json
import time

import faiss
import numpy as np
from against import process, report, turns

from dense_retrieval.candidates.dense import search


def measured(name: str, passages: int, queries: int, k: int) -> dict:
    rng = np.random.default_rng(0)
    sides = [rng.standard_normal((n, 384), dtype=np.float32) for n in (queries, passages)]
    q, p = (side / np.linalg.norm(side, axis=1, keepdims=True) for side in sides)
    faiss.omp_set_num_threads(1)
    start = time.process_time()
    if name == "ours":
        found = search(q, p, k).passages
    elif name == "FAISS":
        index = faiss.IndexFlatIP(384)
        index.add(p)
        found = index.search(q, k)[1]
    else:
        import torch
        from sentence_transformers.util import semantic_search

        torch.set_num_threads(1)
        start = time.process_time()
        hits = semantic_search(torch.from_numpy(q), torch.from_numpy(p), top_k=k)
        found = np.array([[hit["corpus_id"] for hit in of] for of in hits])
    seconds = time.process_time() - start
    return {"seconds": seconds, "best": found[:, :10].tolist()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--passages", type=int, default=100_000)
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--k", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(measured(given.one, given.passages, given.queries, given.k)))
        return
    size = ["--passages", str(given.passages), "--queries", str(given.queries), "--k", str(given.k)]
    names = ["ours", "semantic_search", "FAISS"]
    found = turns({name: process(__file__, *size, "--one", name) for name in names}, given.repeats)
    for peer in names[1:]:
        same = np.mean(np.equal(found["ours"][0]["best"], found[peer][0]["best"]))
        report(
            f"dense search, {given.passages}", found["ours"], found[peer], peer=peer, same_top_10=float(same)
        )


if __name__ == "__main__":
    main()
