"""Runs beside each other: what differs, and whether it is more than chance."""

import io
import itertools
import json
import re
import shutil
import sys
from dataclasses import asdict

import numpy as np
import pandas
import pytest
from finished_runs import with_facts, write_run
from rich.console import Console
from scipy import stats

from dense_retrieval.compare import main
from dense_retrieval.comparison import charts, page, tables
from dense_retrieval.comparison.comparison import Comparison
from dense_retrieval.comparison.moved import moved
from dense_retrieval.comparison.runs import find, read, read_all
from dense_retrieval.evaluation import significance
from dense_retrieval.evaluation.learning_curve import Point
from dense_retrieval.evaluation.verdict import spread, verdict
from dense_retrieval.records import InputError


@pytest.fixture(autouse=True)
def no_bundle(monkeypatch):
    """The charts' JavaScript takes a second to make, and draws nothing here."""
    monkeypatch.setattr(page.vl_convert, "javascript_bundle", lambda: "")


def grid(folder, seeds=(0, 1), corpora=("kale", "basalt"), effect: float = 0.2) -> dict:
    """Two losses, some seeds and corpora; listwise is better by ``effect``."""
    rng = np.random.default_rng(0)
    truth = {}
    for corpus in corpora:
        untuned = rng.random(50)
        for number, (loss, seed) in enumerate(itertools.product(["infonce", "listwise"], seeds)):
            tuned = untuned + rng.normal(effect * (loss == "listwise"), 0.1, 50)
            truth[corpus, loss, seed] = tuned
            weight = {"infonce": 0.0, "listwise": 1.0}[loss]
            values = {"untuned student": untuned, "tuned student": tuned}
            given = {"loss": loss, "seed": seed, "loss.listwise_weight": weight}
            write_run(folder / corpus / str(number), given, values, corpus)
        truth[corpus, "untuned"] = untuned
    return truth


def comparison(folder, baseline: str = "untuned student") -> Comparison:
    runs, problems = read_all(find([folder]))
    assert not problems
    return Comparison(runs, baseline, samples=2000)


def datasets(chart: dict) -> list[dict]:
    """The points of a chart."""
    return [point for of in chart["datasets"].values() for point in of]


def test_a_grid_by_hand(tmp_path):
    truth = grid(tmp_path)
    found = comparison(tmp_path)
    assert found.columns == ["loss"]  # its weight follows from it, seeds are averaged, paths do not count
    assert [line.name for line in found.lines] == ["untuned student", "loss=infonce", "loss=listwise"]
    table = found.table.set_index(["corpus", "system", "loss", "metric"]).sort_index()
    means = {}
    for corpus, loss in itertools.product(["kale", "basalt"], ["infonce", "listwise"]):
        line = table.loc[corpus, "tuned student", loss, "nDCG@10"]
        of_seeds = np.array([truth[corpus, loss, seed] for seed in (0, 1)])
        d = of_seeds.mean(0) - truth[corpus, "untuned"]
        means[corpus, loss] = d.mean()
        assert (line["seeds"], line["queries"]) == (2, 50)
        assert line["mean"] == pytest.approx(of_seeds.mean())
        assert line["std"] == pytest.approx(of_seeds.mean(1).std(ddof=1))
        assert line["difference"] == pytest.approx(d.mean())
        over = spread([of_seeds - truth[corpus, "untuned"]])
        assert line["p_t"] == pytest.approx(over.p_value)
        assert [line["low"], line["high"]] == pytest.approx([d.mean() - over.half, d.mean() + over.half])
    for corpus in ("kale", "basalt"):
        of_losses = table.loc[corpus, "tuned student"].xs("nDCG@10", level="metric")
        np.testing.assert_allclose(of_losses["p_holm"], significance.holm(of_losses["p_t"].to_numpy()))
    for loss in ("infonce", "listwise"):
        average = table.loc["average", "tuned student", loss, "nDCG@10"]
        assert average["difference"] == pytest.approx((means["kale", loss] + means["basalt", loss]) / 2)
        assert average["queries"] == 100
    assert np.isnan(table.loc["kale", "untuned student", "", "nDCG@10"]["p_t"])
    assert table.loc["kale", "untuned student", "", "nDCG@10"]["seeds"] == 1


def test_a_setting_as_the_baseline(tmp_path):
    truth = grid(tmp_path, corpora=("kale",))
    table = comparison(tmp_path, "loss=infonce").table.set_index(["loss", "metric"])
    one, other = (np.mean([truth["kale", loss, s] for s in (0, 1)], 0) for loss in ("listwise", "infonce"))
    assert table.loc["listwise", "nDCG@10"]["difference"] == pytest.approx((one - other).mean())
    assert np.isnan(table.loc["infonce", "nDCG@10"]["difference"])


def test_a_setting_as_the_baseline_changes_it_alone(tmp_path):
    """querytype=claim loss=listwise is compared with querytype=claim loss=infonce."""
    values = np.random.default_rng(0).random((4, 30))
    pairs = list(itertools.product(["infonce", "listwise"], ["claim", "web"]))
    for number, (loss, querytype) in enumerate(pairs):
        systems = {"untuned student": values[0] / 2, "tuned student": values[number]}
        write_run(tmp_path / str(number), {"loss": loss, "querytype": querytype}, systems)
    found = comparison(tmp_path, "loss=infonce")
    table = found.table.set_index(["loss", "querytype", "metric"])
    for number, querytype in enumerate(["claim", "web"]):
        expected = (values[number + 2] - values[number]).mean()
        assert table.loc["listwise", querytype, "nDCG@10"]["difference"] == pytest.approx(expected)
    with pytest.raises(InputError, match=r"'loss=focal'.*untuned student, loss=infonce, loss=listwise"):
        comparison(tmp_path, "loss=focal")
    with pytest.raises(InputError, match="baseline 'BM25': no run has it"):
        comparison(tmp_path, "BM25")


def test_references_that_depend_on_a_setting_are_lines_of_their_own(tmp_path):
    """Two students, each with its own untuned one, the same BM25, and a teacher on some queries."""
    values = np.random.default_rng(0).random((6, 30))
    some = np.where(np.arange(30) < 10, values[5], np.nan)
    for number, student in enumerate(["bge", "e5"]):
        systems = {"BM25": values[0], "untuned student": values[1 + number], "teacher": some}
        systems["tuned student"] = values[3 + number]
        write_run(tmp_path / student, {"student": student}, systems)
    found = comparison(tmp_path)
    assert [line.name for line in found.lines] == [
        "BM25",
        "untuned student student=bge",
        "untuned student student=e5",
        "teacher",
        "student=bge",
        "student=e5",
    ]
    table = found.table.query("metric == 'nDCG@10'").set_index(["system", "student"])
    for number, student in enumerate(["bge", "e5"]):
        expected = (values[3 + number] - values[1 + number]).mean()
        assert table.loc["tuned student", student]["difference"] == pytest.approx(expected)
    assert np.isnan(table.loc["BM25", ""]["difference"])  # which untuned student?
    assert table.loc["teacher", ""]["queries"] == 10


def test_a_grid_with_holes(tmp_path):
    """InfoNCE was run on one of two corpora: what there is is compared, also on average."""
    values = np.random.default_rng(0).random((6, 30))
    runs = [("kale", "infonce"), ("kale", "listwise"), ("basalt", "listwise")]
    for number, (corpus, loss) in enumerate(runs):
        systems = {"untuned student": values[int(corpus == "kale")], "tuned student": values[2 + number]}
        write_run(tmp_path / str(number), {"loss": loss}, systems, corpus)
    table = comparison(tmp_path, "loss=infonce").table.query("metric == 'nDCG@10'")
    table = table.set_index(["corpus", "name"])["difference"]
    assert table["kale", "loss=listwise"] == pytest.approx((values[3] - values[2]).mean())
    assert np.isnan(table["basalt", "loss=listwise"]) and np.isnan(table["average", "loss=listwise"])
    assert ("average", "loss=infonce") not in table


def test_a_reference_on_corpora_that_no_run_shares_is_one_line(tmp_path):
    """Claims on one corpus, web queries on the other, questions on both."""
    untuned = np.random.default_rng(0).random((2, 30))
    runs = [("kale", "claim"), ("basalt", "web"), ("kale", "question"), ("basalt", "question")]
    for number, (corpus, querytype) in enumerate(runs):
        systems = {"untuned student": untuned[int(corpus == "kale")], "tuned student": untuned[0]}
        write_run(tmp_path / str(number), {"querytype": querytype}, systems, corpus)
    write_run(tmp_path / "4", {"querytype": "title"}, systems, "basalt")
    found = comparison(tmp_path)
    names = [line.name for line in found.lines]
    assert names.count("untuned student") == 1 and set(found.lines[0].values) == {"kale", "basalt"}
    assert tables.latex(found).count("\nuntuned student") == 1
    assert "querytype=web" in names and tables.corpora(found) == ["kale", "basalt", "average"]


def test_references_that_no_setting_tells_apart(tmp_path):
    """BM25 of another version, say."""
    for number in range(2):
        systems = {"BM25": np.full(9, number / 2), "untuned student": np.ones(9), "tuned student": np.ones(9)}
        write_run(tmp_path / str(number), {"seed": number}, systems)
    write_run(tmp_path / "2", {"seed": 0, "loss": "listwise"}, systems)
    write_run(tmp_path / "3", {"seed": 0, "loss": "infonce"}, systems | {"BM25": np.zeros(9)})
    names = [line.name for line in comparison(tmp_path).lines]
    assert len(names) == len(set(names)) and "untuned student" in names
    assert tables.latex(comparison(tmp_path))


def test_settings_that_are_no_text_are_found_in_the_baseline(tmp_path):
    """querytype.total=null, say."""
    values = np.random.default_rng(0).random((4, 30))
    for number, (loss, total) in enumerate(itertools.product(["infonce", "listwise"], [None, [7]])):
        systems = {"untuned student": values[0], "tuned student": values[number]}
        write_run(tmp_path / str(number), {"loss": loss, "groups.some": total}, systems)
    table = comparison(tmp_path, "loss=infonce").table
    tested = table[table["loss"] == "listwise"]
    assert set(tested["groups.some"]) == {"null", "[7]"} and tested["difference"].notna().all()


def test_mixtures_of_other_corpora_are_other_runs(tmp_path):
    values = {"untuned student": np.ones(9), "tuned student": np.ones(9) / 2}
    for number, members in enumerate((["data=kale querytype=claim"], ["data=kale querytype=human"])):
        write_run(tmp_path / str(number), {"data.members": members}, values)
    found = comparison(tmp_path)
    assert found.columns == ["data.members"] and not found.excluded


def test_a_mean_over_equal_seeds_is_a_tie(tmp_path):
    values = np.random.default_rng(0).random(60)
    for seed in range(3):
        write_run(tmp_path / str(seed), {"seed": seed}, {"untuned student": values, "tuned student": values})
    found = comparison(tmp_path)
    assert page._outcomes(found, "kale") == [("tuned student", 0, 60, 0)]


def test_many_long_curves(tmp_path):
    curve = [[step, 1.0] for step in range(300)]
    for seed in range(18):
        systems = {"untuned student": np.zeros(3), "tuned student": np.ones(3)}
        write_run(tmp_path / str(seed), {"seed": seed}, systems, curve=curve)
    (chart,) = charts.curves(comparison(tmp_path), "kale")
    assert len(datasets(chart)) == 18 * 300


def test_what_cannot_be_compared_is_named_and_the_rest_is_compared(tmp_path):
    grid(tmp_path, corpora=("kale",))
    whole = comparison(tmp_path).table
    values = {"untuned student": np.ones(50), "tuned student": np.ones(50)}
    write_run(tmp_path / "nan", {}, values)
    table = pandas.read_parquet(tmp_path / "nan/per_query.parquet")
    table.loc[3, "nDCG@10"] = np.nan
    table.to_parquet(tmp_path / "nan/per_query.parquet")
    write_run(tmp_path / "old", {}, values)
    (tmp_path / "old/metrics.json").write_text(json.dumps({"systems": {}}))
    write_run(tmp_path / "half", {}, values)
    (tmp_path / "half/metrics.json").write_text("{")
    write_run(tmp_path / "unfinished", {}, values)
    (tmp_path / "unfinished/metrics.json").unlink()
    write_run(tmp_path / "untuned", {}, {"untuned student": np.ones(50)})
    runs, problems = read_all(find([tmp_path]))
    said = {folder.name: problem for folder, problem in problems.items()}
    assert (
        "no number" in said["nan"] and "another version" in said["old"] and "another version" in said["half"]
    )
    assert "did not finish" in said["unfinished"] and "tuned student" in said["untuned"]
    pandas.testing.assert_frame_equal(Comparison(runs, samples=2000).table, whole)
    with pytest.raises(InputError, match="nowhere: there is no such folder"):
        find([tmp_path / "nowhere"])
    with pytest.raises(InputError, match="no finished run"):
        Comparison([])


def test_runs_on_other_queries_are_left_out(tmp_path):
    grid(tmp_path, corpora=("kale",))
    values = {"untuned student": np.ones(7), "tuned student": np.ones(7)}
    write_run(tmp_path / "other", {"loss": "combined"}, values)
    found = comparison(tmp_path)
    (excluded,) = found.excluded.values()
    assert "other was tested on other queries of kale" in excluded
    assert len(found.runs) == 4


def test_corpora_of_one_name_are_told_apart(tmp_path):
    """a/corpus and b/corpus, in two runs or in one mixture."""
    values = {"untuned student": np.zeros(9), "tuned student": np.ones(9)}
    for folder, ids in {"1": "a", "2": "b"}.items():
        write_run(tmp_path / folder, {}, values, ids=ids)
    found = comparison(tmp_path)
    assert not found.excluded and found.corpora == ["kale", "kale (2)"]
    assert tables.corpora(found) == ["kale", "kale (2)", "average"]


def test_two_splits_of_a_corpus_have_no_average(tmp_path):
    values = {"untuned student": np.zeros(9), "tuned student": np.ones(9)}
    for split in ("test", "train"):
        write_run(tmp_path / split, {"evaluation.split": split}, values, ids=split, split=split)
    assert tables.corpora(comparison(tmp_path)) == ["kale", "kale (train)"]


def test_a_teacher_that_reranked_for_fewer_queries_is_the_same_one(tmp_path):
    """Nor do settings that change no tuned student part the seeds."""
    values = np.random.default_rng(0).random(30)
    for seed, n in enumerate((10, 20)):
        systems = {"untuned student": np.zeros(30), "teacher": np.where(np.arange(30) < n, values, np.nan)}
        given = {"seed": seed, "evaluation.headroom_queries": n, "evaluation.heldout_types": ["claim"] * seed}
        write_run(tmp_path / str(seed), given, systems | {"tuned student": np.ones(30)})
    found = comparison(tmp_path)
    assert [line.name for line in found.lines] == ["untuned student", "teacher", "tuned student"]
    line = found.table.query("metric == 'nDCG@10'").set_index("name").loc["teacher"]
    assert line["queries"] == 20 and line["mean"] == pytest.approx(values[:20].mean()) and line["seeds"] == 1
    assert "(20 queries)" in tables.latex(found)


def test_folders_of_generated_queries_are_no_failed_runs(tmp_path):
    grid(tmp_path / "grid", corpora=("kale",))
    (tmp_path / "generated/.hydra").mkdir(parents=True)
    (tmp_path / "generated/queries.jsonl").write_text("")
    assert read_all(find([tmp_path]))[1] == {}


def old_run(folder) -> dict[str, np.ndarray]:
    """A run as version 0.1.0 left it: MRR@10 and MAP@100, no evaluation.metrics; the tuned student's values."""
    names = ["nDCG@10", "R@100", "MRR@10", "MAP@100"]
    tuned = dict(zip(names, np.random.default_rng(7).random((4, 20)), strict=True))
    (folder / ".hydra").mkdir(parents=True)
    (folder / "config.yaml").write_text(
        "data: {name: kale}\nevaluation: {split: test, headroom_k: 20}\nlogger: {enabled: false}\n"
        "loss: {listwise_weight: 0.0}\nseed: 0\n"
    )
    means = {name: values.mean() for name, values in tuned.items()}
    heldout = {"claim": [{"system": "tuned student", "means": {"nDCG@10": 0.25, "MRR@10": 0.125}}]}
    choices = {"data": "kale", "loss": "infonce"}
    facts = {"systems": {"tuned student": {"means": means}}, "corpus": "kale", "split": "test"}
    (folder / "metrics.json").write_text(json.dumps(facts | {"choices": choices, "heldout": heldout}))
    queries = {"query": [f"q{i}" for i in range(20)]}
    of_systems = {
        "untuned student": {name: values / 2 for name, values in tuned.items()},
        "tuned student": tuned,
    }
    tables_ = [pandas.DataFrame({"system": system} | queries | of) for system, of in of_systems.items()]
    pandas.concat(tables_, ignore_index=True).to_parquet(folder / "per_query.parquet")
    return tuned


def test_runs_are_compared_by_the_metrics_that_all_have(tmp_path):
    """Also those from before evaluation.metrics; the first run's order says which is the main one."""
    tuned = old_run(tmp_path / "b")
    (run,) = read(tmp_path / "b")
    assert run.metrics == ["nDCG@10", "R@100", "RR@10", "AP@100"]
    metrics = ["RR@10", "P@5", "AP@100"]
    values = {"untuned student": np.zeros(20), "tuned student": np.full(20, 0.75)}
    heldout = {"claim": [{"system": "tuned student", "means": {"RR@10": 0.5, "P@5": 0.1, "AP@100": 0.2}}]}
    given = {"loss": "listwise", "loss.listwise_weight": 1.0, "evaluation.metrics": metrics}
    write_run(tmp_path / "a", given, values, metrics=metrics, heldout=heldout)
    found = comparison(tmp_path)
    assert found.columns == ["loss"] and not found.excluded
    assert found.metrics == ["RR@10", "AP@100"] and found.main == "RR@10"
    assert tables.note(found).endswith("Metrics that not every run has are left out: P@5, nDCG@10, R@100.")
    table = found.table.set_index(["loss", "system", "metric"])
    for old, new in {"MRR@10": "RR@10", "MAP@100": "AP@100"}.items():
        line = table.loc["infonce", "tuned student", new]
        assert line["mean"] == pytest.approx(tuned[old].mean())
        assert line["difference"] == pytest.approx(tuned[old].mean() / 2)
        assert table.loc["listwise", "tuned student", new]["mean"] == 0.75
    header = tables.cells(found, "kale", found.metrics)[0]
    assert header == ["system", "loss", "RR@10", "difference", "p", "AP@100", "seeds", "queries"]
    assert tables.latex(found).startswith("% RR@10, ")
    html = page.render(found, [])
    assert "nDCG@10" not in html.partition("const specs")[2] and "RR@10 on synthetic queries" in html
    cells = {cell["name"]: cell["value"] for cell in datasets(charts.querytypes(found, "kale"))}
    assert cells == {"loss=infonce": 0.125, "loss=listwise": 0.5}
    (tmp_path / "b").rename(tmp_path / "0")
    assert comparison(tmp_path).metrics == ["RR@10", "AP@100"]
    assert Comparison(read(tmp_path / "0")).metrics == run.metrics


def test_equal_values_of_other_metrics_are_told_apart(tmp_path):
    values = {"untuned student": np.zeros(9), "tuned student": np.ones(9)}
    for name, metrics in {"a": ["P@5", "nDCG@10"], "b": ["nDCG@10", "P@10"]}.items():
        write_run(tmp_path / name, {"loss": name}, values, metrics=metrics)
    runs, _ = read_all(find([tmp_path]))
    assert [run.metrics for run in runs] == [["P@5", "nDCG@10"], ["nDCG@10", "P@10"]]
    assert Comparison(runs, samples=100).metrics == ["nDCG@10"]


def test_runs_without_a_metric_in_common_are_left_out(tmp_path):
    """Those that have the metric that most have stay; a run left out narrows nothing."""
    values = {"untuned student": np.zeros(9), "tuned student": np.ones(9)}
    of = {"a": ["P@5", "P@10"], "b": ["nDCG@10", "R@100"], "c": ["R@100", "nDCG@10"], "d": ["P@10"]}
    for name, metrics in of.items():
        write_run(tmp_path / name, {"loss": name}, values, metrics=metrics)
    write_run(tmp_path / "e", {"loss": "e"}, values, metrics=["nDCG@10", "R@100", "P@5"])
    found = comparison(tmp_path)
    assert [run.folder.name for run in found.runs] == ["b", "c", "e"]
    assert found.metrics == ["nDCG@10", "R@100"] and found.unshared == ["P@5"]
    assert list(found.excluded.values()) == [
        f"{tmp_path}/{name} was measured by {', '.join(of[name])}, not by nDCG@10 as {tmp_path}/b; run its "
        "command again with nDCG@10 in evaluation.metrics: nothing is trained anew"
        for name in "ad"
    ]
    table = pandas.read_parquet(tmp_path / "c/per_query.parquet")
    table[["system", "query"]].to_parquet(tmp_path / "c/per_query.parquet")
    with pytest.raises(InputError, match="c/per_query.parquet has no metric"):
        read(tmp_path / "c")


def test_a_repeated_run_counts_once(tmp_path):
    """The last of those with the same settings and seed does."""
    for folder, value in {"1": 0.25, "2": 0.75}.items():
        values = {"untuned student": np.ones(5), "tuned student": np.full(5, value)}
        write_run(tmp_path / folder, {"loss": "infonce", "evaluation.headroom_queries": int(folder)}, values)
    found = comparison(tmp_path)
    assert list(found.excluded.values()) == [f"{tmp_path}/1 has the settings of {tmp_path}/2"]
    assert found.table.query("system == 'tuned student'")["mean"].tolist() == [0.75] * 4


def test_an_average_over_corpora_with_different_numbers_of_seeds(tmp_path):
    truth = grid(tmp_path)
    shutil.rmtree(tmp_path / "kale" / "1")  # infonce, seed 1
    table = comparison(tmp_path).table.query("metric == 'nDCG@10'").set_index(["corpus", "loss"])
    line = table.loc["average", "infonce"]
    basalt = (truth["basalt", "infonce", 0].mean() + truth["basalt", "infonce", 1].mean()) / 2
    assert line["mean"] == pytest.approx((truth["kale", "infonce", 0].mean() + basalt) / 2)
    assert line["seeds"] == 1 and np.isnan(line["std"]) and table.loc["average", "listwise"]["seeds"] == 2


def test_a_mixture_s_run_counts_on_each_corpus(tmp_path):
    for corpus in ("kale", "basalt"):
        values = {"untuned student": np.ones(9), "tuned student": np.ones(9) / 2}
        write_run(tmp_path / "mixture" / corpus, {}, values, corpus)
    parent = tmp_path / "mixture"
    (parent / ".hydra").mkdir()
    (parent / "kale/config.yaml").rename(parent / "config.yaml")
    assert [run.corpus for run in read(parent)] == ["basalt", "kale"]


def test_tables_by_hand(tmp_path):
    values = {"BM25": np.zeros(20), "untuned student": np.full(20, 0.5), "tuned student": np.full(20, 0.75)}
    write_run(tmp_path / "a_b", {"loss": "infonce"}, values)
    values |= {"BM25": np.where(np.arange(20) < 5, 0.25, np.nan), "tuned student": np.tile([0.25, 0.75], 10)}
    write_run(tmp_path / "c", {"loss": "a_b"}, values)
    found = comparison(tmp_path)
    table = tables.markdown(found).splitlines()
    assert table[:2] == ["## kale", ""] and table[2].startswith("| system | loss | nDCG@10")
    assert (
        "| BM25 | infonce | 0.000 | -0.500 [-0.500, -0.500]* | 0.002 | 0.000* | 0.000* | 0.000* | 1 | 20 |"
        in table
    )
    few = next(line for line in table if line.startswith("| BM25 | a_b"))
    # all 5 signs alike: p = 2 / 2^5, for two tests left
    assert few.endswith("| 1 | 5 |") and few.startswith(
        "| BM25 | a_b | 0.250 | -0.250 [-0.250, -0.250] | 0.1"
    )
    assert (
        "| tuned | infonce | 0.750 | +0.250 [+0.250, +0.250]* | 0.002 | 0.750* | 0.750* | 0.750* | 1 | 20 |"
        in table
    )
    latex = tables.latex(found).splitlines()
    first = latex.index(r"\begin{tabular}{llrrrr}")
    assert latex[first + 1 : first + 3] == [
        r"\toprule",
        r"system & loss & nDCG@10 & R@100 & RR@10 & AP@100 \\",
    ]
    better = " & ".join(["$0.750^{+}$"] * 4)
    assert rf"tuned & infonce & {better} \\" in latex
    assert r"tuned & a\_b & $0.500$ & $0.500$ & $0.500$ & $0.500$ \\" in latex
    assert r"BM25 & infonce & $0.000^{-}$ & $0.000^{-}$ & $0.000^{-}$ & $0.000^{-}$ \\" in latex
    assert r"BM25 & a\_b & $0.250$ (5 queries) & $0.250$ & $0.250$ & $0.250$ \\" in latex
    assert tables._escaped([r"a^2_\~"]) == [r"a\textasciicircum{}2\_\textbackslash{}\textasciitilde{}"]
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(*tables.terminal(found, console))
    shown = console.export_text()
    assert "kale, 20 queries" in shown and "BM25 loss=a_b (5 queries)" in shown and "…" not in shown


def test_seeds_count_in_the_test_of_two_tuned_lines(tmp_path):
    """In pairs of the same seed; a line of one seed says so, and is tested over the queries as before."""
    rng = np.random.default_rng(0)
    untuned, of_query = rng.random(40), rng.normal(0, 0.05, 40)
    tuned = {}
    for loss, seeds in {"infonce": (0, 1, 2), "listwise": (0, 1, 2), "combined": (2,)}.items():
        for seed in seeds:
            tuned[loss, seed] = (
                untuned + of_query + 0.05 * seed + rng.normal(0.1 * (loss == "listwise"), 0.05, 40)
            )
            systems = {"untuned student": untuned, "tuned student": tuned[loss, seed]}
            write_run(tmp_path / f"{loss}{seed}", {"loss": loss, "seed": seed}, systems)
    found = comparison(tmp_path, "loss=infonce")
    table = found.table.query("metric == 'nDCG@10'").set_index("loss")
    over = spread([np.stack([tuned["listwise", s] - tuned["infonce", s] for s in range(3)])])
    line = table.loc["listwise"]
    assert (line["seeds"], line["seeds_compared"]) == (3, 3)
    assert [line["difference"], line["low"], line["p_t"]] == pytest.approx(
        [over.mean, over.mean - over.half, over.p_value]
    )
    line, alone = table.loc["combined"], tuned["combined", 2] - tuned["infonce", 2]
    assert (line["seeds"], line["seeds_compared"], line["difference"]) == (1, 1, pytest.approx(alone.mean()))
    assert line["p_t"] == pytest.approx(stats.ttest_1samp(alone, 0).pvalue)
    tested = table.dropna(subset="difference")  # the untuned student too, against three seeds
    p = tested["p_t"].where(tested["seeds_compared"] > 1, tested["p_randomization"])
    assert tested["seeds_compared"].tolist() == [3, 1, 3]
    assert tested["p_holm"].tolist() == pytest.approx(significance.holm(p.to_numpy()))
    assert "Of several seeds" in tables.note(found) and "of one seed" in tables.note(found)
    back = comparison(tmp_path, "loss=combined")
    shown = tables.cells(back, "kale", back.metrics)
    assert next(cells for cells in shown if cells[1] == "listwise")[-2] == "3 (1 compared)"
    # against the untuned student the interval is the verdict's
    line = comparison(tmp_path).table.query("metric == 'nDCG@10'").set_index("loss").loc["infonce"]
    said = verdict(np.stack([tuned["infonce", s] - untuned for s in range(3)]), "nDCG@10")
    assert [line["low"], line["high"]] == pytest.approx([said.low, said.high])


def test_a_run_that_trained_three_times_is_three_seeds(tmp_path):
    values = np.random.default_rng(0).random((4, 30))
    names = ["untuned student", "tuned student", "tuned student, seed 1", "tuned student, seed 2"]
    write_run(tmp_path / "a", {"seeds": 3}, dict(zip(names, values, strict=True)))
    line = comparison(tmp_path).table.set_index(["system", "metric"]).loc["tuned student", "nDCG@10"]
    over = spread([values[1:] - values[0]])
    assert (line["seeds"], line["seeds_compared"]) == (3, 3) and line["p_t"] == pytest.approx(over.p_value)


def test_the_average_over_corpora_counts_the_seeds(tmp_path):
    truth = grid(tmp_path, seeds=(0, 1, 2))
    table = comparison(tmp_path).table.query("metric == 'nDCG@10'").set_index(["corpus", "loss"])
    strata = [
        np.stack([truth[corpus, "listwise", seed] - truth[corpus, "untuned"] for seed in range(3)])
        for corpus in ("basalt", "kale")
    ]
    line, over = table.loc["average", "listwise"], spread(strata)
    assert [line["difference"], line["low"], line["p_t"]] == pytest.approx(
        [over.mean, over.mean - over.half, over.p_value]
    )


def test_one_seed_is_said(tmp_path):
    grid(tmp_path, seeds=(0,))
    found = comparison(tmp_path)
    assert "Of one seed: intervals are bootstrapped" in tables.note(found)
    assert "say nothing of another seed" in tables.note(found)


def test_every_setting_that_differs_is_shown(tmp_path):
    """A learning rate that goes with the loss may be why results differ; the loss's weight is what the loss is."""
    values = {"untuned student": np.zeros(9), "tuned student": np.ones(9)}
    for number, (loss, rate, weight) in enumerate([("infonce", 1e-4, 0.0), ("listwise", 2e-5, 1.0)]):
        given = {"loss": loss, "trainer.learning_rate": rate, "loss.listwise_weight": weight}
        given |= {
            "loss.terms.listwise.weight": weight,
            "executor.devices": number,
            "trainer.graph_tokens": number,
        }
        given |= {
            "teacher.members": [{"path": "a", "weights": number}, {"path": "b"}],
            "logger.project": loss,
        }
        write_run(tmp_path / str(number), given, values)
    found = comparison(tmp_path)
    assert found.columns == ["loss", "teacher.members.0.weights", "trainer.learning_rate"]
    assert found.lines[-1].name == "loss=listwise teacher.members.0.weights=1 trainer.learning_rate=2e-05"
    assert found.follow == {"loss": ["loss.listwise_weight"]}
    assert tables.choices(found) == [
        ("loss=infonce", "loss.listwise_weight=0.0"),
        ("loss=listwise", "loss.listwise_weight=1.0"),
    ]
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(*tables.terminal(found, console))
    text = console.export_text()
    assert "…" not in text and max(map(len, text.splitlines())) <= 80
    assert re.search(r"^3 +loss=listwise teacher\.members\.0\.weights=1", text, re.MULTILINE)
    assert "loss=listwise  loss.listwise_weight=1.0" in text
    assert "`loss=infonce` is `loss.listwise_weight=0.0`" in tables.markdown(found)
    with pytest.raises(
        InputError, match="no run differs from another in this alone; give all settings in which"
    ):
        comparison(tmp_path, "loss=infonce")
    both = "loss=infonce teacher.members.0.weights=0 trainer.learning_rate=0.0001"
    assert comparison(tmp_path, both).table.set_index("name")["difference"].notna().any()


def test_runs_that_differ_in_nothing_but_where_they_were_are_seeds(tmp_path):
    """Another folder of the same files, another logger, an experiment that set what both have."""
    values = {"untuned student": np.zeros(9), "tuned student": np.ones(9)}
    for seed in range(2):
        path = f"/home/{seed}/model"
        given = {"seed": seed, "teacher.path": path, "logger.project": str(seed), "plan": False}
        write_run(tmp_path / str(seed), given, values, inputs={path: "0123456789"})
        facts = json.loads((tmp_path / f"{seed}/metrics.json").read_text())
        facts["choices"] |= {"experiment": str(seed), "logger": str(seed), "executor": str(seed)}
        (tmp_path / f"{seed}/metrics.json").write_text(json.dumps(facts))
    found = comparison(tmp_path)
    assert [len(line.runs) for line in found.lines if line.system == "tuned student"] == [2]
    assert found.runs[0].settings["teacher.path"] == "model@012345"


def test_the_metrics_asked_for(tmp_path):
    grid(tmp_path)
    runs, _ = read_all(find([tmp_path]))
    found = Comparison(runs, metrics=["MRR@10", "nDCG@10"], samples=100)
    assert found.metrics == ["RR@10", "nDCG@10"] and found.main == "RR@10" and not found.unshared
    latex = tables.latex(found).splitlines()
    at = latex.index(r"\toprule")
    assert (
        latex[at + 1]
        == r" &  & \multicolumn{2}{c}{basalt} & \multicolumn{2}{c}{kale} & \multicolumn{2}{c}{average} \\"
    )
    assert latex[at + 2] == r"\cmidrule(lr){3-4} \cmidrule(lr){5-6} \cmidrule(lr){7-8}"
    assert latex[at + 3] == r"system & loss & RR@10 & nDCG@10 & RR@10 & nDCG@10 & RR@10 & nDCG@10 \\"
    line = found.table.set_index(["corpus", "loss", "metric"]).loc["basalt", "listwise", "RR@10"]
    mark = "^{+}" if line["p_holm"] < 0.05 else ""
    cell = rf"${line['mean']:.3f}{mark} \pm {line['std']:.3f}$"
    assert any(row.startswith(rf"tuned & listwise & {cell} & ") for row in latex)
    one = tables.latex(Comparison(runs, metrics=["nDCG@10"], samples=100))
    assert "system & loss & basalt & kale & average \\\\" in one
    with pytest.raises(InputError, match="--metrics: not every run has P@5; there are nDCG@10, R@100"):
        Comparison(runs, metrics=["P@5"])


def test_the_command(tmp_path, monkeypatch, capsys):
    grid(tmp_path)
    write_run(tmp_path / "unfinished", {}, {"tuned student": np.ones(3)})
    (tmp_path / "unfinished/metrics.json").unlink()
    monkeypatch.setattr(sys, "argv", ["compare", str(tmp_path), "--baseline", "loss=infonce"])
    main()
    said = capsys.readouterr().out
    assert "did not finish" in said and "average, 100 queries" in said
    table = pandas.read_csv(tmp_path / "comparison/comparison.csv")
    assert len(table) == 3 * 3 * 4 and (table.loc[table["loss"] == "listwise", "difference"] > 0.1).all()
    assert {f.suffix for f in (tmp_path / "comparison").iterdir()} == {".csv", ".html", ".md", ".tex"}
    monkeypatch.setattr(sys, "argv", ["compare", str(tmp_path / "unfinished")])
    with pytest.raises(SystemExit, match="error: there is no finished run to compare"):
        main()


def test_a_list_as_the_baseline_is_named_whole(tmp_path, monkeypatch, capsys):
    for number, types in enumerate((["human"], ["claim", "web"])):
        values = np.random.default_rng(number).random((2, 30))
        systems = {"untuned student": values[0], "tuned student": values[1]}
        write_run(tmp_path / str(number), {"querytype.types": types}, systems)
    monkeypatch.setattr(sys, "argv", ["compare", str(tmp_path), "--baseline", "querytype.types=[human]"])
    main()
    assert "Differences to querytype.types=[human] with" in capsys.readouterr().out


def test_the_queries_that_moved_most(tmp_path):
    with_facts(tmp_path)
    found = comparison(tmp_path)
    row = found.lines[-1]
    d = found.difference(row, "kale", "nDCG@10").sort_values()
    shown = moved(found, row, "kale")
    assert [m.query for m in shown] == [*d.index[::-1][:4], *d.index[:4]]
    for m in shown:
        assert m.after - m.before == pytest.approx(d[m.query]) and m.text == f"what is {m.query}?"
        assert [f.passage for f in m.ranking_before] == ["p1", "p0"]
        assert [(f.text, f.relevant) for f in m.ranking_after] == [
            ("kale & <b>cabbage</b>", True),
            ("basalt", False),
        ]
    shutil.rmtree(tmp_path / "cache")
    bare = moved(found, row, "kale")[0]
    assert (bare.text, bare.ranking_after[0].text, bare.ranking_after[0].relevant) == ("", "", None)


def test_the_page_has_a_verdict_over_queries_and_seeds_and_says_how_hard_the_queries_are(tmp_path):
    truth = grid(tmp_path, seeds=(0, 1, 2), corpora=("kale",))
    profile = {"queries": 7, "first by BM25": 0.875, "first by the student": 0.5, "words in common": 1.0}
    for file in tmp_path.glob("kale/*/metrics.json"):
        facts = json.loads(file.read_text()) | {"difficulty": {"claim": profile, "test queries": profile}}
        facts["budget"] = [
            asdict(Point("nDCG@10", 0, 0, 60, 0.5, None, None, None, False)),
            asdict(Point("nDCG@10", 1200, 171, 60, 0.52, 0.02, -0.002, 0.042, True)),
        ]
        file.write_text(json.dumps(facts))
    html = page.render(comparison(tmp_path), [])
    for loss in ("infonce", "listwise"):
        differences = np.stack([truth["kale", loss, seed] for seed in range(3)]) - truth["kale", "untuned"]
        assert f"loss={loss}: {verdict(differences, 'nDCG@10')}" in html
    html = re.sub(r'<td data-label="[^"]*">', "<td>", html)
    line = "<td>7</td><td>0.88</td><td>0.50</td><td>1.00</td>"
    assert f"<td>claim</td>{line}" in html and f"<td>test queries</td>{line}" in html
    for bought in ("0 0 0.500  ", "1200 171 0.520 +0.020 -0.002&to&+0.042"):
        cells = "".join(f"<td>{cell}</td>" for cell in bought.split(" "))
        assert cells.replace("&to&", " to ") in html


def test_the_page_holds_what_the_comparison_says(tmp_path):
    with_facts(tmp_path)
    found = comparison(tmp_path)
    html = page.render(found, ["a <run> that is missing"])
    assert "http" not in re.sub(r"<script>.*?</script>", "", html, flags=re.DOTALL)  # nothing is fetched
    assert "kale &amp; &lt;b&gt;cabbage" in html and "a &lt;run&gt; that is missing" in html
    head, *lines = tables.cells(found, "kale", found.metrics[:3])
    assert head == ["system", "loss", "nDCG@10", "difference", "p", "R@100", "RR@10", "seeds", "queries"]
    bare = re.sub(r'<td data-label="[^"]*">', "<td>", html)
    for line in lines:
        assert "".join(f"<td>{cell.replace('<', '&lt;')}</td>" for cell in line) in bare
    specs = json.loads(re.search(r"const specs = (.*);", html)[1].replace("<\\/", "</"))
    assert len(specs) == 4  # differences, training losses, dev losses, query types
    points = [point for spec in specs.values() for point in datasets(spec)]
    main = found.table.query("metric == 'nDCG@10'").dropna(subset="difference")
    by_name = main.set_index("name")["difference"]
    drawn = {p["name"]: p["difference"] for p in points if "difference" in p}
    assert drawn == pytest.approx(by_name.to_dict())
    cells = {(c["name"], c["query type"]): c["value"] for c in points if "query type" in c}
    assert cells == {("loss=infonce", "claim"): 0.25, ("loss=listwise", "claim"): 0.75}
    assert all(spec["description"] for spec in specs.values())
    assert re.search(r"<td>claim</td><td>77</td><td>66</td><td>55</td>", bare)
    assert "python -m dense_retrieval.run loss=listwise" in html and "0123456789ab<" in html
    better = int((found.difference(found.lines[-1], "kale", "nDCG@10") > 0).sum())
    assert f"<td>loss=listwise</td><td>{better}</td><td>0</td><td>{12 - better}</td>" in bare
