"""What was computed once is found again, by this process and by others, also after a kill."""

import multiprocessing
import os
import signal
import sqlite3

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dense_retrieval.memo import Memo, key, memo_path


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
