"""python -m dense_retrieval.evaluate: what BM25 and a student find for a corpus's judged queries; nothing is trained.

``student=FOLDER`` is a run or a model's folder, ``retriever=bm25|dense|hybrid`` chooses what is tested, and
``teacher=NAME`` reranks. Stages and cache are those of ``dense_retrieval.run``. Several students are tested beside
each other: ``-m student=all_minilm,runs/first``.
"""

from __future__ import annotations

import json
import logging
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from dense_retrieval import needed, plan, results, sweep
from dense_retrieval.chain import by_words, ranked, reranked
from dense_retrieval.compare import AfterSweep
from dense_retrieval.config import Config
from dense_retrieval.corpus.read import test_split
from dense_retrieval.errors import command
from dense_retrieval.evaluation import evaluate, report, table
from dense_retrieval.evaluation.measure import measure
from dense_retrieval.evaluation.rank import hybrid_ranking
from dense_retrieval.follow import flush_denormal
from dense_retrieval.hardware import hardware
from dense_retrieval.nodes import corpora
from dense_retrieval.prepare import Searched
from dense_retrieval.records import CandidateList, InputError, TestSet
from dense_retrieval.stage import Step
from dense_retrieval.store import Store, commit, versions
from dense_retrieval.views import corpus_of, untuned

log = logging.getLogger(__name__)

_READ = (
    *("scale", "data", "retriever", "student", "teacher", "executor"),
    *("evaluation", "plan", "precision", "device", "cache_dir"),
)
BM25, STUDENT = "BM25", "student"
BOTH = f"{BM25} + {STUDENT}"


@command("evaluate", Config, _READ)
def main(config: Config) -> float:
    """One evaluation; returns the main metric of the student, or of BM25 alone."""
    job = HydraConfig.get()
    folder, store = Path(job.runtime.output_dir), Store(Path(config.cache_dir))
    configs = corpora(config)
    teacher = [] if OmegaConf.is_missing(config, "teacher") else [needed.teacher]
    student = [needed.student, needed.engine] if config.retriever.dense or teacher else []
    needed.require([*configs.values()], needed.corpus, *student, *teacher, needed.executor)
    described = {title: _described(config, of) for title, of in configs.items()}
    steps = [step for _, tested, systems in described.values() for step in (tested, *systems.values())]
    if config.plan:
        lines = plan.lines(store, steps)
        if job.mode == RunMode.MULTIRUN:
            plan.write(lines, folder)
        else:
            Console().print(plan.table(lines, "plan"))
            plan.remove(folder)
        return float("nan")
    if not all(map(store.has, steps)):
        flush_denormal()
        hardware(config).executor.prepare(config.device)
    settings: Any = OmegaConf.to_container(config, resolve=True)
    OmegaConf.save(OmegaConf.create(settings), folder / "config.yaml")
    choices: Any = job.runtime.choices
    overrides = list(job.overrides.task)
    facts = {
        "choices": {group: choice for group, choice in choices.items() if "/" not in group},
        "overrides": overrides,
        "inputs": sweep.inputs(settings),
        "command": " ".join(map(shlex.quote, ["python", "-m", "dense_retrieval.evaluate", *overrides])),
        "versions": versions(),
        "commit": commit(),
    }
    found = []
    for title, (of, tested, systems) in described.items():
        path = of.c.data.get("path")
        named = Path(path).stem if path else title.partition("-")[2] or choices.data
        facts |= {"corpus": named, "split": of.c.evaluation.split}
        rows = _tested(store, of, tested, systems, folder / title, facts)
        found.append(next(row for row in rows if row.system == _baseline(systems)))
    log.info("everything is in %s", folder)
    return float(np.mean([row.means[row.main] for row in found]))


def _described(config: Config, c: Config) -> tuple[Searched, Step[TestSet], dict[str, Step[CandidateList]]]:
    """A corpus, its test queries, and the ranking of each system that is asked for.

    Args:
        config: of the command.
        c: of the corpus, one of a mixture perhaps.

    Raises:
        InputError: a metric that there is not, queries that would have to be written.
    """
    evaluate.check(c.evaluation.metrics)
    if c.evaluation.split.startswith("synthetic"):
        raise InputError(
            f"evaluation.split={c.evaluation.split}: no queries are written here; choose test, dev or train, or use "
            "python -m dense_retrieval.run"
        )
    of = Searched(c, corpus_of(c))
    tested = test_split(of.corpus, split=c.evaluation.split)
    systems: dict[str, Step[CandidateList]] = {}
    if config.retriever.bm25:
        systems[BM25] = by_words(of, tested)
    if config.retriever.dense:
        systems[STUDENT] = ranked(of, tested, untuned(c))
    if len(systems) > 1:
        fused = hybrid_ranking(systems[BM25], systems[STUDENT], fusion_k=c.retriever.fusion_k)
        systems[BOTH] = fused
    if not OmegaConf.is_missing(config, "teacher"):
        first = systems.get(STUDENT) or systems[BM25]
        systems[f"teacher (reranks top {c.evaluation.headroom_k})"] = reranked(of, tested, first)
    return of, tested, systems


def _tested(
    store: Store,
    of: Searched,
    tested: Step[TestSet],
    systems: Mapping[str, Step[CandidateList]],
    folder: Path,
    facts: Mapping[str, Any],
) -> list[table.SystemRow]:
    """Build what is missing, write what there is of a corpus, and show its table."""
    store.build(of.corpus, tested, *systems.values())
    rankings = {name: store.load(step) for name, step in systems.items()}
    asked = {name: of.c.evaluation.headroom_queries for name in systems if name.startswith("teacher")}
    qrels = results.qrels(store, tested)
    measured = measure(qrels, rankings, of.c.evaluation.metrics, asked)
    baseline = _baseline(systems)
    rows = table.rows(measured.values, baseline)
    queries = results.column(store, tested, "queries", "id")
    passages = results.column(store, of.corpus, "passages", "id")
    folder.mkdir(exist_ok=True)
    report.write(folder, queries, passages, qrels, measured.rankings, measured.values, rows, facts)
    Console().print(_table(rows, f"{facts['corpus']}, {facts['split']} queries", baseline))
    return rows


def _table(rows: list[table.SystemRow], title: str, baseline: str) -> Any:
    shown = table.terminal(rows, title)
    shown.caption = f"differences and p-values (paired t-test) to {baseline}" if len(rows) > 1 else None
    return shown


def _baseline(systems: Iterable[str]) -> str:
    """The student, the first of several; BM25 where there is none."""
    names = list(systems)
    return next((name for name in names if not name.startswith((BM25, "teacher"))), names[0])


class AfterEvaluations(AfterSweep):
    """Shows the students of a sweep beside each other, a table for each corpus."""

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        folder = Path(config.hydra.sweep.dir)
        files = [*folder.glob("*/metrics.json"), *folder.glob("*/*/metrics.json")]  # the latter of mixtures
        jobs = sorted((file.parent for file in files), key=lambda job: int(job.relative_to(folder).parts[0]))
        lines = []
        for title, systems in beside_each_other(jobs).items():
            baseline = _baseline(systems)
            rows = table.rows(systems, baseline)
            Console().print(_table(rows, title, baseline))
            lines += [
                f"{title}; differences and p-values (paired t-test) to {baseline}:\n",
                table.markdown(rows),
            ]
        if lines:
            (folder / "evaluation.md").write_text("\n".join(lines), encoding="utf-8")
        super().on_multirun_end(config, **kwargs)


def beside_each_other(folders: Sequence[Path]) -> dict[str, dict[str, dict[str, np.ndarray]]]:
    """Corpus and split -> system -> metric -> ``(Q,)`` values of evaluations; NaN where a query was not evaluated.

    A student is called by the overrides in which its evaluation differs from the others. What all have in common,
    like BM25, is there once, and so are only the metrics that all have.
    """
    import pandas

    facts = [json.loads((folder / "metrics.json").read_text()) for folder in folders]
    shared = set.intersection(*(set(of["overrides"]) for of in facts)) if facts else set()
    frames: dict[str, dict[str, pandas.DataFrame]] = {}
    for folder, of in zip(folders, facts, strict=True):
        own = " ".join(o for o in of["overrides"] if o not in shared and not o.startswith("data="))
        by_system = pandas.read_parquet(folder / "per_query.parquet").groupby("system", sort=False)
        for name, frame in by_system:
            label = str(name).replace(STUDENT, own or STUDENT)
            label += f", {own}" if own and label.startswith("teacher") else ""
            values = frame.set_index("query").drop(columns="system")
            frames.setdefault(f"{of['corpus']}, {of['split']} queries", {}).setdefault(label, values)
    found = {}
    for title, systems in frames.items():
        queries = pandas.concat(systems.values()).index.unique()
        metrics = [m for m in next(iter(systems.values())) if all(m in of for of in systems.values())]
        found[title] = {
            name: {metric: of[metric].reindex(queries).to_numpy() for metric in metrics}
            for name, of in systems.items()
        }
    return found


if __name__ == "__main__":
    main()
