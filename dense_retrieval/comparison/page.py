"""A comparison as one HTML page that needs no server and no network."""

import json
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import vl_convert

from dense_retrieval.comparison import charts, tables
from dense_retrieval.comparison.comparison import Comparison
from dense_retrieval.comparison.lines import Line
from dense_retrieval.comparison.moved import moved
from dense_retrieval.evaluation.table import SHOWN, TUNED, UNTUNED
from dense_retrieval.evaluation.verdict import verdict

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
            "table": tables.cells(comparison, corpus, comparison.metrics[:SHOWN]),
            "differences": chart(charts.differences(comparison, corpus)),
            "curves": [chart(spec) for spec in charts.curves(comparison, corpus)],
            "querytypes": chart(charts.querytypes(comparison, corpus)),
            "outcomes": _outcomes(comparison, corpus),
            "moved": [
                (line.name, _seeds(comparison, line, corpus), moved(comparison, line, corpus))
                for line in _best(comparison, corpus)
            ],
            "verdicts": _verdicts(comparison, corpus),
            "yields": _by_training_set(comparison, corpus, "yields", _yields),
            "difficulty": _by_training_set(comparison, corpus, "difficulty", _difficulty),
            "budgets": _by_training_set(comparison, corpus, "budget", _budget),
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
        choices=tables.choices(comparison),
        problems=problems,
        runs=list({str(run.folder): run.facts for run in comparison.runs}.items()),
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


def _verdicts(comparison: Comparison, corpus: str) -> list[tuple[str, str]]:
    """Of each tuned student, by the queries and the seeds, whether it is better than the untuned one."""
    found = []
    for line in comparison.lines:
        runs = [run for run in line.runs if run.corpus == corpus and UNTUNED in run.systems]
        if line.system == TUNED and runs:
            of = [run.systems[TUNED][comparison.main] - run.systems[UNTUNED][comparison.main] for run in runs]
            found.append((line.name, str(verdict(np.stack(of), comparison.main))))
    return found


def _by_training_set(
    comparison: Comparison, corpus: str, fact: str, columns: Callable[[Any], list[list[str]]]
) -> list[tuple[str, list[list[str]]]]:
    """Of each training set the lines that it is of, and a table of one of its runs' facts."""
    names: dict[str, list[str]] = {}
    for line in comparison.lines:
        run = next((run for run in line.runs if run.corpus == corpus and line.system == TUNED), None)
        if run is not None and fact in run.facts:
            names.setdefault(json.dumps(run.facts[fact]), []).append(line.name)
    return [(", ".join(of), columns(json.loads(text))) for text, of in names.items()]


def _yields(yields: dict[str, dict[str, Any]]) -> list[list[str]]:
    """A header, and a line a query type."""
    steps = list(dict.fromkeys(step for counts in yields.values() for step in counts if step != "dropped"))
    table = [[kind, *(str(counts.get(step, "")) for step in steps)] for kind, counts in yields.items()]
    total = ["all", *(str(sum(c.get(step, 0) for c in yields.values())) for step in steps)]
    return [["query type", *steps], *table, total]


def _difficulty(profiles: dict[str, dict[str, float]]) -> list[list[str]]:
    """A header, a line a query type, and one of the test queries."""
    measures = list(dict.fromkeys(name for of in profiles.values() for name in of))
    return [
        ["query type", *measures],
        *(
            [kind, *(f"{of[name]:.2f}" if name != "queries" else str(of[name]) for name in measures)]
            for kind, of in profiles.items()
        ),
    ]


def _budget(curve: list[dict[str, Any]]) -> list[list[str]]:
    """A header, and a line a part."""
    header = [
        "queries",
        "passages",
        f"{curve[0]['metric']} on {curve[0]['dev']} dev queries",
        "gain",
        "95 % interval",
    ]
    lines = [[str(of["queries"]), str(of["passages"]), f"{of['mean']:.3f}"] for of in curve]
    for line, of in zip(lines, curve, strict=True):
        known = of["gain"] is not None
        line += [f"{of['gain']:+.3f}", f"{of['low']:+.3f} to {of['high']:+.3f}"] if known else ["", ""]
    return [header, *lines]
