"""The queries that tuning moved most, with what was found for them before and after."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dense_retrieval.comparison.comparison import Comparison
from dense_retrieval.comparison.lines import Line
from dense_retrieval.evaluation.evaluate import tag
from dense_retrieval.records import Corpus, column

if TYPE_CHECKING:
    from datasets import Dataset

EACH = 4  # queries that gained most, and that lost most
SHOWN = 5  # passages of a ranking
CHARACTERS = 140  # of a passage


@dataclass(frozen=True)
class Found:
    """A passage in a ranking; ``relevant`` is None where the judgements are not at hand."""

    passage: str
    text: str
    relevant: bool | None


@dataclass(frozen=True)
class Moved:
    """A query, its main metric and best passages by the baseline and by the system."""

    query: str
    text: str
    before: float
    after: float
    ranking_before: list[Found]
    ranking_after: list[Found]


def moved(comparison: Comparison, line: Line, corpus: str) -> list[Moved]:
    """The queries with the largest gains, then those with the largest losses; of the first seed's rankings.

    Texts come from the run's corpus in the cache; where it is gone, ids stand alone.
    """
    difference = comparison.difference(line, corpus, comparison.main)
    baseline = comparison.baseline_of(line)
    if difference is None or baseline is None:
        return []
    ordered = difference.dropna().sort_values(kind="stable")
    chosen = [*ordered.index[::-1][:EACH], *ordered.index[:EACH]]
    chosen = [query for query in dict.fromkeys(chosen) if ordered[query] != 0]
    pairs = [_rankings(other, corpus, chosen) for other in (baseline, line)]
    texts = _Texts(line, corpus, chosen, {p for ranking in pairs for ids in ranking.values() for p in ids})
    return [
        Moved(
            query,
            texts.queries.get(query, ""),
            float(baseline.values[corpus].loc[query, comparison.main]),
            float(line.values[corpus].loc[query, comparison.main]),
            *([texts.found(query, passage) for passage in ranking.get(query, [])] for ranking in pairs),
        )
        for query in chosen
    ]


def _rankings(line: Line, corpus: str, queries: list[str]) -> dict[str, list[str]]:
    """Query id -> ids of its first passages, as the run file has them."""
    run = next(run for run in line.runs if run.corpus == corpus)
    file = run.folder / f"{tag(line.system)}.trec"
    if not file.is_file():
        return {}
    content = b"\n" + file.read_bytes()
    found = {}
    for query in queries:
        start = content.find(f"\n{query} Q0 ".encode()) + 1  # the lines of a query stand together
        text = content[start : start + 400 * SHOWN].decode(errors="ignore") if start else ""
        fields = [entry.split(" ") for entry in text.splitlines()[:SHOWN]]
        found[query] = [f[2] for f in fields if len(f) > 2 and f[0] == query]
    return found


class _Texts:
    """What is shown of some queries and passages."""

    def __init__(self, line: Line, corpus: str, queries: list[str], passages: set[str]) -> None:
        run = next(run for run in line.runs if run.corpus == corpus)
        folder, split = Path(run.facts.get("artifacts", {}).get("corpus", "")), run.facts["split"]
        self.queries: dict[str, str] = {}
        self.passages: dict[str, str] = {}
        self.relevant: set[tuple[str, str]] | None = None
        if not (folder / f"queries-{split}.arrow").is_file():
            return
        loaded = Corpus.load(folder)
        rows = _rows(loaded.queries[split], set(queries))
        self.queries = dict(
            zip(rows, loaded.queries[split].select(list(rows.values()))[:]["text"], strict=True)
        )
        found = _rows(loaded.passages, passages)
        columns: Any = loaded.passages.select(list(found.values()))[:]
        for name, text in zip(found, columns["text"], strict=True):
            self.passages[name] = text[:CHARACTERS] + "…" * (len(text) > CHARACTERS)
        qrels, name_of = loaded.qrels[split], {row: name for name, row in rows.items()}
        passage_of = {row: name for name, row in found.items()}
        self.relevant = {
            (name_of[query], passage_of[passage])
            for query, passage, relevance in zip(qrels.query, qrels.passage, qrels.relevance, strict=True)
            if relevance > 0 and query in name_of and passage in passage_of
        }

    def found(self, query: str, passage: str) -> Found:
        relevant = None if self.relevant is None else (query, passage) in self.relevant
        return Found(passage, self.passages.get(passage, ""), relevant)


def _rows(table: Dataset, ids: set[str]) -> dict[str, int]:
    """Id -> row, of some ids."""
    of_all = enumerate(chain.from_iterable(column(table, "id")))
    return {name: row for row, name in of_all if name in ids}
