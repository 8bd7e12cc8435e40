"""What some systems' rankings are worth on one test set."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dense_retrieval.evaluation import table
from dense_retrieval.evaluation.evaluate import per_query
from dense_retrieval.evaluation.rank import headroom_rows
from dense_retrieval.evaluation.table import REPEATED, TUNED, UNTUNED
from dense_retrieval.evaluation.verdict import Verdict, verdict
from dense_retrieval.records import CandidateList, Qrels


@dataclass(frozen=True)
class Measured:
    """Of each system its ranking ``(Q, K)``, and its metrics ``(Q,)``."""

    rankings: dict[str, CandidateList]
    values: dict[str, dict[str, np.ndarray]]

    def __or__(self, other: "Measured") -> "Measured":
        return Measured(self.rankings | other.rankings, self.values | other.values)

    @property
    def rows(self) -> list[table.SystemRow]:
        """A line a system, compared with the untuned student."""
        return table.rows(self.values, UNTUNED)

    @property
    def verdict(self) -> Verdict:
        """Whether the tuned student, of all seeds, is better than the untuned one."""
        main = next(iter(self.values[TUNED]))
        seeds = [of[main] for name, of in self.values.items() if name == TUNED or name.startswith(REPEATED)]
        return verdict(np.stack(seeds) - self.values[UNTUNED][main], main)

    def by_query(self, ids: Sequence[str], texts: Sequence[str]) -> tuple[list[str], list[list]]:
        """Columns and lines of a table: a line a judged query, its main metric by system.

        Args:
            ids, texts: of the Q queries.
        """
        values = [next(iter(of_system.values())) for of_system in self.values.values()]
        judged = np.flatnonzero(~np.isnan(values[0])).tolist()
        lines = [[ids[row], texts[row], *(v[row] for v in values)] for row in judged]
        return ["query", "text", *self.values], lines

    def by_type(self, querytypes: Sequence[str]) -> dict[str, list[table.SystemRow]]:
        """Query type -> a line a system; of Q types, one a query."""
        types = np.array(querytypes)
        of_type = {
            kind: {name: {m: v[types == kind] for m, v in of.items()} for name, of in self.values.items()}
            for kind in np.unique(types).tolist()
        }
        return {kind: table.rows(of, UNTUNED) for kind, of in of_type.items()}


def measure(
    qrels: Qrels,
    rankings: Mapping[str, CandidateList],
    metrics: Sequence[str],
    some: Mapping[str, int | None],
) -> Measured:
    """The metrics of rankings of the test queries.

    Args:
        metrics: names of :mod:`ir_measures`, the main one first.
        some: system -> how many queries it was asked for, see :func:`headroom_rows`; others for all.
    """
    values = {}
    for name, ranking in rankings.items():
        rows = headroom_rows(qrels, some[name]) if name in some else None
        values[name] = per_query(ranking, qrels, metrics, rows)
    return Measured(dict(rankings), values)
