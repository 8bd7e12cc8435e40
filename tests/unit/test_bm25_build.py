"""The index that is made part by part against the one that bm25s makes at once, byte for byte."""

import os
import subprocess
import sys

import bm25s
import numpy as np
import pytest

from dense_retrieval.candidates import build
from dense_retrieval.candidates.bm25 import BM25

WORDS = ["cell", "star", "planet", "acid", "bird", "river", "the", "ångström", "of", "x"]


def random_texts(n: int, seed: int = 0) -> list[str]:
    rng = np.random.default_rng(seed)
    texts = [" ".join(rng.choice(WORDS, rng.integers(0, 12))) for _ in range(n)]
    return [f"{text} w{rng.integers(0, n)}" if i % 3 else text for i, text in enumerate(texts)]


@pytest.mark.parametrize(("k1", "b"), [(1.5, 0.75), (0.9, 0.4)])
@pytest.mark.parametrize("at_once", [1, 7, 1000])
def test_the_index_in_parts_is_bm25s_own(tmp_path, monkeypatch, k1, b, at_once):
    monkeypatch.setattr(build, "_POSTINGS_AT_ONCE", 5 * at_once)
    monkeypatch.setattr(build, "_READ_AT_ONCE", 3 * at_once)
    texts = random_texts(150)
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    theirs.mkdir()
    ours.mkdir()
    index = bm25s.BM25(k1=k1, b=b, method="lucene", dtype="float64")
    words = bm25s.tokenize(texts, stopwords="en", show_progress=False)
    index.index(words, create_empty_token=False, show_progress=False)
    index.save(theirs, show_progress=False)
    parts = [texts[i : i + at_once] for i in range(0, len(texts), at_once)]
    assert build.write_index(ours, parts, k1=k1, b=b) == len(words.vocab)
    assert sorted(file.name for file in ours.iterdir()) == sorted(file.name for file in theirs.iterdir())
    for file in theirs.iterdir():
        assert (ours / file.name).read_bytes() == file.read_bytes(), file.name


def test_an_index_in_parts_is_searched_as_one_in_memory(tmp_path):
    texts = random_texts(60, seed=1)
    build.write_index(tmp_path, [texts[:20], [], texts[20:]], k1=1.5, b=0.75)
    found, expected = (of.search(texts[:9], 5) for of in (BM25.load(tmp_path), BM25(texts)))
    np.testing.assert_array_equal(found.passages, expected.passages)
    np.testing.assert_array_equal(found.scores, expected.scores)


def test_of_no_word_nothing_is_written(tmp_path):
    assert build.write_index(tmp_path, [["the", ""]], k1=1.5, b=0.75) == 0
    assert not list(tmp_path.iterdir())


def test_a_jax_that_bm25s_tries_leaves_the_gpu_its_memory(tmp_path):
    jax = tmp_path / "jax"
    jax.mkdir()
    (jax / "__init__.py").write_text("")
    (jax / "lax.py").write_text(
        "import os\ndef top_k(*_):\n    print('preallocate', os.environ.get('XLA_PYTHON_CLIENT_PREALLOCATE'))\n"
    )
    others = {name: value for name, value in os.environ.items() if not name.startswith("XLA")}
    tried = subprocess.run(
        [sys.executable, "-c", "import dense_retrieval.candidates.bm25"],
        env=others | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert tried.stdout == "preallocate false\n"
