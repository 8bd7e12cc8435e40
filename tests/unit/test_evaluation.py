"""Metrics by hand, against ir_measures and pytrec_eval; the table."""

import io
import math

import ir_measures
import numpy as np
import pytest
import pytrec_eval
import torch
from rich.console import Console
from scipy import stats

from dense_retrieval.config import Evaluation
from dense_retrieval.evaluation import table
from dense_retrieval.evaluation.evaluate import canonical, check, per_query, write_run
from dense_retrieval.records import CandidateList, InputError, Qrels

METRICS = ["nDCG@10", "R@100", "RR@10", "AP@100"]
OTHERS = ["P@5", "nDCG(dcg='exp-log2')@10", "R(rel=2)@20", "AP", "Success@1"]


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
    ideal, ideal_of_exponents = 2 + 1 / math.log2(3), 3 + 1 / math.log2(3)
    by_hand = {
        "nDCG@10": (1 + 2 / 2) / ideal,
        "R@100": 1.0,
        "RR@10": 1.0,
        "AP@100": (1 + 2 / 3) / 2,
        "P@5": 2 / 5,
        "nDCG(dcg='exp-log2')@10": (1 + 3 / 2) / ideal_of_exponents,
        "MRR@10": 1.0,  # another name
    }
    run, judged = ranking([[4, 9, 3], [0, 1, 2], []], 3), qrels({0: {3: 2, 4: 1}, 2: {1: 1}})
    assert list(Evaluation().metrics) == METRICS == list(by_hand)[:4]
    for names in (list(by_hand)[:-1], ["P@5", "MRR@10"]):
        values = per_query(run, judged, names)
        assert list(values) == names
        for name in names:
            np.testing.assert_allclose(values[name], [by_hand[name], np.nan, 0.0], atol=1e-5)  # gdeval rounds


def test_reciprocal_rank_is_cut_at_ten_and_recall_at_a_hundred():
    judged = qrels({0: {10: 1, 99: 1}, 1: {9: 1, 100: 1}})
    values = per_query(ranking([[*range(150)]] * 2, 150), judged, METRICS)
    np.testing.assert_allclose(values["RR@10"], [0, 1 / 10])
    np.testing.assert_allclose(values["R@100"], [1, 1 / 2])
    np.testing.assert_allclose(values["AP@100"], [(1 / 11 + 2 / 100) / 2, 1 / 10 / 2])


@pytest.mark.parametrize("seed", range(3))
def test_equal_pytrec_eval_used_directly(seed):
    run, judgements, judged = random_case(seed)
    names = {"ndcg_cut_10": "nDCG@10", "recall_100": "R@100", "map_cut_100": "AP@100"}
    gold = {str(q): {str(p): r for p, r in of_query.items()} for q, of_query in judged.items()}
    ranks = {str(q): {str(p): -float(i) for i, p in enumerate(run.passages[q]) if p >= 0} for q in judged}
    expected = pytrec_eval.RelevanceEvaluator(gold, set(names)).evaluate(ranks)
    values = per_query(run, judgements, METRICS)
    for theirs, ours in names.items():
        assert np.flatnonzero(~np.isnan(values[ours])).tolist() == sorted(judged)
        for q in judged:
            np.testing.assert_allclose(values[ours][q], expected.get(str(q), {theirs: 0.0})[theirs])


def test_means_are_the_aggregates_of_ir_measures():
    run, judgements, judged = random_case(3)
    gold = {str(q): {str(p): r for p, r in of_query.items()} for q, of_query in judged.items()}
    ranks = {str(q): {str(p): -float(i) for i, p in enumerate(run.passages[q]) if p >= 0} for q in judged}
    names = [*METRICS, *OTHERS]
    expected = ir_measures.calc_aggregate(list(map(ir_measures.parse_measure, names)), gold, ranks)
    values = per_query(run, judgements, names)
    assert list(values) == names
    for name in names:
        np.testing.assert_allclose(np.nanmean(values[name]), expected[ir_measures.parse_measure(name)])


def test_a_query_with_judgements_but_nothing_relevant_counts_as_zero_as_in_trec_eval():
    values = per_query(ranking([[0], [0]], 1), qrels({0: {0: 0}, 1: {0: 1}}), ["nDCG@10"])
    np.testing.assert_array_equal(values["nDCG@10"], [0, 1])


def test_only_the_queries_asked_for():
    run, judgements, _ = random_case(0)
    everything, some = (per_query(run, judgements, METRICS, of) for of in (None, np.array([4, 5, 6])))
    for name in METRICS:
        assert np.flatnonzero(~np.isnan(some[name])).tolist() == [4, 6]
        np.testing.assert_array_equal(some[name][[4, 6]], everything[name][[4, 6]])


def test_tied_scores_are_measured_in_our_order():
    values = per_query(ranking([[1, 2], [2, 1]], 2, scores=0.5), qrels({0: {1: 1}, 1: {1: 1}}), ["RR@10"])
    np.testing.assert_allclose(values["RR@10"], [1, 1 / 2])


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["nDCG@10", "ndcg@5"], r"'ndcg@5' is no measure of ir_measures.*use names such as nDCG@10.*P@5"),
        (["R"], "'R' is no measure of ir_measures, or lacks a parameter"),
        (["nDCG(foo=1)@10"], "is no measure"),
        (["nDCG@"], "is no measure"),
        (["5"], "is no measure"),
        (["nDCG@'x'"], "is no measure"),
        (["R@1000"], "'R@1000' is cut outside the 100 passages that are ranked"),
        (["nDCG@0"], "'nDCG@0' is cut outside"),  # trec_eval would end the process
        (["RBP(p=0.9)@10"], "is computed by no program that is installed"),
        (["RR@10", "MRR@10"], "'MRR@10' is the same as RR@10"),
        ([], "evaluation.metrics is empty"),
    ],
)
def test_a_name_that_cannot_be_computed_is_refused(names, said):
    for refused in (check, lambda names: per_query(ranking([[0]], 1), qrels({0: {0: 1}}), names)):
        with pytest.raises(InputError, match=f"^evaluation.metrics.*{said}|^{said}") as error:
            refused(names)
        assert "\n" not in str(error.value)


def test_what_has_no_value_for_a_query_without_hits_is_refused():
    check([*METRICS, *OTHERS])
    for name in ("Judged@10", "Accuracy@10"):
        with pytest.raises(InputError, match=f"{name}' has no value for some queries"):
            check([name])


def test_judgements_that_a_program_refuses():
    with pytest.raises(InputError, match="exp-log2.*judgements, of up to 5"):
        per_query(ranking([[0]], 1), qrels({0: {0: 5}}), ["P@5", "nDCG(dcg='exp-log2')@10"])


def test_names_of_one_measure():
    assert [canonical(name) for name in ("MRR@10", "MAP@100", "NDCG(dcg='log2')@10")] == [
        "RR@10",
        "AP@100",
        "nDCG@10",
    ]
    assert canonical("query") is None


SMALLEST = float(np.finfo(np.float32).tiny)


@pytest.mark.parametrize(
    "scores",
    [
        [0.0] * 4,
        [SMALLEST] * 4,
        [3e-38] * 2 + [SMALLEST * 1.0000002, SMALLEST, SMALLEST, 1e-45, 1e-45, 0.0, 0.0, -1e-45, -SMALLEST],
        [1e-45, 0.0, -0.0, -1e-45, -1e-40, -1e-40, -1.0],
        [2.0, 2.0, -np.inf, -np.inf],
        [-np.inf, 0.0, 0.0],
        [-1.0, -1.0, -2.0],
        [0.0, np.nan, 0.0],
    ],
)
@pytest.mark.parametrize("flush", [False, True])
def test_a_run_file_s_scores_fall_also_for_a_reader_that_flushes_denormals(tmp_path, scores, flush):
    row = CandidateList(np.arange(len(scores))[None], np.array([scores], dtype=np.float32))
    torch.set_flush_denormal(flush)
    try:
        write_run(tmp_path / "run.txt", row, ["q"], [f"d{i}" for i in range(len(scores))], "x")
    finally:
        torch.set_flush_denormal(False)
    read = np.array([line.score for line in ir_measures.read_trec_run(str(tmp_path / "run.txt"))])
    flushed = np.where(np.abs(read) < SMALLEST, 0, read).astype(np.float32)
    assert len(read) == len(scores) and np.isfinite(flushed).all() and (np.diff(flushed) < 0).all()
    there = np.isfinite(scores)
    np.testing.assert_allclose(flushed[there], np.array(scores)[there], rtol=1e-6, atol=1e-37)


@pytest.mark.parametrize("scores", [None, 0.5, 0.0, 1e-7, -np.inf])
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
    means = ir_measures.calc_aggregate(map(ir_measures.parse_measure, METRICS), gold, stored)
    for name, values in per_query(run, judgements, METRICS).items():
        np.testing.assert_allclose(means[ir_measures.parse_measure(name)], np.nanmean(values))


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
    assert table.cell(tuned, "RR@10") == "0.550  +0.050 (p<0.001)"
    own = np.linspace(0.2, 0.8, 60)[:20].mean()  # the student's on the teacher's 20 queries
    assert table.cell(teacher, "R@100") == f"{own - 0.1:.3f}  -0.100 (p<0.001)"


def test_table_is_markdown_and_fits_the_terminal():
    made = table.rows(systems(), "untuned student")
    lines = table.markdown(made).splitlines()
    assert len(lines) == 5 and {line.count("|") for line in lines} == {6}
    assert lines[0] == "| system | queries | nDCG@10 | R@100 | RR@10 |"
    assert lines[4] == "| tuned student | 60 |" + " 0.550  +0.050 (p<0.001) |" * 3
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(table.terminal(made, "wikiscience"))
    shown = console.export_text()
    assert max(map(len, shown.splitlines())) <= 100
    assert "…" not in shown and all(part in shown for part in ("+0.050", "-0.100", "p<0.001", "20"))


def test_the_first_metric_is_the_main_one():
    of = {"P@5": np.array([0.2, np.nan]), "nDCG@10": np.array([0.5, np.nan])}
    made = table.rows({"a": of, "b": {name: values - 0.1 for name, values in of.items()}}, "a")
    assert made[1].main == "P@5" and made[1].n == 1
    assert table.cells(made)[0] == ["system", "queries", "P@5", "nDCG@10"]
    assert "to P@5 0.100, the student alone reaches 0.200" in table.headroom_warning(made[1])
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(table.by_querytype({"claim": made}, "held out"))
    shown = console.export_text()
    assert "P@5; differences" in shown and "0.100  -0.100" in shown and "0.5" not in shown


def test_headroom_warning():
    _, teacher, tuned = table.rows(systems(), "untuned student")
    warning = table.headroom_warning(teacher)
    assert "0.197" in warning and "0.297" in warning and "20 queries" in warning and "\n" not in warning
    assert table.headroom_warning(tuned) is None
    equal = table.rows({"a": systems()["tuned student"], "b": systems()["tuned student"]}, "a")[1]
    assert table.headroom_warning(equal) is not None
