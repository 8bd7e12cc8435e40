"""A comparison as one HTML page that needs no server and no network."""

import json
from datetime import date
from pathlib import Path
from typing import Any

import jinja2
import vl_convert

from dense_retrieval.comparison import charts, tables
from dense_retrieval.comparison.comparison import Comparison
from dense_retrieval.comparison.lines import Line
from dense_retrieval.comparison.moved import moved
from dense_retrieval.evaluation.table import TUNED

_BEST = 12  # lines whose queries are shown one by one


def render(comparison: Comparison, problems: list[str]) -> str:
    """The page's HTML: tables, charts, what moved, the pipeline's yields, commands."""
    specs: dict[str, Any] = {}

    def chart(spec: dict[str, Any] | None) -> str | None:
        """The id of its place on the page."""
        if spec is None:
            return None
        specs[f"chart-{len(specs)}"] = spec
        return f"chart-{len(specs) - 1}"

    corpora = [
        {
            "name": corpus,
            "table": tables.cells(comparison, corpus),
            "differences": chart(charts.differences(comparison, corpus)),
            "curves": [chart(spec) for spec in charts.curves(comparison, corpus)],
            "querytypes": chart(charts.querytypes(comparison, corpus)),
            "outcomes": _outcomes(comparison, corpus),
            "moved": [
                (line.name, _seeds(comparison, line, corpus), moved(comparison, line, corpus))
                for line in _best(comparison, corpus)
            ],
            "yields": _yields(comparison, corpus),
        }
        for corpus in tables.corpora(comparison)
    ]
    folder = Path(__file__).parent
    environment = jinja2.Environment(
        autoescape=True, loader=jinja2.FileSystemLoader(folder), trim_blocks=True
    )
    return environment.get_template("page.html").render(
        comparison=comparison,
        corpora=corpora,
        note=tables.note(comparison),
        problems=problems,
        runs=[(str(run.folder), run.facts) for run in comparison.runs],
        today=date.today().isoformat(),
        # "</" would end the script element
        specs=json.dumps(specs).replace("</", "<\\/"),
        vega=vl_convert.javascript_bundle().replace("</script", "<\\/script"),  # type: ignore[call-arg]
    )


def _outcomes(comparison: Comparison, corpus: str) -> list[tuple[str, int, int, int]]:
    """Name, and the queries won, tied and lost against the baseline."""
    found: list[tuple[str, int, int, int]] = []
    for line in comparison.lines:
        difference = comparison.difference(line, corpus, comparison.main)
        if difference is not None:
            better, worse = int((difference > 0).sum()), int((difference < 0).sum())
            found.append((line.name, better, int((difference == 0).sum()), worse))
    return found


def _best(comparison: Comparison, corpus: str) -> list[Line]:
    lines = [line for line in comparison.lines if line.system == TUNED and corpus in line.values]
    best = sorted(lines, key=lambda line: -line.values[corpus][comparison.main].mean())[:_BEST]
    return [line for line in lines if line in best]


def _seeds(comparison: Comparison, line: Line, corpus: str) -> str:
    """What the numbers and the rankings of a query are of, where there are several seeds."""
    runs = [run for run in line.runs if run.corpus == corpus]
    if len(runs) < 2:
        return ""
    return f"{comparison.main} is the mean of {len(runs)} seeds; rankings of seed {runs[0].seed}"


def _yields(comparison: Comparison, corpus: str) -> list[tuple[str, list[list[str]]]]:
    """Of each training set the lines that it is of, and a table: a header, and a line a query type."""
    names: dict[str, list[str]] = {}
    for line in comparison.lines:
        run = next((run for run in line.runs if run.corpus == corpus and line.system == TUNED), None)
        if run is not None and "yields" in run.facts:
            names.setdefault(json.dumps(run.facts["yields"]), []).append(line.name)
    found = []
    for text, of in names.items():
        yields = json.loads(text)
        steps = list(
            dict.fromkeys(step for counts in yields.values() for step in counts if step != "dropped")
        )
        table = [["query type", *steps]]
        table += [[kind, *(str(counts.get(step, "")) for step in steps)] for kind, counts in yields.items()]
        table += [["all", *(str(sum(c.get(step, 0) for c in yields.values())) for step in steps)]]
        found.append((", ".join(of), table))
    return found
