"""A comparison as text: for the terminal, in Markdown, in LaTeX."""

from collections.abc import Sequence

import pandas
from rich import box
from rich.console import Console, RenderableType
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table

from dense_retrieval.comparison.comparison import Comparison
from dense_retrieval.comparison.settings import shown
from dense_retrieval.evaluation.table import SHOWN, TUNED

ALPHA = 0.05  # of the corrected p-value


def note(comparison: Comparison) -> str:
    unshared = ", ".join(comparison.unshared)
    missing = f" Metrics that not every run has are left out: {unshared}." if unshared else ""
    compared = comparison.table["seeds_compared"].dropna()
    of_one = "intervals are bootstrapped and p is of the paired randomization test, both over the queries"
    of_several = "intervals and p (t-test) are over the queries and the seeds, as if both were drawn anew"
    if (compared > 1).any():
        tests = (
            f"Of several seeds, which are averaged, {of_several}; of one seed {of_one} alone. "
            "± is the standard deviation over the seeds."
        )
    else:
        tests = f"Of one seed: {of_one}, and say nothing of another seed."
    return (
        f"Differences to {comparison.baseline} with 95 % intervals; p is Holm-corrected over the lines, each metric "
        f"by itself; * is p < 0.05. {tests}{missing}"
    )


def choices(comparison: Comparison) -> list[tuple[str, str]]:
    """``loss=infonce``, and what that sets otherwise than the other choices do."""
    found: dict[str, str] = {}
    for group, names in comparison.follow.items():
        for run in comparison.runs:
            values = (f"{name}={shown(run.settings.get(name))}" for name in names)
            found.setdefault(f"{group}={run.settings[group]}", " ".join(values))
    return list(found.items())


def cells(comparison: Comparison, corpus: str, metrics: Sequence[str]) -> list[list[str]]:
    """A header, and a line a system.

    Args:
        metrics: the main one first.
    """
    main, *others = metrics
    of = {metric: of_metric(comparison, corpus, metric) for metric in (main, *others)}
    table = [["system", *comparison.columns, main, "difference", "p", *others, "seeds", "queries"]]
    for position in range(len(of[main])):
        line = of[main].iloc[position]
        table.append(
            [
                _system(line),
                *(str(line[column]) for column in comparison.columns),
                value(line),
                difference(line),
                p_value(line["p_holm"]),
                *(value(of[m].iloc[position]) + star(of[m].iloc[position]) for m in others),
                seeds(line),
                str(line["queries"]),
            ]
        )
    return table


def of_metric(comparison: Comparison, corpus: str, metric: str) -> pandas.DataFrame:
    """The part of the comparison's table that is of one corpus and metric."""
    table = comparison.table
    return table[(table["corpus"] == corpus) & (table["metric"] == metric)]


def value(line: pandas.Series) -> str:
    """``0.790 ±0.004``"""
    spread = f" ±{line['std']:.3f}" if pandas.notna(line["std"]) else ""
    return f"{line['mean']:.3f}{spread}"


def difference(line: pandas.Series) -> str:
    """``+0.069 [+0.055, +0.083]*``"""
    if pandas.isna(line["difference"]):
        return ""
    return f"{line['difference']:+.3f} [{line['low']:+.3f}, {line['high']:+.3f}]{star(line)}"


def p_value(p: float) -> str:
    if pandas.isna(p):
        return ""
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def star(line: pandas.Series) -> str:
    return "*" if line["p_holm"] < ALPHA else ""


def seeds(line: pandas.Series) -> str:
    """``3``, or ``3 (1 compared)`` where the baseline has others."""
    few = line["seeds_compared"] < line["seeds"]
    return f"{line['seeds']}" + (f" ({line['seeds_compared']:.0f} compared)" if few else "")


def corpora(comparison: Comparison) -> list[str]:
    """Those of the tables: the average too, if something was measured on all."""
    return comparison.table["corpus"].unique().tolist()


def terminal(comparison: Comparison, console: Console) -> list[RenderableType]:
    """A table a corpus, and of their average; where names take too much room, they are below, by number."""
    few = {
        line["name"]: f"{line['name']} ({line['queries']} queries)"
        for corpus in corpora(comparison)
        for of in [of_metric(comparison, corpus, comparison.main)]
        for _, line in of[of["queries"] < of["queries"].max()].iterrows()
    }
    names = {line.name: few.get(line.name, line.name) for line in comparison.lines}
    tables = [_one(comparison, corpus, names) for corpus in corpora(comparison)]
    options = console.options.update(max_width=1000)
    if all(Measurement.get(console, options, table).maximum <= console.width for table in tables):
        return [*tables, *_key(choices(comparison))]
    numbers = {name: str(number) for number, name in enumerate(names, 1)}
    tables = [_one(comparison, corpus, numbers) for corpus in corpora(comparison)]
    return [*tables, *_key([(numbers[name], names[name]) for name in names]), *_key(choices(comparison))]


def _one(comparison: Comparison, corpus: str, labels: dict[str, str]) -> Table:
    metric, *more = comparison.metrics[:SHOWN]
    main, *others = (of_metric(comparison, corpus, name) for name in (metric, *more))
    title = f"{corpus}, {main['queries'].max()} queries"
    shown = Table(title=escape(title), box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    several = bool((main["seeds"] > 1).any())
    for name in ("system", metric, "difference", "p", *more, *["seeds"] * several):
        shown.add_column(escape(name), no_wrap=True)
    for position, (_, line) in enumerate(main.iterrows()):
        texts = [
            labels[line["name"]],
            value(line),
            difference(line),
            p_value(line["p_holm"]),
            *(f"{other.iloc[position]['mean']:.3f}{star(other.iloc[position])}" for other in others),
            *[seeds(line)] * several,
        ]
        shown.add_row(*map(escape, texts))
    return shown


def _key(of: list[tuple[str, str]]) -> list[RenderableType]:
    """What stands for what; nothing where nothing does."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for label, meaning in of:
        grid.add_row(escape(label), escape(meaning))
    return [grid, ""] if of else []


def markdown(comparison: Comparison) -> str:
    parts = []
    for corpus in corpora(comparison):
        header, *body = cells(comparison, corpus, comparison.metrics)
        rule = ["---"] * len(header)
        parts.append(
            "\n".join([f"## {corpus}", "", *(f"| {' | '.join(li)} |" for li in (header, rule, *body))])
        )
    follows = [f"`{choice}` is `{settings}`." for choice, settings in choices(comparison)]
    return "\n\n".join([*parts, note(comparison), *follows]) + "\n"


def latex(comparison: Comparison) -> str:
    """A booktabs table of all metrics, which ``--metrics`` chooses; needs ``\\usepackage{booktabs}``.

    A superscript plus or minus marks what is significantly better or worse than the baseline, ± the standard
    deviation over the seeds.
    """
    names, metrics = corpora(comparison), comparison.metrics
    known = comparison.table.set_index(["corpus", "metric", "name"])
    most = comparison.table.groupby("corpus")["queries"].max()
    rows = []
    for line in comparison.lines:
        settings = [str(line.settings.get(column, "")) for column in comparison.columns]
        row = _escaped([line.system if line.system != TUNED else "tuned", *settings])
        for corpus in names:
            for metric in metrics:
                at = corpus, metric, line.name
                few = most[corpus] if metric == metrics[0] else 0
                row.append(_latex_cell(known.loc[at], few) if at in known.index else "--")
        rows.append(row)
    left = ["system", *comparison.columns]
    if len(metrics) == 1:
        head = [_row(_escaped([*left, *names]))]
    elif len(names) == 1:
        head = [_row(_escaped([*left, *metrics]))]
    else:
        above = (f"\\multicolumn{{{len(metrics)}}}{{c}}{{{name}}}" for name in _escaped(names))
        ends = [
            (len(left) + 1 + n * len(metrics), len(left) + (n + 1) * len(metrics)) for n in range(len(names))
        ]
        rules = " ".join(f"\\cmidrule(lr){{{first}-{last}}}" for first, last in ends)
        head = [
            _row(["", *[""] * (len(left) - 1), *above]),
            rules,
            _row(_escaped([*left, *metrics * len(names)])),
        ]
    said = [*note(comparison).split("\n"), *(" is ".join(of) for of in choices(comparison))]
    lines = [
        f"% {', '.join(metrics)} on {', '.join(names)}; ^{{+}} and ^{{-}}: better and worse than "
        f"{comparison.baseline}, p < {ALPHA}.",
        *(f"% {text}" for text in said),
        f"\\begin{{tabular}}{{{'l' * len(left)}{'r' * len(names) * len(metrics)}}}",
        "\\toprule",
        *head,
        "\\midrule",
        *map(_row, rows),
        "\\bottomrule",
        "\\end{tabular}",
    ]
    return "\n".join(lines) + "\n"


def _row(texts: list[str]) -> str:
    return " & ".join(texts) + " \\\\"


def _latex_cell(line: pandas.Series, queries: int) -> str:
    mark = ("+" if line["difference"] > 0 else "-") if star(line) else ""
    few = f" ({line['queries']} queries)" if line["queries"] < queries else ""
    spread = f" \\pm {line['std']:.3f}" if pandas.notna(line["std"]) else ""
    return f"${line['mean']:.3f}{'^{' + mark + '}' if mark else ''}{spread}${few}"


def _system(line: pandas.Series) -> str:
    return "tuned" if line["system"] == TUNED else line["system"]


def _escaped(texts: list[str]) -> list[str]:
    replaced = {c: f"\\{c}" for c in "&%$#_{}"} | {"\\": r"\textbackslash{}"}
    replaced |= {"~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    return ["".join(replaced.get(c, c) for c in text) for text in texts]
