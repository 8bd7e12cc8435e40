"""A comparison as text: for the terminal, in Markdown, in LaTeX."""

import pandas
from rich import box
from rich.table import Table

from dense_retrieval.comparison.comparison import Comparison
from dense_retrieval.evaluation.table import SHOWN, TUNED

ALPHA = 0.05  # of the corrected p-value


def note(comparison: Comparison) -> str:
    unshared = ", ".join(comparison.unshared)
    missing = f" Metrics that not every run has are left out: {unshared}." if unshared else ""
    return (
        f"Differences to {comparison.baseline} with 95 % bootstrap intervals; p: paired randomization test over "
        "the queries, Holm-corrected over the lines, each metric by itself; * is p < 0.05. Seeds are averaged; "
        f"± is their standard deviation.{missing}"
    )


def cells(comparison: Comparison, corpus: str) -> list[list[str]]:
    """A header, and a line a system."""
    main, *others = comparison.metrics[:SHOWN]
    of = {metric: of_metric(comparison, corpus, metric) for metric in (main, *others)}
    header = ["system", *comparison.columns, main, "difference", "p", *others, "seeds", "queries"]
    table = [header]
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
                str(line["seeds"]),
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


def corpora(comparison: Comparison) -> list[str]:
    """Those of the tables: the average too, if something was measured on all."""
    return comparison.table["corpus"].unique().tolist()


def terminal(comparison: Comparison) -> list[Table]:
    """One a corpus, and their average."""
    tables = []
    metrics = comparison.metrics[:SHOWN]
    for corpus in corpora(comparison):
        main, *others = (of_metric(comparison, corpus, metric) for metric in metrics)
        queries = main["queries"].max()
        title = f"{corpus}, {queries} queries"
        shown = Table(title=title, box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
        shown.add_column("system", overflow="fold")
        for name in (metrics[0], "difference", "p", *metrics[1:]):
            shown.add_column(name, no_wrap=True)
        for position, (_, line) in enumerate(main.iterrows()):
            few = f" ({line['queries']} queries)" if line["queries"] < queries else ""
            more = (other.iloc[position] for other in others)
            shown.add_row(
                line["name"] + few,
                value(line),
                difference(line),
                p_value(line["p_holm"]),
                *(f"{other['mean']:.3f}{star(other)}" for other in more),
            )
        tables.append(shown)
    return tables


def markdown(comparison: Comparison) -> str:
    parts = []
    for corpus in corpora(comparison):
        header, *body = cells(comparison, corpus)
        rule = ["---"] * len(header)
        parts.append(
            "\n".join([f"## {corpus}", "", *(f"| {' | '.join(li)} |" for li in (header, rule, *body))])
        )
    return "\n\n".join([*parts, note(comparison)]) + "\n"


def latex(comparison: Comparison) -> str:
    """A booktabs table of the main metric, a column a corpus; needs ``\\usepackage{booktabs}``.

    A superscript plus or minus marks what is significantly better or worse than the baseline.
    """
    names = corpora(comparison)
    main = comparison.table[comparison.table["metric"] == comparison.main]
    head = [*_escaped(["system", *comparison.columns]), *_escaped(names)]
    most = main.groupby("corpus")["queries"].max()
    rows = []
    for line in comparison.lines:
        settings = [str(line.settings.get(column, "")) for column in comparison.columns]
        body = _escaped([line.system if line.system != TUNED else "tuned", *settings])
        found = main[main["name"] == line.name].set_index("corpus")
        rows.append(body + [_latex_cell(found.loc[c], most[c]) if c in found.index else "--" for c in names])
    ends = " \\\\\n"
    return (
        f"% {comparison.main}, seeds averaged. ^{{+}} and ^{{-}}: better and worse than "
        f"{comparison.baseline} by a paired randomization test over the queries, p < {ALPHA}, Holm-corrected "
        "over the lines.\n"
        f"\\begin{{tabular}}{{{'l' * (1 + len(comparison.columns))}{'r' * len(names)}}}\n\\toprule\n"
        + " & ".join(head)
        + ends
        + "\\midrule\n"
        + "".join(" & ".join(row) + ends for row in rows)
        + "\\bottomrule\n\\end{tabular}\n"
    )


def _latex_cell(line: pandas.Series, queries: int) -> str:
    mark = ("+" if line["difference"] > 0 else "-") if star(line) else ""
    few = f" ({line['queries']} queries)" if line["queries"] < queries else ""
    return f"${line['mean']:.3f}{'^{' + mark + '}' if mark else ''}${few}"


def _system(line: pandas.Series) -> str:
    return "tuned" if line["system"] == TUNED else line["system"]


def _escaped(texts: list[str]) -> list[str]:
    replaced = {c: f"\\{c}" for c in "&%$#_{}"} | {"\\": r"\textbackslash{}"}
    replaced |= {"~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    return ["".join(replaced.get(c, c) for c in text) for text in texts]
