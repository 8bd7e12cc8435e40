"""A loss at several dimensions: against naive loops, the plain full batch, and sentence-transformers."""

import json

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer, losses
from test_gradient_cache import Texts, encoder, gradients, plain, relative_error
from test_losses import (
    naive_infonce,
    naive_listwise,
    naive_margin_mse,
    naive_ranknet,
    of_batch,
    random_groups,
)

from dense_retrieval.evaluation.card import _truncated
from dense_retrieval.evaluation.vectors import cut
from dense_retrieval.groups.batch import collate
from dense_retrieval.hub import dimension
from dense_retrieval.losses.infonce import InfoNCE
from dense_retrieval.losses.listwise import Listwise
from dense_retrieval.losses.loss import Loss, require_dimensions
from dense_retrieval.losses.margin_mse import MarginMSE
from dense_retrieval.losses.ranknet import RankNet
from dense_retrieval.records import Groups, InputError
from dense_retrieval.stage import Counted
from dense_retrieval.student.bi_encoder import BiEncoder
from dense_retrieval.student.export import export
from dense_retrieval.training.gradient_cache import backward
from dense_retrieval.training.module import DistillationModule
from dense_retrieval.training.selection import selection_loss

TERMS = {
    "listwise": Listwise(1.0, 0.05, 0.3),
    "infonce": InfoNCE(0.1, 0.05),
    "margin_mse": MarginMSE(0.5, 2.0),
    "ranknet": RankNet(2.0, 0.1),
}


def embedded(n: int, dimension: int, dtype=torch.float64) -> torch.Tensor:
    torch.manual_seed(n)
    return torch.nn.functional.normalize(torch.randn(n, dimension, dtype=dtype), dim=1)


def test_the_whole_dimension_alone_is_the_loss_itself():
    """Bit for bit, and so are its gradients."""
    batch = collate(random_groups(3), np.arange(6), 0.6)
    found = []
    for dimensions in ((), (7,)):
        queries, passages = embedded(6, 7, torch.float32), embedded(len(batch.passages), 7, torch.float32)
        of = of_batch(batch, queries.requires_grad_(), passages.requires_grad_())
        terms = Loss(TERMS, dimensions=dimensions)(of)
        terms["loss"].backward()
        found.append([*terms.values(), queries.grad, passages.grad])
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("dimensions", [(9, 4, 1), (4, 2)])
def test_each_term_is_the_sum_of_naive_loops(dimensions):
    groups = random_groups(2)
    batch = collate(groups, np.arange(6), 0.6)
    queries, by_id = embedded(6, 9), embedded(12, 9)
    expected = dict.fromkeys([*TERMS, "loss"], 0.0)
    for size in dimensions:
        short = [[row[:size] / np.linalg.norm(row[:size]) for row in of.numpy()] for of in (queries, by_id)]

        def cosine(query: int, passage: int, short=short) -> float:
            return float(short[0][query] @ short[1][passage])

        lists = (
            [[cosine(q, p) for p in own] for q, own in enumerate(groups.passages)],
            groups.teacher.tolist(),
        )
        expected["listwise"] += naive_listwise(*lists, 0.05, 0.3)
        expected["infonce"] += naive_infonce(cosine, groups, 0.05, 0.6)
        expected["margin_mse"] += naive_margin_mse(*lists, 2.0)
        expected["ranknet"] += naive_ranknet(*lists, 0.1)
    expected["loss"] = sum(term.weight * expected[name] for name, term in TERMS.items())
    found = Loss(TERMS, dimensions=dimensions)(of_batch(batch, queries, by_id[batch.passages]))
    assert {name: value.item() for name, value in found.items()} == pytest.approx(expected, rel=1e-6)


def test_gradients_of_the_loss_are_right():
    batch = collate(random_groups(3), np.arange(6), 0.6)
    loss = Loss(TERMS, dimensions=(5, 2))

    def value(queries: torch.Tensor, passages: torch.Tensor) -> torch.Tensor:
        return loss(of_batch(batch, queries, passages))["loss"]

    inputs = embedded(6, 5).requires_grad_(), embedded(len(batch.passages), 5).requires_grad_()
    assert torch.autograd.gradcheck(value, inputs)


@pytest.mark.parametrize("graph_tokens", [0, 100, 10**6])
def test_the_gradient_cache_gives_the_full_batchs_gradients(graph_tokens):
    batch = collate(random_groups(1), np.arange(6), 0.6)
    texts, loss = Texts(6 + len(batch.passages)), Loss(TERMS, dimensions=(16, 8, 3))

    def terms(embeddings: torch.Tensor) -> dict[str, torch.Tensor]:
        return DistillationModule._terms(loss, embeddings, batch)

    value, expected = plain(encoder(), texts, terms)
    model = encoder()
    found = backward(model, texts, terms, chunk_tokens=40, graph_tokens=graph_tokens)
    assert found["loss"].item() == pytest.approx(value.item(), rel=1e-5)
    assert relative_error(gradients(model), expected) < 1e-5


@pytest.mark.parametrize("theirs", ["MultipleNegativesRankingLoss", "CachedMultipleNegativesRankingLoss"])
def test_infonce_equals_sentence_transformers(encoder_folder, tmp_path, theirs):
    """Four queries, each with a positive and two negatives of its own, all of them negatives of the other queries."""
    n, k, dimensions = 4, 3, [16, 8, 4]
    teacher = np.zeros((n, k), dtype=np.float32)
    teacher[:, 0] = 1.0
    passages = np.arange(n * k).reshape(n, k)
    batch = collate(
        Groups(np.arange(n), passages, teacher, passages[:, 0], np.zeros(n, bool)), np.arange(n), 0.6
    )
    texts = Texts(n + n * k)
    student = BiEncoder.load(str(encoder_folder), pooling="mean", passage_length=32)
    export(student, tmp_path, "")
    loss = Loss({"infonce": InfoNCE(1.0, 0.05)}, dimensions=dimensions)
    value, ours = plain(student.eval(), texts, lambda e: DistillationModule._terms(loss, e, batch))

    model = SentenceTransformer(str(tmp_path), device="cpu").eval()
    inner = getattr(losses, theirs)(model, scale=1 / 0.05)
    expected = losses.MatryoshkaLoss(model, inner, dimensions)
    columns = [np.arange(n), *(n + np.flatnonzero(np.isin(batch.passages, passages[:, i])) for i in range(k))]
    their_value = expected([texts.batch(rows) for rows in columns], None)
    their_value.backward()
    assert value.item() == pytest.approx(their_value.item(), rel=1e-5)
    theirs = {name.split("model.")[-1]: p.grad for name, p in model.named_parameters() if p.grad is not None}
    named = [name for name, p in student.transformer.named_parameters() if p.grad is not None]
    assert relative_error(ours, [theirs[name] for name in named]) < 1e-4


def test_the_checkpoint_is_chosen_at_the_same_dimensions():
    found = Loss({"ranknet": RankNet(1.0)}, dimensions=(8, 4)).found(0.05, 0.3)
    assert tuple(found.dimensions) == tuple(selection_loss(found).dimensions) == (8, 4)
    assert found.described()["dimensions"] == [8, 4]
    assert "dimensions" not in Loss({"ranknet": RankNet(1.0)}).described()


@pytest.mark.parametrize("dimensions", [[385], [64, 128], [128, 128], [384, 0], [384, -1]])
def test_other_dimensions_are_refused(dimensions):
    given = ",".join(map(str, dimensions))
    with pytest.raises(
        InputError, match=rf"^student.matryoshka=\[{given}\]: give .* none above the student's 384$"
    ):
        require_dimensions("student.matryoshka", dimensions, 384)
    require_dimensions("student.matryoshka", [384, 1], 384)
    require_dimensions("student.matryoshka", [], 384)


@pytest.mark.parametrize("name", ["hidden_size", "d_model", "dim"])
def test_the_size_of_embeddings_is_known_before_a_model_is_loaded(tmp_path, name):
    (tmp_path / "config.json").write_text(json.dumps({name: 48}))
    student = Counted()
    student.path = tmp_path
    assert dimension(student) == 48


def test_an_exported_student_says_how_it_is_cut(encoder_folder, tmp_path):
    student = BiEncoder.load(str(encoder_folder), pooling="mean", passage_length=32)
    export(student, tmp_path / "usual", "")
    export(student, tmp_path / "nested", "", [16, 8])
    config, usual = (json.loads((tmp_path / of / "config.json").read_text()) for of in ("nested", "usual"))
    assert config["matryoshka_dimensions"] == [16, 8] and "matryoshka_dimensions" not in usual
    texts = ["the cell is a star", "river of light"]
    whole = SentenceTransformer(str(tmp_path / "nested"), device="cpu")
    expected = SentenceTransformer(str(tmp_path / "usual"), device="cpu").encode_document(texts)
    assert whole.truncate_dim == 16
    np.testing.assert_allclose(whole.encode_document(texts), expected, atol=1e-6)
    code = (
        _truncated([16, 8])
        .split("```python\n")[1]
        .split("```")[0]
        .replace("this folder", str(tmp_path / "nested"))
    )
    scope: dict = {"SentenceTransformer": SentenceTransformer}
    exec(code.replace('["a passage"]', repr(texts)), scope)
    np.testing.assert_allclose(scope["embeddings"], cut(expected, 8), atol=1e-6)
    assert BiEncoder.load(str(tmp_path / "nested"), pooling="mean", passage_length=32).dimension == 16
