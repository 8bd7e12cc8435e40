"""python -m dense_retrieval.run: from a corpus to a tuned student and a table that says whether it helped."""

import json
import logging
import math
import shlex
import shutil
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console

from dense_retrieval import plan, ranks, results, scale, sweep
from dense_retrieval.budget import found_out, known
from dense_retrieval.chain import Chain, describe
from dense_retrieval.config import Config
from dense_retrieval.errors import command
from dense_retrieval.evaluation import report, table, vectors
from dense_retrieval.evaluation.card import model_card
from dense_retrieval.evaluation.learning_curve import Point
from dense_retrieval.evaluation.measure import Measured, measure
from dense_retrieval.evaluation.table import TUNED, UNTUNED
from dense_retrieval.follow import flush_denormal, follow
from dense_retrieval.hardware import asked_devices, hardware
from dense_retrieval.models import prefixes
from dense_retrieval.records import InputError
from dense_retrieval.stage import reachable
from dense_retrieval.store import Store, commit, versions
from dense_retrieval.tracking import Tracker
from dense_retrieval.training.curves import replay, training_loss
from dense_retrieval.views import tokenized, untuned

log = logging.getLogger(__name__)

_ENOUGH_DEV = 50  # queries: the interval of a mean nDCG is then about 0.1 wide


@command("config", Config)
def main(config: Config) -> float:
    """One run; returns the tuned student's main metric."""
    return ranks.together(lambda: _run(config), _follow)


def _follow(here: ranks.Ranks) -> float:
    """In a job for which a launcher starts several processes; the first says how it ended."""
    with suppress(SystemExit):
        follow(here)
    return math.nan


def _run(config: Config) -> float:
    job = HydraConfig.get()
    folder = Path(job.runtime.output_dir)
    if config.plan:
        return _plan(config, folder, job.mode == RunMode.MULTIRUN)
    devices, num_nodes, gpus = asked_devices(config)
    ranks.check(devices, num_nodes, gpus)
    if here := ranks.here():
        here.require(Path(config.cache_dir), cuda=gpus() is not None)
        here.job = config, HydraConfig.instance().cfg
    settings = _resolved(config)
    made_from = sweep.inputs(settings)
    if done := sweep.finished(folder, settings, made_from):
        log.info("finished before: %s", folder)
        return float(np.mean([next(iter(metrics["systems"][TUNED]["means"].values())) for metrics in done]))
    OmegaConf.save(OmegaConf.create(settings), folder / "config.yaml")
    group = folder.parent.name if job.mode == RunMode.MULTIRUN else None
    choices: Any = job.runtime.choices
    name = f"{choices.data} {choices.loss} {choices.querytype}"
    tracker = Tracker(config.logger.enabled, config.logger.project, name, group, settings, folder)
    store = Store(Path(config.cache_dir))
    chain = describe(config, tracker.log, known(store))
    if not all(map(store.has, chain.steps)):
        flush_denormal()
        hardware(config).executor.prepare(config.device)

    # What cannot be tested on is better known before queries are written.
    store.build(*chain.tests.values(), *(part.by_type for part in chain.parts.values() if part.by_type))
    _say_how_large(store, chain, choices.scale)
    curves: dict[str, list[Point]] = {}
    if any(part.spent for part in chain.parts.values()):
        chain = describe(config, tracker.log, found_out(store))
        curves = results.spent(store, chain)
    yields = {
        title: results.prepared(store, part, chain.labels[title]) for title, part in chain.parts.items()
    }
    before = {title: results.measured(store, chain, title, chain.before[title]) for title in chain.parts}
    costs = {
        title: results.engine_cost(store, chain, title, before[title].rankings[UNTUNED])
        for title in chain.by_torch
    }
    warnings = {title: table.headroom_warning(measured.rows[-1]) for title, measured in before.items()}
    for warning in filter(None, warnings.values()):
        log.warning("%s", warning)
    summary = _trained(store, chain, tracker)
    after = {title: results.measured(store, chain, title, chain.after[title]) for title in chain.parts}

    training = store.load(chain.student)
    shared = {
        "loss": summary["loss"],
        "training": summary,
        "curve": training_loss(training),
        "choices": {group: choice for group, choice in choices.items() if "/" not in group},
        "inputs": made_from,
        "command": " ".join(map(shlex.quote, ["python", "-m", "dense_retrieval.run", *job.overrides.task])),
        "versions": versions(),
        "commit": commit(),
        "passage_length": report.passage_length(training / "model"),
        "tune": config.student.tune,
    }
    rows: dict[str, list[table.SystemRow]] = {}
    verdicts: dict[str, str] = {}
    smaller: dict[str, list[vectors.VectorsRow]] = {}
    for title, part in chain.parts.items():
        path = part.c.data.get("path")
        facts = shared | {
            "corpus": Path(path).stem if path else title.partition("-")[2] or choices.data,
            "split": part.c.evaluation.split,
            "yields": yields[title],
            "headroom_warning": warnings[title],
            "engine": costs.get(title),
            "difficulty": results.difficulty(store, chain, title),
        }
        if title in chain.smaller:
            smaller[title] = results.smaller_vectors(store, chain, title)
            facts["vectors"] = [row.as_json() for row in smaller[title]]
            header, *lines = vectors.cells(smaller[title])
            tracker.table(f"{title} vectors".strip(), header, lines)
        if title in curves:
            facts["budget"] = [asdict(point) for point in curves[title]]
        measured = before[title] | after[title]
        facts["verdict"] = asdict(measured.verdict)
        verdicts[title] = str(measured.verdict)
        rows[title] = _reported(store, chain, title, measured, folder / title, facts, name)
        if title in smaller:
            Console().print(vectors.terminal(smaller[title], title))
        log.info("%s", " ".join(filter(None, (title, verdicts[title]))))
        header, *lines = table.cells(rows[title])
        tracker.table(f"{title} results".strip(), header, lines)
        asked = (results.column(store, chain.tests[title], "queries", name) for name in ("id", "text"))
        tracker.table(f"{title} queries".strip(), *measured.by_query(*asked))
    student = settings["student"] | prefixes(config)
    base = untuned(config).path
    card = model_card(settings | {"student": student}, rows, verdicts, shared, base, smaller, curves)
    if (training / "adapter").is_dir():
        shutil.copytree(training / "adapter", folder / "adapter", dirs_exist_ok=True)
    report.copy_model(training / "model", folder / "model", card, config.evaluation.query_length)
    if config.logger.model:
        tracker.model(folder / "model")
    tracker.finish(
        {
            "/".join(filter(None, (title, row.system, metric))): value
            for title, of_corpus in rows.items()
            for row in of_corpus
            for metric, value in row.means.items()
        }
    )
    if store.reused:
        log.info("from the cache: %s", ", ".join(store.reused))
    log.info("everything is in %s", folder)
    return float(np.mean([row.means[row.main] for of in rows.values() for row in of if row.system == TUNED]))


def _resolved(config: Config) -> Any:
    """The settings as JSON values; where one asks for what is missing, all that is missing is said."""
    try:
        return OmegaConf.to_container(config, resolve=True)
    except OmegaConfBaseException:
        describe(config, lambda *_: None)
        raise


def _plan(config: Config, folder: Path, sweep: bool) -> float:
    """Show what there is to do; of a sweep's job, leave it for :class:`dense_retrieval.compare.AfterSweep`."""
    store = Store(Path(config.cache_dir))
    chain = describe(config, lambda *_: None, known(store))
    lines = plan.lines(store, chain.steps)
    if sweep:
        plan.write(lines, folder)
    else:
        _say_how_large(store, chain, HydraConfig.get().runtime.choices["scale"], planned=True)
        Console().print(plan.table(lines, "plan"))
        plan.remove(folder)
    return math.nan


def _say_how_large(store: Store, chain: Chain, choice: str, planned: bool = False) -> None:
    """The size of each corpus's part, and what is cut of its passages; only if not planned are they read for it."""
    for title, part in chain.parts.items():
        tokens = tokenized(part.c, part.corpus, "passages")
        counts: dict[str, Any] = {}
        if not planned or store.has(tokens):
            store.build(tokens)
            counts = store.counts(tokens)
        if not planned and part.c.scale.name != "laptop" and not scale.on_gpu(part.c.device):
            log.warning(
                "scale=%s is meant for a GPU, and this runs on a CPU, whose size is scale=laptop", choice
            )
        log.info("%s", f"{title} {scale.line(part.c, choice, counts)}".strip())


def _trained(store: Store, chain: Chain, tracker: Tracker) -> dict[str, Any]:
    """How the student was trained."""
    before = set(store.built)  # what spent a budget too, whose curves were not logged
    store.build(*chain.students)
    training = store.load(chain.student)
    if chain.student.key not in store.built - before:
        replay(training, tracker.log)
    summary = json.loads((training / "training.json").read_text())
    log.info("loss: %s", report.formula(summary["loss"]["terms"]))
    n_dev = sum(int(store.load(of.groups).dev.sum()) for of in chain.labels.values())
    if 0 < n_dev < _ENOUGH_DEV and summary["epochs"] > 1:
        log.warning(
            "%d dev queries choose the epoch, and by fewer than %d it is chosen by chance; for more of them "
            "groups.dev_fraction= or querytype.total=",
            n_dev,
            _ENOUGH_DEV,
        )
    if summary["best_epoch"] == 0:
        log.warning(
            "no epoch was better on the dev queries: the tuned student is the untuned one. %d dev queries chose; for "
            "more of them groups.dev_fraction= or querytype.total=",
            n_dev,
        )
    return summary


def _reported(
    store: Store, chain: Chain, title: str, measured: Measured, folder: Path, facts: dict[str, Any], name: str
) -> list[table.SystemRow]:
    """Write what there is of a corpus, and show its table."""
    part, labels = chain.parts[title], chain.labels[title]
    by_type = {}
    if part.by_type:
        store.build(*chain.by_type[title].values())
        rankings = {system: store.load(step) for system, step in chain.by_type[title].items()}
        of_heldout = measure(results.qrels(store, part.by_type), rankings, part.c.evaluation.metrics, {})
        by_type = of_heldout.by_type(results.column(store, part.by_type, "queries", "querytype"))
    main = {"corpus": part.corpus, "queries": part.queries, "candidates": labels.candidates}
    main |= {"scores": labels.scores, "groups": labels.groups, "training": chain.student}
    main["test queries"] = chain.tests[title]
    facts |= {
        "heldout": {kind: [asdict(row) for row in rows] for kind, rows in by_type.items()},
        "artifacts": {of: str(store.root / step.key) for of, step in main.items()},
        "used": sorted(reachable(chain.steps)),
    }
    folder.mkdir(exist_ok=True)
    rows = measured.rows
    queries = results.column(store, chain.tests[title], "queries", "id")
    passages = results.column(store, part.corpus, "passages", "id")
    judged = results.qrels(store, chain.tests[title])
    report.write(folder, queries, passages, judged, measured.rankings, measured.values, rows, facts)
    queried = table.TESTED.get(part.c.evaluation.split, "")
    kept = table.QUERIES_ALONE if facts["tune"] == "queries" else ""
    Console().print(table.terminal(rows, ". ".join(filter(None, (f"{name} {title}".strip(), queried, kept)))))
    if by_type:
        Console().print(table.by_querytype(by_type, "synthetic queries of held-out passages"))
    return rows


def _start() -> None:
    try:
        ranks.together(main, follow)
    except InputError as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    _start()
