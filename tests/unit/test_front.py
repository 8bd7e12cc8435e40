"""The command ``dense-retrieval``, and what ``--help`` says."""

import re
import sys
from pathlib import Path

import pytest
from omegaconf import MISSING

import dense_retrieval
from dense_retrieval import __main__ as front
from dense_retrieval import help, run
from dense_retrieval.checks import settings
from dense_retrieval.config import CONF, Config, TeacherTraining
from dense_retrieval.evaluate import _READ

DOC = "python -m dense_retrieval.run: what it does."


@pytest.fixture
def started(monkeypatch):
    """What a command line starts: the module, and its arguments."""
    found = []
    monkeypatch.setattr(front.runpy, "run_module", lambda name, **_: found.append((name, sys.argv[1:])))

    def start(*words: str):
        monkeypatch.setattr(sys, "argv", ["dense-retrieval", *words])
        front.main()
        return found

    return start


def test_each_command_is_a_module_and_gets_its_arguments(started):
    assert started("run", "data=fiqa", "--help") == [("dense_retrieval.run", ["data=fiqa", "--help"])]
    assert started("train-teacher")[1] == ("dense_retrieval.teacher.train", [])
    assert started("mteb", "runs/a")[2] == ("dense_retrieval.mteb", ["runs/a"])


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("rnu", "did you mean run?"),
        ("evalute", "did you mean evaluate?"),
        ("zzz", "choose one of run, evaluate, "),
    ],
)
def test_a_mistyped_command_is_one_line(started, word, said):
    with pytest.raises(SystemExit, match=re.escape(f"error: {word}: there is no such command; {said}")):
        started(word)


def test_the_overview_says_what_each_command_does(started, capsys):
    started("--help")
    lines = capsys.readouterr().out.splitlines()
    assert (
        "  run            from a corpus to a tuned student and a table that says whether it helped." in lines
    )
    listed = {words[0]: words[1:] for line in lines if line.startswith("  ") and (words := line.split())}
    there = {name for name in front.COMMANDS if front._file(name).is_file()}
    assert there <= set(listed) and all(listed[name] for name in there)
    started("--version")
    assert capsys.readouterr().out.strip() == dense_retrieval.__version__


def shown(*overrides: str, config: str = "config", schema: type = Config, read=None, doc: str = DOC) -> str:
    return help.text(config, schema, doc, overrides, read)


def flat(text: str) -> str:
    return " ".join(text.split())


def test_help_has_every_setting_with_value_meaning_and_range(monkeypatch):
    monkeypatch.setenv("COLUMNS", "118")
    text = shown()
    for name, field in settings(TeacherTraining):
        assert field.metadata["meaning"] in flat(shown(config="train_teacher", schema=TeacherTraining)), name
    lines = text.splitlines()
    assert "  trainer.weight_decay=0.01             of AdamW (0 or more)" in lines
    assert "  groups.teacher_top1=true              the teacher must rank it first" in lines
    assert (
        "  retriever.b=0.75                      BM25: how much a passage's length counts (0 to 1)" in lines
    )
    assert "  trainer.every_n_steps=null" in text and "  student.query_prefix=  " in text
    assert "  loss=       what is minimised: [combined] infonce listwise margin_mse ranknet" in lines
    assert lines[0] == "What it does." and "Usage: python -m dense_retrieval.run [GROUP=CHOICE]" in text


def test_help_names_no_schema_and_nothing_internal():
    text = shown()
    assert "schema" not in text and "_target_" not in text and "${" not in text and MISSING not in text
    groups = {file.parent.name for file in Path(CONF).glob("*/*.yaml")}
    for group in groups:
        assert f"  {group}=" in text, group


def test_help_is_of_the_settings_that_the_command_line_leads_to():
    assert "teacher.adapter=" in shown() and "teacher.adapter=" not in shown("teacher=rankt5_base")
    text = shown("teacher=rankt5_base", "trainer.batch_size=7")
    assert "teacher.template=" in text and "trainer.batch_size=7 " in text and "[rankt5_base]" in text


def test_help_of_a_command_that_reads_less(monkeypatch):
    text = shown(config="evaluate", read=_READ)
    assert "  student.path=" in text and "[hybrid]" in text
    assert not re.search(
        r"^  (trainer|loss|querytype|generator|groups|rounds|seed|logger)\b", text, re.MULTILINE
    )
    assert "teacher." not in text and "teacher.max_length=" in shown(
        "teacher=custom", config="evaluate", read=_READ
    )


def test_help_says_how_it_was_started(monkeypatch):
    monkeypatch.setattr(sys, "orig_argv", ["/bin/python", "/bin/dense-retrieval", "run", "--help"])
    assert "Usage: dense-retrieval run [GROUP=CHOICE]" in shown()
    monkeypatch.setattr(sys, "orig_argv", ["/bin/python", "-m", "dense_retrieval", "run", "--help"])
    assert "Usage: dense-retrieval run [GROUP=CHOICE]" in shown()


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_a_command_shows_it_and_does_nothing(monkeypatch, capsys, tmp_path, flag):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["run", "loss=listwise", flag])
    run.main()
    said = capsys.readouterr().out
    assert said.startswith("From a corpus to a tuned student") and "[listwise]" in said
    monkeypatch.setattr(sys, "argv", ["run", "los=listwise", flag])
    with pytest.raises(SystemExit, match=r"^error: los: there is no such setting; did you mean loss\?$"):
        run.main()
    assert not list(tmp_path.iterdir())
