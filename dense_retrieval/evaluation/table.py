"""The results of a run as a table, and what it says about the teacher."""

from dataclasses import dataclass

import numpy as np
from rich.table import Table

from dense_retrieval.evaluation import significance

UNTUNED, TUNED = "untuned student", "tuned student"
SHOWN = ["nDCG@10", "R@100", "MRR@10"]


@dataclass(frozen=True)
class Difference:
    """To the same queries' values of another system."""

    mean: float
    p_value: float  # paired t-test, two-sided
    n: int  # queries


@dataclass(frozen=True)
class Row:
    """One system: its mean metrics, and how they differ from the untuned student's."""

    system: str
    n: int  # queries
    means: dict[str, float]
    differences: dict[str, Difference]  # empty for the untuned student itself


def rows(systems: dict[str, dict[str, np.ndarray]], baseline: str) -> list[Row]:
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
        n = int((~np.isnan(metrics["nDCG@10"])).sum())
        table.append(Row(name, n, {m: float(np.nanmean(v)) for m, v in metrics.items()}, differences))
    return table


def cell(row: Row, metric: str) -> str:
    """``0.775  +0.066 (p<0.001)``"""
    if metric not in row.differences:
        return f"{row.means[metric]:.3f}"
    difference = row.differences[metric]
    p = "p<0.001" if difference.p_value < 0.001 else f"p={difference.p_value:.3f}"
    return f"{row.means[metric]:.3f}  {difference.mean:+.3f} ({p})"


def cells(table: list[Row]) -> list[list[str]]:
    """System, queries, and the shown metrics, a list a row."""
    return [[row.system, str(row.n), *(cell(row, metric) for metric in SHOWN)] for row in table]


def markdown(table: list[Row]) -> str:
    lines = [["system", "queries", *SHOWN], ["---", "---:", *["---"] * len(SHOWN)], *cells(table)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def terminal(table: list[Row], title: str) -> Table:
    shown = Table(title=title, caption="differences and p-values (paired t-test) to the untuned student")
    shown.add_column("system")
    shown.add_column("queries", justify="right")
    for metric in SHOWN:
        shown.add_column(metric)
    for line in cells(table):
        shown.add_row(*line)
    return shown


def by_querytype(heldout: dict[str, list[Row]], title: str) -> Table:
    """nDCG@10 of each system, a line a query type."""
    shown = Table(title=title, caption="nDCG@10; differences to the untuned student, paired t-test")
    for name in ("query type", "queries", *(row.system for row in next(iter(heldout.values())))):
        shown.add_column(name)
    for kind, line in heldout.items():
        shown.add_row(kind, str(line[0].n), *(cell(row, "nDCG@10") for row in line))
    return shown


def headroom_warning(teacher: Row) -> str | None:
    """Where the teacher ranks no better than the student, there is nothing to learn from it."""
    difference = teacher.differences["nDCG@10"]
    if difference.mean > 0:
        return None
    student = teacher.means["nDCG@10"] - difference.mean
    return (
        f"the teacher reranks the untuned student's top passages to nDCG@10 {teacher.means['nDCG@10']:.3f}, "
        f"the student alone reaches {student:.3f} on the same {difference.n} queries: distilling from this "
        "teacher can hardly help here; choose another with teacher="
    )
