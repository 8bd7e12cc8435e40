"""What was computed once is found again, by this process and by others, also after a kill."""

import multiprocessing
import os
import signal
import sqlite3
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dense_retrieval.memo import Memo, key, memo_path
from dense_retrieval.queries.write import answers_path
from dense_retrieval.stage import Outside
from dense_retrieval.teacher.scores import scores_path


def test_what_is_put_is_found_by_the_next(tmp_path):
    path = tmp_path / "deep" / "scores.sqlite"
    with Memo(path) as memo:
        memo.put([(key("q", "p"), 0.1), (key("q", "r"), "text")])
        memo.put([(key("q", "r"), "newer")])
    with Memo(path) as memo:
        asked = [key("q", "p"), key("q", "r"), key("q", "nobody")]
        assert memo.get(asked) == {asked[0]: 0.1, asked[1]: "newer"}


def test_more_keys_than_sqlite_takes_at_once(tmp_path):
    keys = [key(str(i)) for i in range(25_000)]
    with Memo(tmp_path / "memo") as memo:
        memo.put((k, float(i)) for i, k in enumerate(keys))
        assert memo.get(keys) == {k: float(i) for i, k in enumerate(keys)}


@given(st.lists(st.lists(st.text(), max_size=3), min_size=2, max_size=2, unique_by=tuple))
@settings(max_examples=50, deadline=None)
def test_different_texts_have_different_keys(texts):
    assert key(*texts[0]) != key(*texts[1])


def test_settings_have_memos_of_their_own(tmp_path):
    one = memo_path(tmp_path, "scores", {"max_length": 128, "teacher": "a"})
    assert one == memo_path(tmp_path, "scores", {"teacher": "a", "max_length": 128})
    assert one != memo_path(tmp_path, "scores", {"max_length": 256, "teacher": "a"})


def _puts_and_dies(path):
    with Memo(path) as memo:
        memo.put([(key("kept"), 1.0)])
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_kill_keeps_what_was_put_and_frees_the_memo(tmp_path):
    process = multiprocessing.get_context("spawn").Process(target=_puts_and_dies, args=(tmp_path / "memo",))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    with Memo(tmp_path / "memo") as memo:
        assert memo.get([key("kept")]) == {key("kept"): 1.0}


def _computes_what_is_missing(path, opened, finish):
    with Memo(path) as memo:
        assert memo.get([key("there"), key("slow")]) == {key("there"): 1.0}
        opened.set()
        finish.wait(30)
        memo.put([(key("slow"), 2.0)])


def test_only_who_misses_a_value_waits_for_the_process_that_computes(tmp_path, caplog):
    path, context = tmp_path / "memo", multiprocessing.get_context("spawn")
    with Memo(path) as memo:
        memo.put([(key("there"), 1.0)])
    opened, finish = context.Event(), context.Event()
    process = context.Process(target=_computes_what_is_missing, args=(path, opened, finish))
    process.start()
    assert opened.wait(30)
    with caplog.at_level("INFO"), Memo(path) as memo:
        assert memo.get([key("there"), key("there")]) == {key("there"): 1.0}
        assert not caplog.messages
        threading.Timer(0.5, finish.set).start()
        assert memo.get([key("slow"), key("there")]) == {key("slow"): 2.0, key("there"): 1.0}
        assert "waiting for the process that is writing it" in caplog.text
    process.join()
    assert process.exitcode == 0


def _counts_up(path, n):
    with Memo(path) as memo:
        memo.get([key("never")])
        memo.put([(key(str(n)), n)])


def test_many_that_begin_at_once_make_one_memo(tmp_path):
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_counts_up, args=(tmp_path / "memo", n)) for n in range(8)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    with Memo(tmp_path / "memo") as memo:
        assert memo.get([key(str(n)) for n in range(8)]) == {key(str(n)): n for n in range(8)}


def test_an_interrupted_put_leaves_the_memo_as_it_was(tmp_path):
    def items():
        yield key("first"), 1.0
        raise KeyboardInterrupt

    with Memo(tmp_path / "memo") as memo:
        with pytest.raises(KeyboardInterrupt):
            memo.put(items())
        assert memo.get([key("first")]) == {}
        memo.put([(key("second"), 2.0)])
        assert memo.get([key("second")]) == {key("second"): 2.0}
    assert sqlite3.connect(tmp_path / "memo").execute("SELECT count(*) FROM memo").fetchone() == (1,)


@pytest.mark.parametrize(
    "harm",
    [
        lambda content: content[: len(content) // 2],
        lambda content: b"",
        lambda content: content[:100] + bytes(len(content) - 100),
        lambda content: b"no database" + content[11:],
    ],
    ids=["truncated", "emptied", "zeroed", "another header"],
)
def test_a_damaged_memo_is_set_aside_and_begun_anew(tmp_path, harm, caplog):
    path = tmp_path / "scores.sqlite"
    with Memo(path) as memo:
        memo.put((key(str(i)), float(i)) for i in range(3000))
    path.write_bytes(harm(path.read_bytes()))
    with Memo(path) as memo:
        found = memo.get([key("1"), key("2999")])
        assert found.items() <= {key("1"): 1.0, key("2999"): 2999.0}.items()
        memo.put([(key("1"), 1.0)])
        assert memo.get([key("1")]) == {key("1"): 1.0}
    assert "is damaged" in caplog.text and (tmp_path / "scores.damaged").exists()


def test_a_value_that_was_changed_is_missing(tmp_path, caplog):
    """Each bit of the file in turn: what is found is what was put."""
    path = tmp_path / "memo.sqlite"
    put = {key("score"): 0.25, key("answer"): "What is kale?"}
    with Memo(path) as memo:
        memo.put(put.items())
    content = path.read_bytes()
    start = content.index(b"What is kale?")
    for position in range(start - 60, start + 13):
        path.write_bytes(content[:position] + bytes([content[position] ^ 4]) + content[position + 1 :])
        with Memo(path) as memo:
            assert memo.get(list(put)).items() <= put.items()
    assert "are not those that were written" in caplog.text


def test_a_memo_from_before_checksums_is_read_on(tmp_path):
    path = tmp_path / "memo.sqlite"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE memo (key BLOB PRIMARY KEY, value) WITHOUT ROWID")
    connection.execute("INSERT INTO memo VALUES (?, ?)", (key("old"), 0.5))
    connection.commit()
    connection.close()
    with Memo(path) as memo:
        memo.put([(key("new"), 0.75)])
        assert memo.get([key("old"), key("new")]) == {key("old"): 0.5, key("new"): 0.75}


def test_the_names_of_memos_never_change(tmp_path):
    """Else answers and scores that a cache holds would be paid for again."""
    weights = {"path": Outside(tmp_path), "adapter": Outside(tmp_path)}
    for folder in weights.values():
        folder.key = "0" * 64
    teacher = {"_target_": "dense_retrieval.teacher.sequence_classifier.SequenceClassifier.load"}
    teacher |= {"max_length": 128, "trust_remote_code": False}
    assert scores_path(tmp_path, teacher, weights, False).name == "scores-2d3ece13012b5fe3.sqlite"
    backend = {"_target_": "dense_retrieval.queries.backends.openai.OpenAI", "model": "m", "url": "u"}
    backend |= {"temperature": 0.8, "top_p": 0.95, "max_tokens": 50, "extra_body": None, "retries": 5}
    assert answers_path(tmp_path, backend, None).name == "completions-74eb251effec82cc.sqlite"


def test_answers_kept_under_auto_are_taken_over(tmp_path):
    backend = {"_target_": "t", "temperature": 0.8, "top_p": 0.95, "max_tokens": 50}
    with Memo(answers_path(tmp_path, backend | {"dtype": "auto"}, None)) as memo:
        memo.put([(key("asked"), "answer")])
    with Memo(answers_path(tmp_path, backend | {"dtype": "float32"}, None)) as memo:
        assert memo.get([key("asked")]) == {key("asked"): "answer"}
    with Memo(answers_path(tmp_path, backend | {"dtype": "bfloat16"}, None)) as memo:
        assert memo.get([key("asked")]) == {}
