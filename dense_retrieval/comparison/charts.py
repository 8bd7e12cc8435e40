"""Vega-Lite charts of a comparison."""

from typing import Any

import altair
import pandas

from dense_retrieval.comparison.comparison import Comparison
from dense_retrieval.comparison.lines import Line
from dense_retrieval.comparison.tables import ALPHA, of_metric
from dense_retrieval.evaluation.evaluate import canonical
from dense_retrieval.evaluation.table import TUNED

_OUTCOMES = ["better", f"p ≥ {ALPHA}", "worse"]
_SHAPES, _COLORS = ["triangle-up", "circle", "triangle-down"], ["#1a7f5a", "#7a7a7a", "#c2410c"]

# There are ten colours: with three dashes thirty lines look different.
_DASHES = altair.Scale(range=[[1, 0], [6, 3], [2, 2]])


def differences(comparison: Comparison, corpus: str) -> dict[str, Any] | None:
    """A point and an interval a line; None if nothing is compared."""
    table = of_metric(comparison, corpus, comparison.main).dropna(subset="difference")
    if not len(table):
        return None
    better, either, worse = _OUTCOMES
    sign = table["difference"].map(lambda d: better if d > 0 else worse)
    table = table.assign(outcome=sign.where(table["p_holm"] < ALPHA, either))
    title = f"{comparison.main}, difference to {comparison.baseline}"
    y = altair.Y("name:N", sort=table["name"].tolist(), title=None)
    base = altair.Chart(table[["name", "mean", "difference", "low", "high", "p_holm", "outcome"]])
    shape = altair.Shape("outcome:N", title=None, scale=altair.Scale(domain=_OUTCOMES, range=_SHAPES))
    color = altair.Color("outcome:N", title=None, scale=altair.Scale(domain=_OUTCOMES, range=_COLORS))
    tooltip = [altair.Tooltip(c, format=".3f") for c in ("mean", "difference", "low", "high", "p_holm")]
    intervals = base.mark_rule(strokeWidth=2).encode(
        x=altair.X("low:Q", title=title), x2="high:Q", y=y, color=color
    )
    points = base.mark_point(filled=True, size=90, opacity=1).encode(
        x="difference:Q", y=y, color=color, shape=shape, tooltip=["name", *tooltip]
    )
    zero = altair.Chart().mark_rule(strokeDash=[4, 4], color="#7a7a7a").encode(x=altair.datum(0))
    described = f"{title} on {corpus}, with 95 % intervals; the numbers are in the table"
    return _spec(altair.layer(zero, intervals, points).properties(height=altair.Step(26)), described)


def curves(comparison: Comparison, corpus: str) -> list[dict[str, Any]]:
    """The training loss by step, and the dev loss by epoch; a line a run."""
    train, dev = [], []
    for line in _tuned(comparison, corpus):
        for run in line.runs:
            if run.corpus == corpus:
                name = {"name": line.name, "seed": run.seed}
                train += [name | {"step": step, "loss": loss} for step, loss in run.facts.get("curve", [])]
                steps = enumerate(run.facts.get("training", {}).get("dev", []))
                dev += [name | {"epoch": epoch, "loss": terms["loss"]} for epoch, terms in steps if terms]
    made = []
    for points, x, kind, title in ((train, "step", "Q", "training loss"), (dev, "epoch", "O", "dev loss")):
        if points:
            chart = altair.Chart(pandas.DataFrame(points)).mark_line(point=len(points) < 200)
            legend = altair.Legend(symbolLimit=60)
            chart = chart.encode(
                x=altair.X(f"{x}:{kind}", axis=altair.Axis(format="d", tickMinStep=1)),
                y=altair.Y("loss:Q", title=title, scale=altair.Scale(zero=False)),
                color=altair.Color("name:N", title=None, legend=legend),
                strokeDash=altair.StrokeDash("name:N", title=None, legend=legend, scale=_DASHES),
                detail="seed:N",
                tooltip=["name", "seed", x, altair.Tooltip("loss", format=".4f")],
            )
            described = f"{title} by {x}, a line a run, on {corpus}"
            made.append(_spec(chart.properties(height=260), described))
    return made


def querytypes(comparison: Comparison, corpus: str) -> dict[str, Any] | None:
    """The main metric on synthetic queries of held-out passages: a line a system, a column a query type."""
    cells = []
    for line in comparison.lines:
        runs = [run for run in line.runs if run.corpus == corpus and run.facts.get("heldout")]
        for kind in dict.fromkeys(kind for run in runs for kind in run.facts["heldout"]):
            values = [
                value
                for run in runs
                for of in run.facts["heldout"].get(kind, [])
                if of["system"] == line.system
                for metric, value in of["means"].items()
                if canonical(metric) == comparison.main
            ]
            if values:
                cells.append({"name": line.name, "query type": kind, "value": sum(values) / len(values)})
    if not cells:
        return None
    table = pandas.DataFrame(cells)
    middle = (table["value"].min() + table["value"].max()) / 2
    base = altair.Chart(table).encode(
        x=altair.X("query type:N", title="query type tested on", axis=altair.Axis(orient="top")),
        y=altair.Y("name:N", sort=list(dict.fromkeys(table["name"])), title=None),
    )
    squares = base.mark_rect().encode(
        color=altair.Color("value:Q", title=comparison.main, scale=altair.Scale(scheme="viridis"))
    )
    numbers = base.mark_text().encode(
        text=altair.Text("value:Q", format=".3f"),
        color=altair.condition(altair.datum.value > middle, altair.value("black"), altair.value("white")),
    )
    described = f"{comparison.main} on synthetic queries of held-out passages of {corpus}, by query type"
    return _spec((squares + numbers).properties(height=altair.Step(28)), described)


def _tuned(comparison: Comparison, corpus: str) -> list[Line]:
    return [line for line in comparison.lines if line.system == TUNED and corpus in line.values]


def _spec(chart: Any, description: str) -> dict[str, Any]:
    chart = chart.properties(width="container", description=description, background="transparent")
    with altair.data_transformers.enable("default", max_rows=None):
        return chart.to_dict()
