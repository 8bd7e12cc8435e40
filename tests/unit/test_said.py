"""What a run says while it runs: words and aligned numbers, no dictionaries, no empty lines."""

import io

import pytest
import rich
from pytorch_lightning.callbacks import RichProgressBar
from rich.console import Console

from dense_retrieval.evaluation import report
from dense_retrieval.progress import unwatched
from dense_retrieval.store import _said
from dense_retrieval.training.bar import Bar


def test_yields_by_hand():
    claim = {"generated": 200, "cleaned": 139, "dropped": {"copied": 25, "too long": 36}}
    claim |= {"retriever filter": 8, "10 passages": 8, "train": 1000}
    title = {
        "generated": 90,
        "cleaned": 89,
        "dropped": {"copied": 1},
        "retriever filter": 7,
        "10 passages": 7,
    }
    assert report.yields({"claim": claim, "title": title}).splitlines() == [
        "                             retriever       10",
        "query type generated cleaned    filter passages train",
        "claim            200     139         8        8  1000",
        "title             90      89         7        7",
        "cleaning dropped 36 too long, 26 copied",
    ]
    assert "dropped" not in report.yields({"human": {"drawn": 3}})


def test_the_default_steps_fit_eighty_columns():
    steps = (
        "generated",
        "cleaned",
        "drawn",
        "retriever filter",
        "10 passages",
        "teacher filter",
        "labels",
        "train",
    )
    shown = report.yields({"description": dict.fromkeys([*steps, "dev"], 200)})
    assert max(map(len, shown.splitlines())) <= 80


def test_difficulty_by_hand():
    profile = {"queries": 1234, "first by BM25": 2 / 3, "first by the student": 0.5, "words in common": 1.0}
    assert report.difficulty({"test queries": profile}).splitlines() == [
        "                       first    first by words in",
        "query type   queries by BM25 the student   common",
        "test queries   1,234    0.67        0.50     1.00",
    ]


def test_a_stage_s_counts_are_words():
    counts = {"texts": 2332, "best_epoch": 1, "cut": 0.548, "by type": {"claim": {"drawn": 9}}}
    assert _said(counts) == ": texts 2,332, best epoch 1, cut 0.548"
    assert _said({}) == "" == _said({"by type": {}})


def test_the_loss_in_words():
    terms = {"listwise": {"weight": 1.0, "student_temperature": 0.06330812}, "infonce": {"weight": 0.1}}
    assert report.formula(terms) == "1 x listwise (student_temperature 0.0633) + 0.1 x infonce"


def test_the_bar_counts_epochs_from_one_and_leaves_out_lightning_s_number(monkeypatch):
    metrics = {"v_num": "0_", "loss": 0.234}
    monkeypatch.setattr(RichProgressBar, "get_metrics", lambda *_: metrics)
    bar = Bar()
    assert bar.get_metrics(None, None) == {"loss": 0.234}
    monkeypatch.setattr(Bar, "trainer", type("Trainer", (), {"max_epochs": 3}))
    assert bar._get_train_description(0) == "epoch 1 of 3"


@pytest.mark.parametrize("watched", [True, False])
def test_nobody_watches_a_file(watched, monkeypatch):
    console = Console(file=io.StringIO(), force_terminal=watched, force_interactive=watched)
    monkeypatch.setattr(rich, "_console", console)
    assert unwatched() is not watched
