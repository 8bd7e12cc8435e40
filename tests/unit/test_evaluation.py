"""Metrics by hand and against pytrec_eval; the table."""

import io
import math

import ir_measures
import numpy as np
import pytest
import pytrec_eval
from rich.console import Console
from scipy import stats

from dense_retrieval.evaluation import table
from dense_retrieval.evaluation.evaluate import METRICS, per_query, write_run
from dense_retrieval.records import CandidateList, Qrels


def ranking(rows: list[list[int]], k: int, scores: float | None = None) -> CandidateList:
    passages = np.array([row + [-1] * (k - len(row)) for row in rows])
    values = np.broadcast_to(-np.arange(k) if scores is None else scores, passages.shape)
    return CandidateList(passages, np.where(passages < 0, -np.inf, values).astype(np.float32))


def qrels(judged: dict[int, dict[int, int]]) -> Qrels:
    triples = [(q, p, r) for q, of_query in judged.items() for p, r in of_query.items()]
    return Qrels(*np.array(triples, dtype=np.int64).reshape(-1, 3).T)


def random_case(seed: int) -> tuple[CandidateList, Qrels, dict]:
    rng = np.random.default_rng(seed)
    rows = [rng.permutation(200)[: rng.integers(0, 121)].tolist() for _ in range(30)]
    judged = {
        q: {int(p): int(rng.integers(0, 3)) for p in rng.permutation(200)[:40]} for q in range(0, 30, 2)
    }
    return ranking(rows, 120), qrels(judged), judged


def test_metrics_by_hand():
    values = per_query(ranking([[4, 9, 3], [0, 1, 2], []], 3), qrels({0: {3: 2, 4: 1}, 2: {1: 1}}))
    ideal = 2 + 1 / math.log2(3)
    by_hand = {"nDCG@10": (1 + 2 / 2) / ideal, "R@100": 1.0, "MRR@10": 1.0, "MAP@100": (1 + 2 / 3) / 2}
    for name, expected in by_hand.items():
        np.testing.assert_allclose(values[name], [expected, np.nan, 0.0])


def test_reciprocal_rank_is_cut_at_ten_and_recall_at_a_hundred():
    values = per_query(ranking([[*range(150)]] * 2, 150), qrels({0: {10: 1, 99: 1}, 1: {9: 1, 100: 1}}))
    np.testing.assert_allclose(values["MRR@10"], [0, 1 / 10])
    np.testing.assert_allclose(values["R@100"], [1, 1 / 2])
    np.testing.assert_allclose(values["MAP@100"], [(1 / 11 + 2 / 100) / 2, 1 / 10 / 2])


@pytest.mark.parametrize("seed", range(3))
def test_equal_pytrec_eval_used_directly(seed):
    run, judgements, judged = random_case(seed)
    names = {"ndcg_cut_10": "nDCG@10", "recall_100": "R@100", "map_cut_100": "MAP@100"}
    gold = {str(q): {str(p): r for p, r in of_query.items()} for q, of_query in judged.items()}
    ranks = {str(q): {str(p): -float(i) for i, p in enumerate(run.passages[q]) if p >= 0} for q in judged}
    expected = pytrec_eval.RelevanceEvaluator(gold, set(names)).evaluate(ranks)
    values = per_query(run, judgements)
    for theirs, ours in names.items():
        assert np.flatnonzero(~np.isnan(values[ours])).tolist() == sorted(judged)
        for q in judged:
            np.testing.assert_allclose(values[ours][q], expected.get(str(q), {theirs: 0.0})[theirs])


def test_a_query_with_judgements_but_nothing_relevant_counts_as_zero_as_in_trec_eval():
    values = per_query(ranking([[0], [0]], 1), qrels({0: {0: 0}, 1: {0: 1}}))
    np.testing.assert_array_equal(values["nDCG@10"], [0, 1])


def test_only_the_queries_asked_for():
    run, judgements, _ = random_case(0)
    everything, some = per_query(run, judgements), per_query(run, judgements, np.array([4, 5, 6]))
    for name in METRICS:
        assert np.flatnonzero(~np.isnan(some[name])).tolist() == [4, 6]
        np.testing.assert_array_equal(some[name][[4, 6]], everything[name][[4, 6]])


def test_tied_scores_are_measured_in_our_order():
    values = per_query(ranking([[1, 2], [2, 1]], 2, scores=0.5), qrels({0: {1: 1}, 1: {1: 1}}))
    np.testing.assert_allclose(values["MRR@10"], [1, 1 / 2])


@pytest.mark.parametrize("scores", [None, 0.5, 1e-7, -np.inf])
def test_run_file_gives_the_same_metrics(tmp_path, scores):
    """Also where scores tie, or there are none: trec_eval would order these by passage id."""
    run, judgements, judged = random_case(1)
    run = CandidateList(run.passages, run.scores if scores is None else np.full_like(run.scores, scores))
    write_run(
        tmp_path / "run.txt", run, [f"q{i}" for i in range(30)], [f"d{i}" for i in range(200)], "student"
    )
    first = (tmp_path / "run.txt").read_text().splitlines()[0].split()
    query = next(q for q in range(30) if run.passages[q, 0] >= 0)
    assert first[:4] == [f"q{query}", "Q0", f"d{run.passages[query, 0]}", "1"] and first[5] == "student"
    gold = {f"q{q}": {f"d{p}": r for p, r in of_query.items()} for q, of_query in judged.items()}
    stored = list(ir_measures.read_trec_run(str(tmp_path / "run.txt")))
    assert np.isfinite([line.score for line in stored]).all()
    assert len(stored) == (run.passages >= 0).sum()
    means = ir_measures.calc_aggregate(METRICS.values(), gold, stored)
    for name, values in per_query(run, judgements).items():
        np.testing.assert_allclose(means[METRICS[name]], np.nanmean(values))


def test_differences_are_those_on_the_common_queries():
    rng = np.random.default_rng(0)
    system, baseline = rng.random(50), rng.random(50)
    system[3] = baseline[7] = np.nan
    both = np.delete(np.arange(50), [3, 7])
    _, row = table.rows({"baseline": {"nDCG@10": baseline}, "system": {"nDCG@10": system}}, "baseline")
    found = row.differences["nDCG@10"]
    assert found.n == 48 and row.n == 49
    np.testing.assert_allclose(found.mean, (system - baseline)[both].mean())
    np.testing.assert_allclose(found.p_value, stats.ttest_rel(system[both], baseline[both]).pvalue)


def systems() -> dict[str, dict[str, np.ndarray]]:
    """The teacher is measured on the first 20 of 60 queries, where it loses 0.1 of the student's."""
    student = {name: np.linspace(0.2, 0.8, 60) for name in METRICS}
    noise = np.tile([-0.01, 0.01], 30)
    teacher = {name: np.where(np.arange(60) < 20, v - 0.1 + noise, np.nan) for name, v in student.items()}
    tuned = {name: v + 0.05 + noise for name, v in student.items()}
    names = ["untuned student", "teacher reranking the untuned student's top 20", "tuned student"]
    return dict(zip(names, [student, teacher, tuned], strict=True))


def test_table_values():
    untuned, teacher, tuned = table.rows(systems(), "untuned student")
    assert (untuned.n, teacher.n, tuned.n) == (60, 20, 60)
    assert table.cell(untuned, "nDCG@10") == "0.500"
    assert table.cell(tuned, "MRR@10") == "0.550  +0.050 (p<0.001)"
    own = np.linspace(0.2, 0.8, 60)[:20].mean()  # the student's on the teacher's 20 queries
    assert table.cell(teacher, "R@100") == f"{own - 0.1:.3f}  -0.100 (p<0.001)"


def test_table_is_markdown_and_fits_the_terminal():
    made = table.rows(systems(), "untuned student")
    lines = table.markdown(made).splitlines()
    assert len(lines) == 5 and {line.count("|") for line in lines} == {6}
    assert lines[4] == "| tuned student | 60 |" + " 0.550  +0.050 (p<0.001) |" * 3
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(table.terminal(made, "wikiscience"))
    shown = console.export_text()
    assert max(map(len, shown.splitlines())) <= 100
    assert "…" not in shown and all(part in shown for part in ("+0.050", "-0.100", "p<0.001", "20"))


def test_headroom_warning():
    _, teacher, tuned = table.rows(systems(), "untuned student")
    warning = table.headroom_warning(teacher)
    assert "0.197" in warning and "0.297" in warning and "20 queries" in warning and "\n" not in warning
    assert table.headroom_warning(tuned) is None
    equal = table.rows({"a": systems()["tuned student"], "b": systems()["tuned student"]}, "a")[1]
    assert table.headroom_warning(equal) is not None
