"""The results of a run as a table, and what it says about the teacher."""

from dataclasses import dataclass

import numpy as np
from rich import box
from rich.table import Table

from dense_retrieval.evaluation import significance

UNTUNED, TUNED = "untuned student", "tuned student"
HYBRID = {UNTUNED: f"BM25 + {UNTUNED}", TUNED: f"BM25 + {TUNED}"}
REPEATED = f"{TUNED}, seed "  # and its number, of the trainings after the first
TESTED = {  # split -> whose queries these are, where they are not people's
    "synthetic": "Synthetic queries of held-out passages, which a language model wrote",
    "synthetic_dev": "Synthetic queries, which also chose the checkpoint",
}
QUERIES_ALONE = "Only queries are embedded by the tuned student: passages keep the untuned one's embeddings"
SHOWN = 3  # of a run's metrics, the main one first


@dataclass(frozen=True)
class Difference:
    """To the same queries' values of another system."""

    mean: float
    p_value: float  # paired t-test, two-sided
    n: int  # queries


@dataclass(frozen=True)
class SystemRow:
    """One system: its mean metrics, the main one first, and how they differ from the untuned student's."""

    system: str
    n: int  # queries
    means: dict[str, float]
    differences: dict[str, Difference]  # empty for the untuned student itself

    @property
    def main(self) -> str:
        """The name of the main metric."""
        return next(iter(self.means))


def rows(systems: dict[str, dict[str, np.ndarray]], baseline: str) -> list[SystemRow]:
    """A row a system, each compared with ``baseline`` on the queries that both have.

    Args:
        systems: name -> metric -> ``(Q,)`` values, NaN where a query was not evaluated.
    """
    table = []
    for name, metrics in systems.items():
        differences = {}
        if name != baseline:
            of = np.stack([values - systems[baseline][metric] for metric, values in metrics.items()])
            found = significance.mean([of]), significance.t_test([of]), (~np.isnan(of)).sum(1)
            columns = (column.tolist() for column in found)
            differences = dict(zip(metrics, map(Difference, *columns), strict=True))
        n = int((~np.isnan(next(iter(metrics.values())))).sum())
        table.append(SystemRow(name, n, {m: float(np.nanmean(v)) for m, v in metrics.items()}, differences))
    return table


def cell(row: SystemRow, metric: str) -> str:
    """``0.775  +0.066 (p<0.001)``"""
    if metric not in row.differences:
        return f"{row.means[metric]:.3f}"
    difference = row.differences[metric]
    p = "p<0.001" if difference.p_value < 0.001 else f"p={difference.p_value:.3f}"
    return f"{row.means[metric]:.3f}  {difference.mean:+.3f} ({p})"


def cells(table: list[SystemRow]) -> list[list[str]]:
    """A header, and a line a system: its name, its queries, and the metrics shown."""
    shown = list(table[0].means)[:SHOWN]
    lines = [[row.system, str(row.n), *(cell(row, metric) for metric in shown)] for row in table]
    return [["system", "queries", *shown], *lines]


def markdown(table: list[SystemRow]) -> str:
    header, *body = cells(table)
    rule = ["---", "---:", *["---"] * (len(header) - 2)]
    return "\n".join(f"| {' | '.join(line)} |" for line in (header, rule, *body)) + "\n"


def terminal(table: list[SystemRow], title: str) -> Table:
    shown = Table(
        title=title,
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        caption="differences and p-values (paired t-test) to the untuned student",
    )
    header, *body = cells(table)
    for name in header:
        shown.add_column(name, justify="right" if name == "queries" else "left")
    for line in body:
        shown.add_row(*line)
    return shown


def by_querytype(heldout: dict[str, list[SystemRow]], title: str) -> Table:
    """The main metric of each system, a line a query type."""
    first = next(iter(heldout.values()))
    main = first[0].main
    shown = Table(
        title=title,
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        caption=f"{main}; differences to the untuned student, paired t-test",
    )
    for name in ("query type", "queries", *(row.system for row in first)):
        shown.add_column(name)
    for kind, line in heldout.items():
        shown.add_row(kind, str(line[0].n), *(cell(row, main) for row in line))
    return shown


def headroom_warning(teacher: SystemRow) -> str | None:
    """Where the teacher ranks no better than the student, there is nothing to learn from it."""
    difference = teacher.differences[teacher.main]
    if difference.mean > 0:
        return None
    mean = teacher.means[teacher.main]
    return (
        f"the teacher reranks the untuned student's top passages to {teacher.main} {mean:.3f}, "
        f"the student alone reaches {mean - difference.mean:.3f} on the same {difference.n} queries: "
        "distilling from this teacher can hardly help here; choose another with teacher="
    )
