"""Each loss against a loop written straight from its formula, in float64."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dense_retrieval.groups.batch import collate
from dense_retrieval.losses.combined import DistillationLoss
from dense_retrieval.losses.infonce import infonce
from dense_retrieval.losses.listwise import listwise
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


@given(seed=st.integers(0, 10_000), ragged=st.booleans(), ratio=st.sampled_from([0.0, 0.6, 0.95]))
@settings(max_examples=60, deadline=None)
def test_losses_equal_naive_loops(seed, ragged, ratio):
    groups = random_groups(seed, ragged=ragged)
    batch = collate(groups, np.arange(6), ratio)
    rng = np.random.default_rng(seed)
    embeddings = torch.from_numpy(rng.normal(size=(6 + 12, 4)))
    queries, by_id = torch.nn.functional.normalize(embeddings, dim=1).split([6, 12])
    passages = by_id[batch.passages]
    similarities = queries @ passages.T
    cosines = torch.einsum("bd,bkd->bk", queries, passages[batch.slots])

    expected = naive_listwise(cosines.tolist(), groups.teacher.tolist(), 0.05, 0.3)
    assert listwise(cosines, batch.teacher, 0.05, 0.3).item() == pytest.approx(expected, rel=1e-6, abs=1e-9)

    def cosine(query: int, passage: int) -> float:
        return float(queries[query] @ by_id[passage])

    expected = naive_infonce(cosine, groups, 0.05, ratio)
    value = infonce(similarities, batch.positives, batch.multiplicity, batch.masked, 0.05)
    assert value.item() == pytest.approx(expected, rel=1e-9, abs=1e-12)

    combined = DistillationLoss(1.0, 0.1, 0.05, 0.3, 0.05, ratio)
    terms = combined(
        lambda: cosines,
        lambda: similarities,
        batch.teacher,
        batch.positives,
        batch.multiplicity,
        batch.masked,
    )
    assert terms["loss"].item() == pytest.approx((terms["listwise"] + 0.1 * terms["infonce"]).item())


def test_a_passage_that_occurs_twice_counts_twice():
    """By hand: two groups share the negative 7; each has its own positive."""
    teacher = np.array([[1.0, 0.1], [1.0, 0.1]], dtype=np.float32)
    groups = Groups(np.arange(2), np.array([[1, 7], [2, 7]]), teacher, np.array([1, 2]), np.zeros(2, bool))
    batch = collate(groups, np.arange(2), 0.6)
    assert batch.passages.tolist() == [1, 2, 7] and batch.multiplicity.tolist() == [1, 1, 2]
    s = torch.tensor([[0.9, 0.1, 0.5], [0.2, 0.8, 0.4]], dtype=torch.float64)
    first = -math.log(math.exp(0.9) / (math.exp(0.9) + math.exp(0.1) + 2 * math.exp(0.5)))
    second = -math.log(math.exp(0.8) / (math.exp(0.8) + math.exp(0.2) + 2 * math.exp(0.4)))
    value = infonce(s, batch.positives, batch.multiplicity, batch.masked, 1.0)
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
    assert listwise(teacher / 3, teacher, 0.1, 0.3).item() == pytest.approx(0.0, abs=1e-12)


def test_gradients_are_finite_and_right_at_padding():
    teacher = torch.tensor([[1.0, 0.5, -torch.inf], [0.2, -torch.inf, -torch.inf]])
    cosines = torch.rand(2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda s: listwise(s, teacher, 0.1, 0.3), cosines)
    listwise(cosines, teacher, 0.05, 0.3).backward()
    assert torch.isfinite(cosines.grad).all() and cosines.grad[0, 2] == 0 and (cosines.grad[1, 1:] == 0).all()


def test_infonce_gradients_with_masks_and_repeated_passages():
    batch = collate(random_groups(3), np.arange(6), 0.6)
    assert batch.multiplicity.max() > 1 and len(batch.masked) > 6
    rest = (batch.positives, batch.multiplicity, batch.masked, 0.1)
    similarities = torch.rand(6, len(batch.passages), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda s: infonce(s, *rest), similarities)


def test_extreme_similarities_stay_finite():
    teacher = torch.tensor([[1.0, 0.0]])
    assert torch.isfinite(listwise(torch.tensor([[-1.0, 1.0]]), teacher, 1e-3, 1e-3))
    one = torch.tensor([[-1.0, 1.0]])
    value = infonce(one, torch.tensor([0]), torch.tensor([1, 1]), torch.tensor([[0, 0]]), 0.001)
    assert value.item() == pytest.approx(2000.0)


def test_a_term_of_weight_zero_is_not_computed():
    def never():
        raise AssertionError("computed")

    teacher = torch.tensor([[1.0, 0.0]])
    no_pairs = torch.zeros((0, 2), dtype=torch.long)
    arguments = (teacher, torch.tensor([0]), torch.tensor([1, 1]), no_pairs)
    assert set(DistillationLoss(1, 0, 0.1, 0.1)(lambda: teacher, never, *arguments)) == {"listwise", "loss"}
    assert set(DistillationLoss(0, 1)(never, lambda: teacher, *arguments)) == {"infonce", "loss"}


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"listwise_weight": 0, "infonce_weight": 0}, "loss.listwise_weight"),
        ({"listwise_weight": -1, "infonce_weight": 1}, "negative"),
        ({"listwise_weight": math.nan, "infonce_weight": 1}, "loss.listwise_weight"),
        (
            {"listwise_weight": 1, "infonce_weight": 0, "student_temperature": math.inf},
            "loss.student_temperature",
        ),
        ({"listwise_weight": 1, "infonce_weight": 0, "student_temperature": 0}, "loss.student_temperature"),
        ({"listwise_weight": 1, "infonce_weight": 0, "teacher_temperature": "automatic"}, "or auto"),
        (
            {"listwise_weight": 1, "infonce_weight": 1, "infonce_temperature": "auto"},
            "loss.infonce_temperature",
        ),
    ],
)
def test_bad_settings_are_named(arguments, named):
    with pytest.raises(InputError, match=named):
        DistillationLoss(**arguments)
