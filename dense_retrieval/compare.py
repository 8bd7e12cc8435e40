"""python -m dense_retrieval.compare RUN_OR_MULTIRUN...: finished runs side by side, with tests.

Runs that differ in their seed only are averaged. Every line is tested against a baseline, paired over the
queries. Left in the output folder: a page for the browser, and the tables as Markdown, LaTeX and CSV.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig
from rich.console import Console

from dense_retrieval import plan, sweep
from dense_retrieval.evaluation.table import UNTUNED
from dense_retrieval.records import InputError
from dense_retrieval.tracking import Tracker

if TYPE_CHECKING:
    from dense_retrieval.comparison.comparison import Comparison

log = logging.getLogger(__name__)


def compare(
    paths: list[Path], baseline: str = UNTUNED, metrics: Sequence[str] = ()
) -> tuple[Comparison, list[str]]:
    """The runs among and below some folders, and a line for each that cannot be compared.

    Args:
        metrics: which, the main one first; all if empty.

    Raises:
        InputError: no such folder, no finished run, no such baseline or metric.
    """
    from dense_retrieval.comparison.comparison import Comparison
    from dense_retrieval.comparison.runs import find, read_all

    runs, problems = read_all(find(paths))
    if problems and not runs:
        raise InputError(f"there is no finished run to compare: {next(iter(problems.values()))}")
    comparison = Comparison(runs, baseline, metrics=metrics)
    return comparison, [*problems.values(), *comparison.excluded.values()]


def write_comparison(
    paths: list[Path], output: Path, baseline: str = UNTUNED, metrics: Sequence[str] = ()
) -> None:
    """Compare; show the tables, write them and the page to a folder, and log them where the runs are.

    Raises:
        InputError: as :func:`compare`.
    """
    from dense_retrieval.comparison import page, tables

    comparison, problems = compare(paths, baseline, metrics)
    console = Console()
    for shown in tables.terminal(comparison, console):
        console.print(shown, highlight=False)
    console.print(tables.note(comparison), highlight=False, markup=False)
    for problem in problems:
        console.print(f"left out: {problem}", style="yellow", highlight=False, markup=False)
    output.mkdir(parents=True, exist_ok=True)
    (output / "comparison.md").write_text(tables.markdown(comparison), encoding="utf-8")
    (output / "comparison.tex").write_text(tables.latex(comparison), encoding="utf-8")
    comparison.table.to_csv(output / "comparison.csv", index=False)
    html = page.render(comparison, problems)
    (output / "comparison.html").write_text(html, encoding="utf-8")
    console.print(f"written: {output}/comparison.html, .md, .tex, .csv", markup=False)
    projects = [run.project for run in comparison.runs if run.project]
    if projects:
        of = paths[0].resolve().name
        name, group = f"comparison {of}", of if len(paths) == 1 else None
        settings = {"baseline": baseline, "runs": [str(run.folder) for run in comparison.runs]}
        tracker = Tracker(True, projects[0], name, group, settings, output)
        tracker.table("comparison", [*comparison.table], comparison.table.to_numpy().tolist())
        tracker.page("page", html)
        tracker.finish({})


class AfterSweep(Callback):
    """Compares the jobs of a sweep when the last has ended, and says which failed."""

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        folder = Path(config.hydra.sweep.dir)
        if planned := plan.of_sweep(folder):
            Console().print(plan.table(planned, "plan of all jobs, each stage once"))
            return
        failed = sorted(file.parent.name for file in folder.glob(f"*/{sweep.FAILURE}"))
        if config.hydra.job.name == "run" and any(folder.glob("**/metrics.json")):
            try:
                write_comparison([folder], folder / "comparison")
            except InputError as error:  # Hydra would make it a warning
                sys.exit(f"error: {error}")
            except Exception:
                log.exception("the comparison failed; the runs are all there")
                sys.exit(1)
        if failed:
            sys.exit(
                f"error: job {', '.join(failed)} failed, see above; the same command goes on with what is missing"
            )


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
        "--metrics",
        type=lambda names: names.split(","),
        default=[],
        help="which, with commas, the main one first (default: all that the runs have): nDCG@10,R@100",
    )
    parser.add_argument(
        "--output", type=Path, help="folder for the files; default: comparison/ in the first RUN"
    )
    given = parser.parse_args()
    try:
        write_comparison(
            given.runs, given.output or given.runs[0] / "comparison", given.baseline, given.metrics
        )
    except InputError as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        sys.exit(f"error: {error.filename} cannot be written: {error.strerror}")


if __name__ == "__main__":
    main()
