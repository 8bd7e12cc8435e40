"""How long duplicates take to find, and how much memory, beside the algorithm taken literally.

    python experiments/benchmarks/dedup.py --passages 200000

makes passages of random words, a tenth of them copies, beginnings or ends of others, on disk.
"""

import argparse
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
from datasets import Dataset

from dense_retrieval.corpus.dedup import comparable, duplicates
from dense_retrieval.records import read_table, write_table


def passages(n: int, seed: int) -> Dataset:
    rng = np.random.default_rng(seed)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    words = np.array(["".join(rng.choice(letters, rng.integers(2, 10))) for _ in range(20_000)])

    def rows():
        texts: list[list[str]] = []
        for i in range(n):
            if i % 10 or not texts:
                text = words[rng.integers(0, len(words), rng.integers(30, 200))].tolist()
            else:
                other = texts[rng.integers(len(texts))]
                text = [other, other[: len(other) // 2], other[len(other) // 2 :]][i // 10 % 3]
            texts = [*texts[-1000:], text]
            yield {"text": " ".join(text)}

    return Dataset.from_generator(rows)


def literal(texts: list[str], neighbours: int = 5) -> int:
    left = [(text, -row) for row, text in enumerate(map(comparable, texts)) if len(text) >= 10]
    stays = {row for _, row in left}
    for _ in range(2):
        left.sort()
        for i, (text, row) in enumerate(left):
            if any(text in other for other, _ in left[i + 1 : i + 1 + neighbours]):
                stays.discard(row)
        left = [(text[::-1], row) for text, row in left]
    return len(texts) - len(stays)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--passages", type=int, default=200_000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_table(passages(given.passages, given.seed), Path(folder) / "passages.parquet")
        table = read_table(Path(folder) / "passages.parquet")
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        start = time.perf_counter()
        found = len(duplicates(table))
        ours = time.perf_counter() - start
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        start = time.perf_counter()
        expected = literal(list(table["text"]))
        theirs = time.perf_counter() - start
    print(
        f"{given.passages} passages: {found} dropped, literally {expected}; {ours:.1f} s, "
        f"{given.passages / ours:,.0f} passages/s, {ours / theirs:.2f} times the literal algorithm's time; "
        f"{memory / 1024:.0f} MB more than before"
    )


if __name__ == "__main__":
    main()
