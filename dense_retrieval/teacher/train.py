"""python -m dense_retrieval.teacher.train: a small cross-encoder from a bi-encoder's weights.

The packaged teacher ``teacher=wikivital_minilm`` was made by this command: LoRA on
all-MiniLM-L6-v2, trained on the human (short description, article) pairs of the Wikipedia topics
outside the corpus ``wikiscience``.
"""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas
import torch
from omegaconf import OmegaConf
from peft import LoraConfig, get_peft_model
from rich.progress import track
from torch import Tensor
from torch.nn.functional import cross_entropy

from dense_retrieval.batching import pack
from dense_retrieval.candidates.bm25 import BM25
from dense_retrieval.candidates.dense import search
from dense_retrieval.config import TeacherTraining
from dense_retrieval.errors import command
from dense_retrieval.matmul import fastest_matmul
from dense_retrieval.progress import unwatched
from dense_retrieval.records import CandidateList, InputError
from dense_retrieval.student.bi_encoder import BiEncoder
from dense_retrieval.student.encode import encode
from dense_retrieval.student.tokens import Tokens, tokenize
from dense_retrieval.teacher import pairs
from dense_retrieval.teacher.sequence_classifier import SequenceClassifier, load_classifier

log = logging.getLogger(__name__)

_NEW = ["classifier"]  # the head, which the bi-encoder does not have


def evenly(kind: np.ndarray, n: int, seed: int) -> np.ndarray:
    """``(n,)`` rows in random order, the same number of each kind as long as it has any.

    Args:
        kind: ``(Q,)``; n is Q at most.
    """
    order = np.random.default_rng(seed).permutation(len(kind))
    turn = pandas.Series(order).groupby(kind[order]).cumcount()
    return order[np.sort(np.argsort(turn, kind="stable")[:n])]


def hard_negatives(
    positive: np.ndarray,
    relevant: Sequence[np.ndarray],
    lists: Sequence[CandidateList],
    topic: np.ndarray,
    each: int,
    seed: int,
) -> np.ndarray:
    """For each query its positive, ``each`` passages of every candidate list, one of the same topic;
    more of those where a list is too short.

    Args:
        positive: ``(Q,)`` passage rows.
        relevant: Q arrays of passage rows that are no negatives, the positive among them.
        lists: candidate lists ``(Q, K)`` to draw negatives from.
        topic: ``(N,)`` topic number of each passage.

    Returns:
        ``(Q, 2 + each * len(lists))`` passage rows, the positive first, no passage twice in a row.

    Raises:
        InputError: a topic has fewer passages than that.
    """
    rng = np.random.default_rng(seed)
    of_topic = {t: np.flatnonzero(topic == t) for t in np.unique(topic)}
    groups = []
    for query, row in enumerate(positive):
        chosen = [row]
        for candidates in lists:
            pool = np.setdiff1d(candidates.passages[query], [*chosen, *relevant[query], -1])
            chosen += list(rng.choice(pool, min(each, len(pool)), replace=False))
        pool = np.setdiff1d(of_topic[topic[row]], [*chosen, *relevant[query]])
        n = 2 + each * len(lists) - len(chosen)
        if len(pool) < n:
            there = len(of_topic[topic[row]])
            raise InputError(f"negatives_each={each}: too many where a topic has {there} passages")
        groups.append(chosen + list(rng.choice(pool, n, replace=False)))
    return np.array(groups)


def fit(
    teacher: SequenceClassifier,
    queries: Sequence[str],
    passages: Sequence[str],
    groups: np.ndarray,
    *,
    learning_rate: float,
    batch_size: int,
    max_tokens: int,
    seed: int,
) -> list[float]:
    """One epoch of softmax cross-entropy over each query's passages, the first one being right.

    Args:
        queries: Q texts.
        groups: ``(Q, K)`` rows of ``passages``.
        max_tokens: padded tokens of one forward pass.

    Returns:
        The loss of every step.
    """
    parameters = [p for p in teacher.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.01)
    order = np.random.default_rng(seed).permutation(len(groups))
    batches = np.array_split(order, np.arange(batch_size, len(order), batch_size))
    warm_up = 0.2 if len(batches) == 10 else 0.1  # OneCycleLR cannot do one step of warm-up
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, learning_rate, total_steps=len(batches), pct_start=warm_up, anneal_strategy="linear"
    )
    losses = []
    for batch in track(batches, "training the teacher", disable=unwatched()):
        rows = groups[batch].ravel()
        pair_queries = [queries[int(q)] for q in np.repeat(batch, groups.shape[1])]
        logits = _logits(teacher, pair_queries, [passages[int(p)] for p in rows], max_tokens)
        right = torch.zeros(len(batch), dtype=torch.long, device=logits.device)
        loss = cross_entropy(logits.view(len(batch), -1), right)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if len(losses) % 20 == 0:
            log.info("step %d of %d: loss %.3f", len(losses), len(batches), np.mean(losses[-20:]))
    return losses


def _logits(teacher: SequenceClassifier, queries: list[str], passages: list[str], max_tokens: int) -> Tensor:
    encodings = teacher.tokenize(queries, passages)
    packs = pack(np.array([len(e["input_ids"]) for e in encodings]), max_tokens)
    with fastest_matmul():
        logits = torch.cat([teacher(teacher.pad([encodings[i] for i in rows])) for rows in packs])
    return logits[torch.from_numpy(np.argsort(np.concatenate(packs)))]


def dense_candidates(
    base: str, passages: Sequence[str], queries: Sequence[str], k: int, output: Path, device: str
) -> CandidateList:
    """The top k of the bi-encoder that the teacher starts from; what it writes into ``output`` goes again."""
    student = BiEncoder.load(base, pooling="mean", passage_length=128)
    embeddings = []
    for name, texts in {"passages": passages, "queries": queries}.items():
        # A folder of its own: what another run left there would be taken for finished shards.
        with TemporaryDirectory(dir=output) as folder:
            tokenize(texts, student.tokenizer, 128, "", Path(folder))
            tokens = Tokens.load(Path(folder))
            encode(student, tokens, Path(folder), device=device, label=f"encoding {name}")
            embeddings.append(np.load(Path(folder, "embeddings.npy")))
    return search(embeddings[1], embeddings[0], k)


def reranking_ndcg(
    teacher: SequenceClassifier,
    queries: Sequence[str],
    passages: Sequence[str],
    candidates: CandidateList,
    positive: np.ndarray,
) -> tuple[float, float]:
    """nDCG@10 of candidate lists with one relevant passage each, before and after reranking."""
    n, k = candidates.passages.shape
    pairs = [queries[int(q)] for q in np.repeat(np.arange(n), k)]
    scores = teacher.score(pairs, [passages[int(p)] for p in candidates.passages.ravel()]).reshape(n, k)
    reranked = CandidateList(candidates.passages, scores).ranked()
    return tuple(_ndcg(c.passages == positive[:, None]) for c in (candidates, reranked))  # type: ignore[return-value]


def _ndcg(hit: np.ndarray) -> float:
    top = hit[:, :10]
    return float((top / np.log2(np.arange(top.shape[1]) + 2)).sum(1).mean())


@command("train_teacher", TeacherTraining)
def main(config: TeacherTraining) -> None:
    torch.manual_seed(config.seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    output = Path(config.output)
    found = pairs.read(config.corpus, list(config.pairs), config.file)
    n_dev = min(200, len(found.queries) // 10)
    n_train = min(config.queries, len(found.queries) - n_dev)
    chosen = evenly(found.kind, n_train + n_dev, config.seed)
    queries, positive = [found.queries[int(row)] for row in chosen], found.positive[chosen]
    lists = [
        BM25(found.passages).search(queries, config.depth),
        dense_candidates(config.base, found.passages, queries, config.depth, output, device),
    ]
    relevant = [found.relevant[int(row)] for row in chosen]
    groups = hard_negatives(positive, relevant, lists, found.topic, config.negatives_each, config.seed)
    # A title finds its passage by reading it there: such a query's passages are read without.
    hidden = (found.kind[chosen] == "title") * len(found.passages)
    groups += hidden[:, None]
    texts = [*found.passages, *found.untitled]

    classifier, tokenizer = load_classifier(
        config.base, f"base={config.base}", new=tuple(f"{name}." for name in _NEW), num_labels=1
    )
    teacher = SequenceClassifier(classifier, tokenizer, config.max_length, config.base)
    lora = LoraConfig(
        r=config.rank,
        lora_alpha=2 * config.rank,
        target_modules=["query", "key", "value", "dense"],
        modules_to_save=_NEW,
    )
    teacher.classifier = get_peft_model(teacher.classifier, lora)  # type: ignore[assignment]
    losses = fit(
        teacher.to(device),
        queries[:n_train],
        texts,
        groups[:n_train],
        learning_rate=config.learning_rate,
        batch_size=config.batch_size,
        max_tokens=config.max_tokens,
        seed=config.seed,
    )
    teacher.classifier.half().save_pretrained(str(output))  # half: a file of half the size
    teacher.classifier.float()
    dev = slice(n_train, None)
    dev_lists = CandidateList(lists[1].passages[dev] + hidden[dev, None], lists[1].scores[dev])
    before, after = reranking_ndcg(teacher, queries[dev], texts, dev_lists, positive[dev] + hidden[dev])
    report = {"dev_ndcg@10_bi_encoder": before, "dev_ndcg@10_reranked": after, "loss": losses}
    report["settings"] = OmegaConf.to_container(config, resolve=False)
    (output / "training.json").write_text(json.dumps(report, indent=1))
    log.info("nDCG@10 on %d dev pairs: bi-encoder %.3f, reranked %.3f", len(queries[dev]), before, after)


if __name__ == "__main__":
    main()
