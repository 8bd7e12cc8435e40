"""What a run, or a sweep, would build: how much there is to do, about how long it takes, and what it needs."""

import json
import math
import shutil
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.filesize import decimal
from rich.table import Table

from dense_retrieval.forecast import Amounts, Cost, Earlier
from dense_retrieval.stage import Step, reachable
from dense_retrieval.store import Store

_HIDDEN = ("bytes", "dimension")  # of what is to do
FILE = "plan.json"  # in a job's folder, until the sweep's plan is shown


@dataclass(frozen=True)
class Line:
    """One stage. What is not known is NaN.

    Attributes:
        state: "there", "to build", or "not needed": missing, but so is nothing that would read it.
        work: what it will count: rows, pairs, tokens, prompts; an estimate where its inputs are not built yet.
        seconds: by what the same work took on this machine for each unit: that of the same stage and models.
        size: bytes, likewise; of some stages by what they will write.
        memory: bytes at its peak, of the whole process, by a line through what earlier work took here.
    """

    key: str
    stage: str
    state: str
    work: dict[str, float]
    seconds: float
    size: float
    memory: float


def lines(store: Store, steps: Iterable[Step[Any]]) -> list[Line]:
    """All stages of some steps, inputs before what reads them; nothing is computed."""
    wanted = list(steps)
    missing: set[str] = set()

    def need(step: Step[Any]) -> None:
        """What a store would build."""
        if step.key not in missing and not store.has(step):
            missing.add(step.key)
            for below in step.inputs:
                need(below)

    for step in wanted:
        need(step)
    all_of = reachable(wanted)
    counted, earlier = Amounts(store), Earlier(store.root, all_of)
    found = []
    for key, step in all_of.items():
        state = "to build" if key in missing else "there" if store.has(step) else "not needed"
        work = counted(step)
        cost = earlier(step, work, counted) if state == "to build" else Cost()
        found.append(Line(key, step.stage.name, state, dict(work), *cost))
    return found


def of_sweep(folder: Path) -> list[Line]:
    """What the jobs of a sweep would build together, each stage once; their folders are removed again."""
    files = sorted(folder.glob(f"*/{FILE}"))
    plan = union(json.loads(file.read_text()) for file in files)
    for file in files:
        remove(file.parent)
    if plan:
        remove(folder)
    return plan


def remove(folder: Path) -> None:
    """What Hydra wrote for a command that only plans."""
    shutil.rmtree(folder / ".hydra", ignore_errors=True)
    for file in (folder / FILE, folder / "multirun.yaml", *folder.glob("*.log")):
        file.unlink(missing_ok=True)
    with suppress(OSError):  # something else is there
        folder.rmdir()


def union(plans: Iterable[Iterable[Mapping[str, Any]]]) -> list[Line]:
    """The stages of several jobs, each once; what one of them builds is to be built."""
    found: dict[str, Line] = {}
    for plan in plans:
        for line in (Line(**values) for values in plan):
            if line.key not in found or line.state == "to build":
                found[line.key] = line
    return list(found.values())


def write(plan: Iterable[Line], folder: Path) -> None:
    (folder / FILE).write_text(json.dumps([asdict(line) for line in plan]))


def table(plan: list[Line], title: str) -> Table:
    """What there is to do, and in its caption the total."""
    shown = Table(title=title, caption=total(plan), title_justify="left", caption_justify="left")
    for column in ("stage", "", "to do"):
        shown.add_column(column)
    for column in ("time", "memory", "disk"):
        shown.add_column(column, justify="right")
    for line in plan:
        todo = line.state == "to build"
        shown.add_row(
            line.stage,
            line.state,
            ", ".join(f"{_number(n)} {unit}" for unit, n in line.work.items() if unit not in _HIDDEN)
            if todo
            else "",
            _time(line.seconds) if todo else "",
            _size(line.memory) if todo else "",
            _size(line.size) if todo else "",
        )
    return shown


def total(plan: list[Line]) -> str:
    """``12 of 30 stages to build: 5 min (2 of unknown time), 40 MB (3 of unknown size),
    up to 3 GB of memory (1 of unknown memory)``"""
    todo = [line for line in plan if line.state == "to build"]
    if not todo:
        return f"all of {len(plan)} stages are there: nothing to build"
    seconds, size = ([line.seconds for line in todo], [line.size for line in todo])
    parts = [_together(seconds, sum, _time, "time"), _together(size, sum, _size, "size")]
    memory = [line.memory for line in todo]
    parts.append(_together(memory, max, lambda most: f"up to {_size(most)} of memory", "memory"))
    written = [line.work["tokens"] for line in todo if "written" in line.work]
    if written:
        parts.append(
            f"{_number(sum(written))} tokens for the language model, less what it has answered before"
        )
    return f"{len(todo)} of {len(plan)} stages to build: {', '.join(parts)}"


def _together(
    values: list[float], total: Callable[[list[float]], float], shown: Callable[[float], str], of: str
) -> str:
    known = [value for value in values if not math.isnan(value)]
    lacking = len(values) - len(known)
    return (shown(total(known)) if known else f"unknown {of}") + (
        f" ({lacking} of unknown {of})" if lacking and known else ""
    )


def _number(n: float) -> str:
    return "?" if math.isnan(n) else f"{n:,.0f}"


def _time(seconds: float) -> str:
    if math.isnan(seconds):
        return "unknown"
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def _size(size: float) -> str:
    return "unknown" if math.isnan(size) else decimal(int(size))
