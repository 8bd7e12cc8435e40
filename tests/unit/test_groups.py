"""Filters, labels and splits by hand and by naive loops; temperatures by known optima."""

from dataclasses import replace

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax
from test_losses import random_groups

from dense_retrieval.groups.batch import collate, with_scores
from dense_retrieval.groups.labels import dev_side, groups, label, load_groups
from dense_retrieval.losses.temperature import student_temperature, teacher_temperature
from dense_retrieval.records import CandidateList, Groups, InputError
from dense_retrieval.stage import Built
from dense_retrieval.teacher.ensemble import unit_scale


def scored(n: int = 60, k: int = 4, seed: int = 0):
    """Lists whose source passage (row 100 + q // 2) is usually, not always, the best."""
    rng = np.random.default_rng(seed)
    passages = np.stack([rng.choice(100, k, replace=False) for _ in range(n)])
    source = 100 + np.arange(n) // 2
    position = rng.integers(0, k, n)
    passages[np.arange(n), position] = source
    scores = rng.normal(size=(n, k)).astype(np.float32)
    scores[np.arange(n), position] += 2
    types = np.where(np.arange(n) % 3 == 0, "claim", "web").tolist()
    return CandidateList(passages, scores), source, types


def test_filters_and_labels_equal_a_naive_loop():
    lists, source, types = scored()
    built = label(lists, source, types, list_size=4, min_top_percentile=60)
    for name in ("claim", "web"):
        first = [
            q
            for q in range(60)
            if types[q] == name and lists.passages[q][lists.scores[q].argmax()] == source[q]
        ]
        survivors = np.concatenate([lists.scores[q] for q in first])
        low, floor, high = np.percentile(survivors, [1, 60, 99])
        kept = [q for q in first if lists.scores[q].max() >= floor]
        assert 0 < len(kept) < len(first)
        mine = [g for g in range(len(built.groups.query)) if types[built.groups.query[g]] == name]
        assert built.groups.query[mine].tolist() == kept
        for g, q in zip(mine, kept, strict=True):
            order = np.argsort(-lists.scores[q])
            assert built.groups.passages[g].tolist() == lists.passages[q][order].tolist()
            expected = np.clip((lists.scores[q][order] - low) / (high - low), 0, 1)
            np.testing.assert_allclose(built.groups.teacher[g], expected, rtol=1e-5)
        steps = built.yields[name]
        assert (steps["teacher filter"], steps["labels"]) == (len(first), len(kept))
        assert steps["train"] + steps["dev"] == len(kept)


def test_what_is_scored_later_keeps_its_source_first_and_the_scale_of_its_type():
    lists, source, types = scored()
    later = np.arange(60) >= 40
    lists.scores[later] = -np.inf  # as the scores' stage leaves them
    built = label(lists, source, types, list_size=4, later=later)
    before = label(
        CandidateList(lists.passages[:40], lists.scores[:40]), source[:40], types[:40], list_size=4
    )
    n = len(before.groups.query)
    for name in ("query", "passages", "teacher", "source"):
        np.testing.assert_array_equal(getattr(built.groups, name)[:n], getattr(before.groups, name))
    assert built.groups.query[n:].tolist() == list(range(40, 60))
    assert np.isnan(built.groups.teacher[n:]).all() and np.isnan(built.normalised[later]).all()
    for group, query in zip(built.groups.passages[n:], range(40, 60), strict=True):
        others = [p for p in lists.passages[query] if p != source[query]]
        assert group.tolist() == [source[query], *others]
    scales = {types[q]: tuple(s) for q, s in zip(before.groups.query, before.scale, strict=True)}
    assert all(tuple(built.scale[g]) == scales[types[q]] for g, q in enumerate(built.groups.query))
    raw = CandidateList(lists.passages, lists.scores).scores[built.groups.query[:n]]
    relabelled = unit_scale(-np.sort(-raw, axis=1), built.scale[:n, :1], built.scale[:n, 1:])
    np.testing.assert_allclose(relabelled, built.groups.teacher[:n], atol=1e-6)


def test_short_and_empty_lists_are_dropped():
    lists, source, types = scored()
    lists.passages[0], lists.scores[0] = -1, -np.inf
    lists.passages[1, 3], lists.scores[1, 3] = -1, -np.inf
    built = label(lists, source, types, list_size=4, teacher_top1=False, min_top_percentile=0)
    assert built.groups.query.tolist() == list(range(2, 60))
    assert built.yields["claim"]["drawn"] - built.yields["claim"]["retriever filter"] == 1
    assert np.isneginf(built.normalised[1, 3])


@given(st.lists(st.integers(0, 9), min_size=2, max_size=40), st.floats(0, 1), st.integers(0, 99))
@settings(deadline=None)
def test_a_passage_is_on_one_side_and_none_is_empty(sources, fraction, seed):
    source = np.array(sources)
    assert not dev_side(source, 0, seed).any()
    fraction = max(fraction, 1e-9)
    if len(set(sources)) < 2:
        with pytest.raises(InputError, match="one passage"):
            dev_side(source, fraction, seed)
        return
    dev = dev_side(source, fraction, seed)
    assert not set(source[dev]) & set(source[~dev])
    assert dev.any() and not dev.all()


def test_nothing_left_names_the_filters():
    lists, source, types = scored()
    with pytest.raises(InputError, match=r"0 after teacher filter.*groups.teacher_top1=false"):
        label(lists, source + 1000, types, list_size=4)


def test_scores_that_are_not_numbers_are_counted_and_named():
    """One NaN would make NaN of its type's percentiles, and so drop the whole type."""
    lists, source, types = scored()
    lists.scores[7, 2] = lists.scores[9, 0] = np.nan
    named = rf"2 teacher scores are NaN, .* query row 7 with passage row {lists.passages[7, 2]};"
    with pytest.raises(InputError, match=named):
        label(lists, source, types, list_size=4)


@pytest.mark.filterwarnings("error")
def test_scores_that_are_nearly_all_equal():
    """The percentiles coincide: what is above them becomes 1, the rest 0."""
    passages = np.arange(800).reshape(200, 4)
    scores = np.full((200, 4), 0.25, dtype=np.float32)
    scores[5, 0] = 9.0
    built = label(CandidateList(passages, scores), passages[:, 0], ["web"] * 200, list_size=4)
    assert built.groups.teacher.sum() == built.groups.teacher[5, 0] == 1.0


def test_equal_scores_do_not_divide_by_zero():
    lists, source, types = scored()
    same = CandidateList(lists.passages, np.full_like(lists.scores, 0.25))
    built = label(same, source, types, list_size=4, teacher_top1=False)
    assert np.isfinite(built.groups.teacher).all()


def test_teacher_temperature_is_the_one_the_sources_were_drawn_with():
    rng = np.random.default_rng(0)
    scores = rng.random((20_000, 5))
    cumulative = softmax(scores / 0.2, axis=1).cumsum(1)
    source = (rng.random((20_000, 1)) > cumulative).sum(1)
    assert teacher_temperature(scores, source) == pytest.approx(0.2, rel=0.03)


def test_student_temperature_undoes_a_known_scale():
    teacher = np.random.default_rng(0).random((500, 6))
    teacher[:, 5] = -np.inf
    cosines = np.where(np.isneginf(teacher), 0.9, teacher * 0.4 + 0.3)
    # softmax(cosine / τ) = softmax(0.4 t / τ): the teacher's at 0.1 is met at τ = 0.04
    assert student_temperature(cosines, teacher, 0.1) == pytest.approx(0.04, rel=1e-3)


def test_a_teacher_that_is_always_right_gets_the_bound():
    scores = np.tile([1.0, 0.0], (10, 1))
    assert 0.001 <= teacher_temperature(scores, np.zeros(10, dtype=int)) < 0.01
    assert teacher_temperature(scores, np.ones(10, dtype=int)) == pytest.approx(10, rel=1e-3)


def test_queries_that_the_teacher_scores_later_take_no_part_in_the_student_s_temperature():
    teacher = np.random.default_rng(0).random((500, 6)).astype(np.float32)
    cosines = teacher * 0.4 + 0.3
    teacher[100:] = np.nan
    teacher[:50, 5], teacher[450:, 5] = -np.inf, -np.inf
    assert student_temperature(cosines, teacher, 0.1) == pytest.approx(0.04, rel=1e-3)
    with pytest.raises(InputError, match=r"loss.student_temperature=auto .* raise groups.scored_before"):
        student_temperature(cosines[100:], teacher[100:], 0.1)


@given(seed=st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_what_people_judged_relevant_is_masked_wherever_it_occurs(seed):
    """Queries of the corpus itself have several relevant passages, which other groups may bring."""
    rng = np.random.default_rng(seed)
    groups = random_groups(seed, n=8)
    groups = replace(groups, query=rng.permutation(20)[:8])
    pairs = np.stack([rng.integers(0, 20, 40), rng.integers(0, 12, 40)], 1)
    groups = replace(groups, relevant=np.unique(pairs, axis=0)[:: 1 if seed % 5 else 99])
    rows = rng.permutation(8)[:5]
    batch = collate(groups, rows, 0.6)
    expected = set()
    for group, row in enumerate(rows):
        own = groups.passages[row]
        likely = {own[0], *own[groups.teacher[row] > 0.6 * groups.teacher[row, 0]]}
        likely |= {passage for query, passage in groups.relevant if query == groups.query[row]}
        expected |= {(group, i) for i, p in enumerate(batch.passages.tolist()) if p in likely}
    assert set(map(tuple, batch.masked.tolist())) == expected
    # the same, scored while it is trained on
    later = replace(groups, teacher=np.where(np.isinf(groups.teacher), -np.inf, np.nan).astype(np.float32))
    later = with_scores(collate(later, rows, 0.6), groups.teacher[rows], 0.6)
    assert set(map(tuple, later.masked.tolist())) == expected


def test_relevant_pairs_are_those_of_queries_that_stay(tmp_path):
    lists, source, types = scored()
    relevant = np.array([[q, p] for q in range(60) for p in (source[q], 7)])
    groups = label(lists, source, types, list_size=4, relevant=relevant).groups
    stays = set(groups.query.tolist())
    assert 0 < len(stays) < 60
    assert groups.relevant.tolist() == [pair for pair in relevant.tolist() if pair[0] in stays]
    groups.save(tmp_path / "groups.npz")
    np.testing.assert_array_equal(Groups.load(tmp_path / "groups.npz").relevant, groups.relevant)
    # a file of an older version
    old = {name: array for name, array in np.load(tmp_path / "groups.npz").items() if name != "relevant"}
    np.savez(tmp_path / "old.npz", **old)
    assert Groups.load(tmp_path / "old.npz").relevant.shape == (0, 2)
    np.savez(tmp_path / "broken.npz", **{n: a for n, a in old.items() if n != "teacher"})
    with pytest.raises(KeyError, match="teacher"):
        Groups.load(tmp_path / "broken.npz")


def test_a_later_round_keeps_the_sides(tmp_path):
    """What was trained on before chooses no checkpoint; what is new is trained on."""
    lists, source, types = scored()
    queries = Dataset.from_dict(
        {"id": [str(q) for q in range(60)], "text": types, "querytype": types, "source": source}
    )
    steps = {}
    for name, kept in {"first": slice(0, 40), "second": slice(10, 60)}.items():
        passages = np.full_like(lists.passages, -1)
        passages[kept] = lists.passages[kept]
        found = CandidateList(passages, np.where(passages >= 0, lists.scores, -np.inf).astype(np.float32))
        steps[name] = Built(tmp_path, name, lambda _, found=found: found)
    asked = Built(tmp_path, "queries", lambda _: queries)
    chosen = {"list_size": 4, "teacher_top1": False, "min_top_percentile": 0, "dev_fraction": 0.2, "seed": 0}
    earlier = None
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        groups.function(tmp_path / name, steps[name], steps[name], asked, asked, earlier, **chosen)
        before, earlier = earlier, Built(tmp_path / name, name, load_groups)
    first, second = before.load(), earlier.load()
    dev, trained = set(first.source[first.dev]), set(first.source[~first.dev])
    assert dev and not set(second.source[~second.dev]) & dev and not set(second.source[second.dev]) & trained
    assert set(second.source[second.dev]) == dev & set(second.source)
