"""BM25 beside bm25s' own compiled retrieval, in one run: speed, memory, and whether both find the same.

    python experiments/benchmarks/bm25.py --passages 100000 --queries 1000

makes passages of words that are as frequent as in the shipped articles; queries are the articles' descriptions.
Prints a JSON object a measure; ratios are ours over the peer's, the median of the repeats and their range.
"""

import argparse
import gzip
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bm25s
import numpy as np
import rich

import dense_retrieval
from dense_retrieval.candidates.bm25 import BM25

ARTICLES = Path(dense_retrieval.__file__).parent / "corpus" / "wikivital" / "articles.jsonl.gz"


def texts(passages: int, queries: int) -> tuple[list[str], list[str]]:
    rng = np.random.default_rng(0)
    with gzip.open(ARTICLES, "rt") as stream:
        articles = [json.loads(line) for line in stream]
    words = np.array([re.findall(r"\w+", article["text"]) for article in articles], dtype=object)
    lengths = rng.choice([len(of) for of in words], passages)
    drawn = np.array_split(rng.choice(np.concatenate(words), lengths.sum()), lengths.cumsum()[:-1])
    asked = [article["description"] for article in articles if article["description"]]
    return [" ".join(of) for of in drawn], [asked[i] for i in rng.choice(len(asked), queries)]


def tokens(of: list[str], **settings: Any) -> Any:
    return bm25s.tokenize(of, stopwords="en", show_progress=False, **settings)


def build_ours(passages: list[str], folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    BM25(passages).save(folder)


def build_peer(passages: list[str], folder: Path) -> None:
    index = bm25s.BM25(backend="numba")
    index.index(tokens(passages), show_progress=False)
    index.save(folder, show_progress=False)


def search_ours(folder: Path, k: int) -> Callable[[list[str]], tuple[np.ndarray, np.ndarray]]:
    index = BM25.load(folder)

    def search(queries: list[str]) -> tuple[np.ndarray, np.ndarray]:
        found = index.search(queries, k)
        return found.passages, found.scores

    return search


def search_peer(folder: Path, k: int) -> Callable[[list[str]], tuple[np.ndarray, np.ndarray]]:
    index = bm25s.BM25.load(folder, mmap=True, backend="numba", show_progress=False)

    def search(queries: list[str]) -> tuple[np.ndarray, np.ndarray]:
        return index.retrieve(tokens(queries, return_ids=False), k=k, n_threads=-1, show_progress=False)

    return search


def agreement(ours: tuple[np.ndarray, np.ndarray], peer: tuple[np.ndarray, np.ndarray]) -> float:
    """The share of queries with the same scores, to float32, and the same passages but for ties with the last."""
    same = 0
    for rows, scores, their_rows, their_scores in zip(*ours, *peer, strict=True):
        there, last = rows >= 0, max(scores[-1], 0.0) + 1e-4
        alike = np.allclose(np.where(there, scores, 0), their_scores, rtol=1e-5, atol=1e-5)
        same += alike and set(rows[scores > last]) == set(their_rows[their_scores > last])
    return same / len(ours[0])


def peak(what: str, given: argparse.Namespace, folder: Path) -> float:
    """MB at most of a process that does this alone."""
    command = [sys.executable, __file__, "--alone", what, "--folder", str(folder)]
    sizes = ["--passages", str(given.passages), "--queries", str(given.queries), "--k", str(given.k)]
    return float(subprocess.run([*command, *sizes], check=True, capture_output=True, text=True).stdout)


def alone(given: argparse.Namespace) -> None:
    action, _, who = given.alone.partition(" ")
    passages, queries = texts(given.passages if action == "build" else 1, given.queries)
    if action == "build":
        with tempfile.TemporaryDirectory() as folder:
            {"ours": build_ours, "peer": build_peer}[who](passages, Path(folder))
    elif action == "search":
        {"ours": search_ours, "peer": search_peer}[who](given.folder / who, given.k)(queries)
    # Not ru_maxrss, which begins with the memory of the process that started this one.
    status = Path("/proc/self/status").read_text()
    print(int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) / 1024)


def seconds(do: Callable[[], Any]) -> float:
    start = time.perf_counter()
    do()
    return time.perf_counter() - start


def line(measure: str, ours: list[float], peer: list[float], **rest: Any) -> None:
    ratios = np.array(ours) / np.array(peer)
    values = {
        "ours": np.median(ours),
        "peer": np.median(peer),
        "ratio": np.median(ratios),
        "ratio_low": ratios.min(),
        "ratio_high": ratios.max(),
    }
    rounded = {name: float(f"{value:.4g}") for name, value in values.items()}
    print(json.dumps({"measure": measure} | rounded | rest | {"repeats": len(ours)}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--passages", type=int, default=100_000)
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--k", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--builds", type=int, default=2)
    parser.add_argument("--alone", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    rich.reconfigure(quiet=True)  # no progress
    if given.alone:
        return alone(given)
    passages, queries = texts(given.passages, given.queries)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        built = [
            (
                seconds(lambda: build_ours(passages, folder / "ours")),
                seconds(lambda: build_peer(passages, folder / "peer")),
            )
            for _ in range(given.builds)
        ]
        memory = {f"peak_mb_{who}": round(peak(f"build {who}", given, folder)) for who in ("ours", "peer")}
        line("seconds to index", *map(list, zip(*built, strict=True)), **memory, agree=None)
        ours, peer = search_ours(folder / "ours", given.k), search_peer(folder / "peer", given.k)
        agree = agreement(ours(queries), peer(queries))  # and both are compiled
        searched = [
            (len(queries) / seconds(lambda: ours(queries)), len(queries) / seconds(lambda: peer(queries)))
            for _ in range(given.repeats)
        ]
        memory = {f"peak_mb_{who}": round(peak(f"search {who}", given, folder)) for who in ("ours", "peer")}
        line("queries a second", *map(list, zip(*searched, strict=True)), **memory, agree=agree)


if __name__ == "__main__":
    main()
