"""Each loss against a loop written straight from its formula, in float64."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dense_retrieval.groups.batch import Batch, collate
from dense_retrieval.losses import blockwise
from dense_retrieval.losses.infonce import InfoNCE
from dense_retrieval.losses.listwise import Listwise
from dense_retrieval.losses.loss import Loss, active
from dense_retrieval.losses.margin_mse import MarginMSE
from dense_retrieval.losses.ranknet import RankNet
from dense_retrieval.losses.similarities import Similarities
from dense_retrieval.records import Groups, InputError


def random_groups(seed: int, n: int = 6, k: int = 5, n_passages: int = 12, ragged: bool = True) -> Groups:
    """Groups that share passages, some lists shorter, teacher's best first."""
    rng = np.random.default_rng(seed)
    passages = np.stack([rng.choice(n_passages, k, replace=False) for _ in range(n)])
    teacher = -np.sort(-rng.random((n, k)).astype(np.float32), axis=1)
    if ragged:
        for row in range(n):
            length = rng.integers(1, k + 1)
            passages[row, length:], teacher[row, length:] = -1, -np.inf
    return Groups(np.arange(n), passages, teacher, passages[:, 0].copy(), np.zeros(n, dtype=bool))


def naive_listwise(cosines, teacher, student_temperature, teacher_temperature) -> float:
    total = 0.0
    for s_row, t_row in zip(cosines, teacher, strict=True):
        there = [k for k, t in enumerate(t_row) if t != -math.inf]
        p = [math.exp(t_row[k] / teacher_temperature) for k in there]
        q = [math.exp(s_row[k] / student_temperature) for k in there]
        p, q = [x / sum(p) for x in p], [x / sum(q) for x in q]
        total += sum(a * (math.log(a) - math.log(b)) for a, b in zip(p, q, strict=True) if a > 0)
    return total / len(cosines)


def naive_infonce(cosine, groups: Groups, temperature: float, ratio: float) -> float:
    """``cosine(query, passage id)``; every candidate of every group is looked at one by one."""
    total = 0.0
    for i, own in enumerate(groups.passages):
        positive, top = own[0], groups.teacher[i, 0]
        masked = {p for p, t in zip(own, groups.teacher[i], strict=True) if p >= 0 and t > ratio * top} | {
            positive
        }
        denominator = math.exp(cosine(i, positive) / temperature)
        for other in groups.passages:
            for passage in other:
                if passage >= 0 and passage not in masked:
                    denominator += math.exp(cosine(i, passage) / temperature)
        total -= cosine(i, positive) / temperature - math.log(denominator)
    return total / len(groups.passages)


def naive_margin_mse(cosines, teacher, scale: float) -> float:
    errors = [
        (scale * (s[0] - s[k]) - (t[0] - t[k])) ** 2
        for s, t in zip(cosines, teacher, strict=True)
        for k in range(1, len(t))
        if t[k] != -math.inf
    ]
    return sum(errors) / max(1, len(errors))


def naive_ranknet(cosines, teacher, temperature: float) -> float:
    losses = [
        math.log1p(math.exp(-(s[i] - s[j]) / temperature))
        for s, t in zip(cosines, teacher, strict=True)
        for i in range(len(t))
        for j in range(len(t))
        if t[i] > t[j] > -math.inf
    ]
    return sum(losses) / max(1, len(losses))


def of_batch(batch: Batch, queries: torch.Tensor, passages: torch.Tensor) -> Similarities:
    rest = (batch.slots, batch.teacher, batch.positives, batch.multiplicity, batch.masked)
    return Similarities(queries, passages, *rest)


def of_cosines(cosines: torch.Tensor, teacher: torch.Tensor) -> Similarities:
    """With these ``(B, K)`` cosines of the candidates, all of them different passages."""
    n = cosines.numel()
    slots = torch.arange(n).reshape(cosines.shape)
    own = torch.stack([slots[:, 0], slots[:, 0]], 1)
    own[:, 0] = torch.arange(len(own))
    embedded = torch.block_diag(*cosines), torch.eye(n, dtype=cosines.dtype)
    return Similarities(*embedded, slots, teacher, slots[:, 0], torch.ones(n), own)


@given(seed=st.integers(0, 10_000), ragged=st.booleans(), ratio=st.sampled_from([0.0, 0.6, 0.95]))
@settings(max_examples=60, deadline=None)
def test_losses_equal_naive_loops(seed, ragged, ratio):
    groups = random_groups(seed, ragged=ragged)
    groups.teacher[:, 1:3] = groups.teacher[:, 1:2]  # a tie; or padding
    groups.teacher[groups.passages < 0] = -np.inf
    batch = collate(groups, np.arange(6), ratio)
    rng = np.random.default_rng(seed)
    embeddings = torch.from_numpy(rng.normal(size=(6 + 12, 4)))
    queries, by_id = torch.nn.functional.normalize(embeddings, dim=1).split([6, 12])
    of = of_batch(batch, queries, by_id[batch.passages])
    of_lists = of.candidates.tolist(), groups.teacher.tolist()

    def cosine(query: int, passage: int) -> float:
        return float(queries[query] @ by_id[passage])

    expected = {
        "listwise": naive_listwise(*of_lists, 0.05, 0.3),
        "infonce": naive_infonce(cosine, groups, 0.05, ratio),
        "margin_mse": naive_margin_mse(*of_lists, 2.0),
        "ranknet": naive_ranknet(*of_lists, 0.1),
    }
    terms = {
        "listwise": Listwise(1.0, 0.05, 0.3),
        "infonce": InfoNCE(0.1, 0.05),
        "margin_mse": MarginMSE(0.5, 2.0),
        "ranknet": RankNet(2.0, 0.1),
    }
    values = {name: value.item() for name, value in Loss(terms)(of).items()}
    total = sum(terms[name].weight * value for name, value in expected.items())
    assert values == pytest.approx(expected | {"loss": total}, rel=1e-6, abs=1e-9)


def test_a_passage_that_occurs_twice_counts_twice():
    """By hand: two groups share the negative 7; each has its own positive."""
    teacher = np.array([[1.0, 0.1], [1.0, 0.1]], dtype=np.float32)
    groups = Groups(np.arange(2), np.array([[1, 7], [2, 7]]), teacher, np.array([1, 2]), np.zeros(2, bool))
    batch = collate(groups, np.arange(2), 0.6)
    assert batch.passages.tolist() == [1, 2, 7] and batch.multiplicity.tolist() == [1, 1, 2]
    s = torch.tensor([[0.9, 0.1, 0.5], [0.2, 0.8, 0.4]], dtype=torch.float64)
    first = -math.log(math.exp(0.9) / (math.exp(0.9) + math.exp(0.1) + 2 * math.exp(0.5)))
    second = -math.log(math.exp(0.8) / (math.exp(0.8) + math.exp(0.2) + 2 * math.exp(0.4)))
    value = InfoNCE(1, 1.0)(of_batch(batch, s, torch.eye(3, dtype=torch.float64)))
    assert value.item() == pytest.approx((first + second) / 2)


def test_a_likely_false_negative_is_masked_wherever_it_occurs():
    """Passage 7 scores 0.7 of 1.0 for group 0, which ignores both of its copies; group 1 does not."""
    teacher = np.array([[1.0, 0.7], [1.0, 0.1]], dtype=np.float32)
    groups = Groups(np.arange(2), np.array([[1, 7], [2, 7]]), teacher, np.array([1, 2]), np.zeros(2, bool))
    batch = collate(groups, np.arange(2), 0.6)
    assert sorted(map(tuple, batch.masked.tolist())) == [(0, 0), (0, 2), (1, 1)]


def test_a_positive_of_score_zero_is_still_masked():
    teacher = np.zeros((1, 2), dtype=np.float32)
    groups = Groups(np.arange(1), np.array([[3, 4]]), teacher, np.array([3]), np.zeros(1, bool))
    assert collate(groups, np.arange(1), 0.6).masked.tolist() == [[0, 0]]


def test_listwise_is_zero_where_the_distributions_agree():
    teacher = torch.tensor([[1.0, 0.5, -torch.inf]])
    of = of_cosines((teacher / 3).nan_to_num(neginf=0.9), teacher)
    assert Listwise(1, 0.1, 0.3)(of).item() == pytest.approx(0.0, abs=1e-7)


def test_margin_mse_and_ranknet_by_hand():
    """Margins 0.4 and 0.1 of the cosines, 1 and 0.5 of the teacher; the second query has no pair."""
    teacher = torch.tensor([[1.0, 0.0, 0.5], [0.7, -torch.inf, -torch.inf]])
    of = of_cosines(torch.tensor([[0.8, 0.4, 0.7], [0.2, 0.9, 0.9]]), teacher)
    assert MarginMSE(1, 2.0)(of).item() == pytest.approx(((0.8 - 1) ** 2 + (0.2 - 0.5) ** 2) / 2)
    expected = sum(math.log(1 + math.exp(-d / 0.1)) for d in (0.4, 0.1, 0.3)) / 3
    assert RankNet(1, 0.1)(of).item() == pytest.approx(expected)
    tied = of_cosines(torch.tensor([[0.1, 0.9]]), torch.tensor([[0.5, 0.5]]))
    assert RankNet(1, 0.1)(tied).item() == 0


OF_LISTS = [Listwise(1, 0.1, 0.3), MarginMSE(1, 2.0), RankNet(1, 0.1)]


@pytest.mark.parametrize("term", OF_LISTS, ids=lambda term: type(term).__name__)
def test_gradients_are_finite_and_right_at_padding(term):
    teacher = torch.tensor([[1.0, 0.5, 0.5, -torch.inf], [0.2, *[-torch.inf] * 3]])
    cosines = torch.rand(2, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda s: term(of_cosines(s, teacher)), cosines)
    term(of_cosines(cosines, teacher)).backward()
    assert torch.isfinite(cosines.grad).all() and cosines.grad[0, :3].any()
    assert cosines.grad[0, 3] == 0 and (cosines.grad[1] == 0).all()


def test_infonce_gradients_with_masks_and_repeated_passages():
    batch = collate(random_groups(3), np.arange(6), 0.6)
    assert batch.multiplicity.max() > 1 and len(batch.masked) > 6
    similarities = torch.rand(6, len(batch.passages), dtype=torch.float64, requires_grad=True)
    passages = torch.eye(len(batch.passages), dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda s: InfoNCE(1, 0.1)(of_batch(batch, s, passages)), similarities)


def infonce_at_once(of: Similarities, temperature: float) -> torch.Tensor:
    """The same, with all logits."""
    logits = of.in_batch / temperature
    negatives = logits + of.multiplicity.to(logits.dtype).log()
    negatives = negatives.index_put((of.masked[:, 0], of.masked[:, 1]), logits.new_tensor(-torch.inf))
    positive = logits.gather(1, of.positives[:, None])
    return torch.nn.functional.cross_entropy(
        torch.cat([positive, negatives], 1), torch.zeros_like(of.positives)
    )


@pytest.mark.parametrize("block", [1, 40, 60, 10_000])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-5)])
def test_infonce_by_blocks_is_infonce_at_once(monkeypatch, block, dtype, tolerance):
    """13 queries, so that the last block is a shorter one; queries without masked pairs, and one of them only."""
    monkeypatch.setattr(blockwise, "_BLOCK", block)
    batch = collate(random_groups(5, n=13, k=6, n_passages=20), np.arange(13), 0.6)
    batch = replace(batch, masked=batch.masked[batch.masked[:, 0] != 4])
    everything = torch.cartesian_prod(torch.tensor([2]), torch.arange(len(batch.passages)))
    batch = replace(batch, masked=torch.cat([batch.masked, everything]))  # no negative is left
    torch.manual_seed(0)
    found = []
    for loss in (InfoNCE(1.0, 0.02), lambda of: infonce_at_once(of, 0.02)):
        torch.manual_seed(0)
        queries = torch.nn.functional.normalize(torch.randn(13, 7, dtype=dtype), dim=1).requires_grad_()
        passages = torch.nn.functional.normalize(torch.randn(len(batch.passages), 7, dtype=dtype), dim=1)
        value = loss(of_batch(batch, queries, passages.requires_grad_()))
        (3 * value).backward()
        found.append((value.detach(), queries.grad, passages.grad))
        with torch.no_grad():
            torch.testing.assert_close(loss(of_batch(batch, queries, passages)), value.detach())
    for ours, expected in zip(*found, strict=True):
        torch.testing.assert_close(ours, expected, rtol=tolerance, atol=tolerance)


def test_infonce_gradients_of_queries_and_passages(monkeypatch):
    monkeypatch.setattr(blockwise, "_BLOCK", 30)
    batch = collate(random_groups(3), np.arange(6), 0.6)
    torch.manual_seed(0)
    queries = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    passages = torch.randn(len(batch.passages), 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda q, p: InfoNCE(1, 0.5)(of_batch(batch, q, p)), (queries, passages))


def test_extreme_similarities_stay_finite():
    of = of_cosines(torch.tensor([[-1.0, 1.0]]), torch.tensor([[1.0, 0.0]]))
    for term in (Listwise(1, 1e-3, 1e-3), MarginMSE(1, 1e3), RankNet(1, 1e-3)):
        assert torch.isfinite(term(of))
    assert InfoNCE(1, 0.001)(of).item() == pytest.approx(2000.0)
    assert RankNet(1, 0.001)(of).item() == pytest.approx(2000.0)


def test_half_precision_embeddings_are_compared_in_float32():
    of = of_cosines(torch.tensor([[0.5, 0.25]], dtype=torch.bfloat16), torch.tensor([[1.0, 0.0]]))
    assert of.candidates.dtype == of.in_batch.dtype == torch.float32


def test_a_term_of_weight_zero_is_not_computed():
    of = of_cosines(torch.tensor([[0.5, 0.25]]), torch.tensor([[1.0, 0.0]]))
    assert set(Loss({"listwise": Listwise(1, 0.1, 0.1), "infonce": InfoNCE(0)})(of)) == {"listwise", "loss"}
    assert "candidates" in vars(of) and "in_batch" not in vars(of)
    first = of.candidates
    assert set(Loss({"listwise": Listwise(0), "infonce": InfoNCE(1)})(of)) == {"infonce", "loss"}
    assert of.candidates is first  # computed once
    assert active({"a": {"weight": 0.0}, "b": {"weight": 2, "c": 1}, "d": None}) == {
        "b": {"weight": 2, "c": 1}
    }


def test_auto_is_the_temperature_of_the_whole_loss():
    terms = {
        "listwise": Listwise(1, teacher_temperature=0.2),
        "infonce": InfoNCE(1),
        "margin_mse": MarginMSE(1),
        "ranknet": RankNet(1),
        "given": RankNet(1, 0.5),
    }
    found = Loss(terms).found(0.05, 0.3)
    assert found.terms == {
        "listwise": Listwise(1, 0.05, 0.2),
        "infonce": InfoNCE(1, 0.01),
        "margin_mse": MarginMSE(1, 0.3 / 0.05),
        "ranknet": RankNet(1, 0.05),
        "given": RankNet(1, 0.5),
    }
    assert (found.student_temperature, found.teacher_temperature) == (0.05, 0.3)
    assert found.described()["terms"]["ranknet"] == {"weight": 1, "temperature": 0.05}


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: Loss({"listwise": Listwise(0), "infonce": InfoNCE(0)}), r"above 0 \(loss.terms.listwise"),
        (lambda: Loss({"listwise": Listwise(-1), "infonce": InfoNCE(1)}), "loss.terms.listwise.weight=-1 is"),
        (lambda: Loss({"listwise": Listwise(math.nan)}), "loss.terms.listwise.weight=nan is"),
        (lambda: Loss({"mine": {"weight": 1}}), "loss.terms.mine: a term has a _target_"),
        (lambda: Loss({"infonce": InfoNCE(1)}, "automatic"), "loss.student_temperature='automatic'"),
        (lambda: Listwise(1, math.inf), "loss.student_temperature=inf"),
        (lambda: Listwise(1, 0), "loss.student_temperature=0 .* or auto"),
        (lambda: Listwise(1, "auto", "automatic"), "loss.teacher_temperature='automatic' .* or auto"),
        (lambda: InfoNCE(1, "auto"), "loss.infonce_temperature='auto' is not a positive number$"),
        (lambda: MarginMSE(1, -2.0), "loss.terms.margin_mse.scale=-2.0"),
        (lambda: RankNet(1, 0), "loss.terms.ranknet.temperature=0"),
    ],
)
def test_bad_settings_are_named(make, named):
    with pytest.raises(InputError, match=named):
        make()
