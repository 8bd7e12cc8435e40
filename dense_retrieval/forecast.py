"""What stages will count, and what that will take: by the counts of their inputs, and by earlier work here."""

import json
import math
import platform
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dense_retrieval.stage import Counted, Folder, Member, Step
from dense_retrieval.store import Store

_SEARCHED = ("index", "bm25", "passage_embeddings")  # inputs that each query is compared with all of
_SEARCHES = ("bm25", "candidates", "ranking")


class Cost(NamedTuple):
    """Seconds, and bytes on disk and in memory at the peak; what is not known is NaN."""

    seconds: float = math.nan
    size: float = math.nan
    memory: float = math.nan


class Amounts:
    """What a folder counted or, if it is not built, will count."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.known: dict[str, Counted] = {}

    def __call__(self, folder: Folder[Any]) -> Counted:
        if isinstance(folder, Member):
            counted = Counted(self(folder.step))
            if self.store.has(folder.step):
                counted.path = self.store.root / folder.key
            return counted
        if not isinstance(folder, Step):
            outside = Counted()
            outside.path = folder.path
            return outside
        if folder.key not in self.known:
            if self.store.has(folder):
                record = json.loads((self.store.root / folder.key / "stage.json").read_text())
                self.known[folder.key] = _numbers(record["counts"])
            else:
                self.known[folder.key] = folder.forecast(self)
        return self.known[folder.key]


class Earlier:
    """What this machine needed before, for a unit of the same work.

    The same work is that of the same stage and, where models compute, of the same ones or what is tuned from them.
    A search takes as long as there are queries and passages.

    Args:
        root: of the store.
        steps: those that are asked for, and all that they are made from, by key.
    """

    def __init__(self, root: Path, steps: Mapping[str, Step[Any]]) -> None:
        self.inputs = {key: step.made_from["inputs"] for key, step in steps.items()}
        self.totals: dict[Any, list[float]] = {}  # work and seconds, of work that is the same
        self.sizes: dict[tuple[str, str], list[float]] = {}  # work and bytes
        self.peaks: dict[Any, list[tuple[float, float]]] = {}
        records = _records(root)
        self.inputs |= {key: record["inputs"] for key, record in records.items()}
        for record in records.values():
            self._add(record, records)

    def __call__(self, step: Step[Any], work: Counted, counted: Callable[[Folder[Any]], Counted]) -> Cost:
        """What some work of a step takes; ``counted`` says what its inputs count."""
        if not work:
            return Cost()
        unit = next(iter(work))
        same = step.stage.name, unit, self._models(step.made_from["inputs"])
        searches = step.stage.name in _SEARCHES
        searched = [step.arguments.get(name) for name in _SEARCHED] if searches else []
        passages = _passages(step.stage.name, map(counted, filter(None, searched)))
        n, seconds = self.totals.get(same, (0.0, 0.0))
        kept = _kept(work)
        m, size = self.sizes.get((step.stage.name, kept), (0.0, 0.0))
        measured = work[kept] * size / m if m else math.nan
        return Cost(
            work[unit] * passages * seconds / n if n else math.nan,
            measured if math.isnan(work["bytes"]) else work["bytes"],
            peak(self.peaks.get(same, []), passages if passages > 1 else work[unit]),
        )

    def _add(self, record: Mapping[str, Any], records: Mapping[str, Mapping[str, Any]]) -> None:
        name, counts = record["stage"], _numbers(record["counts"])
        size = sum(output["size"] for output in record["outputs"].values())
        keys = [record["inputs"].get(searched) for searched in _SEARCHED]
        passages = _passages(name, (_numbers(records[key]["counts"]) for key in keys if key in records))
        for unit, n in counts.items():
            if n > 0:
                total = self.sizes.setdefault((name, unit), [0.0, 0.0])
                total[:] = total[0] + n, total[1] + size
            if n > 0 and record["host"] == platform.node() and not math.isnan(passages):
                same = name, unit, self._models(record["inputs"])
                total = self.totals.setdefault(same, [0.0, 0.0])
                total[:] = total[0] + n * passages, total[1] + record["seconds"]
                if memory := record.get("memory"):
                    self.peaks.setdefault(same, []).append((passages if passages > 1 else n, memory))

    def _models(self, inputs: Mapping[str, str]) -> frozenset[str]:
        """The weights that a stage computes with; of a tuned student those that it was tuned from."""
        found: set[str] = set()
        for name, key in inputs.items():
            if name.partition(" ")[0] in ("weights", "model"):
                tuned = self.inputs.get(key.partition("/")[0])
                found |= {key} if tuned is None else self._models(tuned)
        return frozenset(found)


def peak(measured: list[tuple[float, float]], n: float) -> float:
    """Bytes in memory at some amount of work: a process's own, and so many for each unit.

    NaN beyond ten times the most work that was measured; beyond twice, where no amounts that differ threefold say
    what a unit takes.

    Args:
        measured: earlier amounts, and the bytes of each.
    """
    done, peaks = [amount for amount, _ in measured], [memory for _, memory in measured]
    if not done or not n <= 10 * max(done):
        return math.nan
    if max(done) < 3 * min(done):
        return max(peaks) if n <= 2 * max(done) else math.nan
    each, own = np.polyfit(done, peaks, 1)
    return max(float(own + each * n), min(peaks)) if each > 0 else max(peaks)


def _records(root: Path) -> dict[str, dict[str, Any]]:
    """The records of all stages in a cache, by key; not those from before, or damaged."""
    found = {}
    for file in root.glob("*/stage.json"):
        try:
            record = json.loads(file.read_text())
            if all(isinstance(record[name], dict) for name in ("counts", "outputs", "inputs")):
                float(record["seconds"]), record["host"], record["stage"]
                sum(output["size"] for output in record["outputs"].values())
                found[file.parent.name] = record
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
    return found


def _numbers(counts: Mapping[str, Any]) -> Counted:
    return Counted({name: value for name, value in counts.items() if isinstance(value, int | float)})


def _kept(work: Mapping[str, float]) -> str:
    """The unit that what is written grows with."""
    return "texts" if "texts" in work else "pairs" if "pairs" in work else next(iter(work))


def _passages(stage: str, searched: Iterable[Counted]) -> float:
    """How many each query of a search is compared with; 1 of another stage, NaN if it is not known."""
    if stage not in _SEARCHES:
        return 1.0
    each = [of.get("passages", of["texts"]) for of in searched]
    return max(each, default=math.nan)
