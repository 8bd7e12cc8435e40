"""python -m dense_retrieval.compare RUN_OR_MULTIRUN...: finished runs side by side, with tests.

Runs that differ in their seed only are averaged. Every line is tested against a baseline, paired over the
queries. Left in the output folder: a page for the browser, and the tables as Markdown, LaTeX and CSV.
"""

import argparse
import sys
from pathlib import Path

from rich.console import Console

from dense_retrieval.comparison import page, tables
from dense_retrieval.comparison.compare import Comparison
from dense_retrieval.comparison.runs import find, read_all
from dense_retrieval.evaluation.table import UNTUNED
from dense_retrieval.records import InputError


def compare(paths: list[Path], baseline: str = UNTUNED) -> tuple[Comparison, list[str]]:
    """The runs among and below some folders, and a line for each that cannot be compared.

    Raises:
        InputError: no such folder, no finished run, no such baseline.
    """
    runs, problems = read_all(find(paths))
    comparison = Comparison(runs, baseline)
    return comparison, [*problems.values(), *comparison.excluded.values()]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m dense_retrieval.compare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN_OR_MULTIRUN", help="folders under runs/")
    parser.add_argument(
        "--baseline",
        default=UNTUNED,
        help="a system (default: %(default)s), or settings of another line: loss=infonce",
    )
    parser.add_argument(
        "--output", type=Path, help="folder for the files; default: comparison/ in the first RUN"
    )
    given = parser.parse_args()
    try:
        comparison, problems = compare(given.runs, given.baseline)
    except InputError as error:
        sys.exit(f"error: {error}")
    console = Console()
    for table in tables.terminal(comparison):
        console.print(table)
    console.print(tables.note(comparison))
    for problem in problems:
        console.print(f"left out: {problem}", style="yellow", highlight=False)
    output = given.output or given.runs[0] / "comparison"
    output.mkdir(parents=True, exist_ok=True)
    (output / "comparison.md").write_text(tables.markdown(comparison), encoding="utf-8")
    (output / "comparison.tex").write_text(tables.latex(comparison), encoding="utf-8")
    (output / "comparison.html").write_text(page.render(comparison, problems), encoding="utf-8")
    comparison.table.to_csv(output / "comparison.csv", index=False)
    console.print(f"written: {output}/comparison.html, .md, .tex, .csv")


if __name__ == "__main__":
    main()
