"""Seconds, memory and disk of each stage from reading a corpus to ranking, on a folder of make.py.

    python experiments/scale/measure.py FOLDER --cache CACHE [--kill 3] [OVERRIDE ...]

One process builds the stages in their order, as a run does; another one looks at its memory four times a second.

- CPU seconds: of all threads, user's and system's; on a busy machine they say more than the clock.
- memory: the most that a stage's process and its children had at one moment, as the kernel counts it (Pss: what several
  share is counted once). "own" is anonymous memory, which nothing but the process's end gives back; "all" has the
  memory-mapped files' pages too, which the kernel takes back when somebody needs the room.
- disk: of the artifact; "at most" that of the unfinished one too.
- ``--kill N``: the process is killed (SIGKILL) N times, each at a random moment, and started again. A stage that was
  killed says the seconds of all its attempts.
"""

import argparse
import json
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
from hydra import compose, initialize_config_dir

from dense_retrieval.chain import baselines, tests
from dense_retrieval.config import CONF
from dense_retrieval.pipeline import label
from dense_retrieval.prepare import prepare
from dense_retrieval.stage import Step
from dense_retrieval.store import Store
from dense_retrieval.views import untuned

MB = 2**20


def steps(folder: Path, cache: Path, overrides: list[str]) -> Iterator[tuple[str, Step]]:
    """What a run builds before it trains, and the untuned student's ranking: it is what a tuned one's costs."""
    with initialize_config_dir(CONF, version_base=None):
        config = compose(
            "config",
            [
                *("data=beir", f"data.path={folder / 'corpus'}", "data.text=text_only", "querytype=human"),
                *("student=custom", f"student.path={folder / 'student'}", "student.pooling=mean"),
                *("teacher=custom", f"teacher.path={folder / 'teacher'}", "teacher.max_length=128"),
                *("student.passage_length=128", "retriever=hybrid", "device=cpu", f"cache_dir={cache}"),
                *("groups.scored_before=2000", "student.engine=torch", *overrides),
            ],
        )
    part = prepare(config)
    labels = label(part, untuned(config), None)
    tested = tests(part, labels)
    found = labels.candidates.arguments
    ranked = list(baselines(part, tested).values())
    of = {
        "read": part.corpus,
        "duplicates": part.duplicates,
        "held out": part.heldout,
        "training queries": part.queries,
        "BM25 index": found["bm25"],
        "tokens": found["passage_embeddings"].inputs[0],
        "embeddings": found["passage_embeddings"],
        "index": found.get("index"),
        "of the queries": found["query_embeddings"],
        "candidates": labels.candidates,
        "teacher scores of 2,000 queries": labels.scores,
        "groups": labels.groups,
        "ranking by BM25": ranked[0],
        "ranking by the student": ranked[1],
    }
    return ((name, step) for name, step in of.items() if step is not None)


def build(folder: Path, cache: Path, overrides: list[str]) -> None:
    """Says before each stage its name and key, and at the end that it is done."""
    store = Store(cache)
    for name, step in steps(folder, cache, overrides):
        print(json.dumps([name, step.key]), flush=True)
        store.build(step)
    print(json.dumps(["", ""]), flush=True)


@dataclass
class Measured:
    key: str
    seconds: float = 0.0
    cpu: float = 0.0  # seconds
    own: float = 0.0  # bytes
    all: float = 0.0
    disk: float = 0.0


class Watch:
    """The stages of a process that says which one it is at."""

    def __init__(self, cache: Path) -> None:
        self.stages: dict[str, Measured] = {}
        self._cache = cache
        self._now: Measured | None = None
        self._since = self._cpu = 0.0

    def follow(self, process: subprocess.Popen) -> None:
        """Until it ends."""
        ended = threading.Event()
        sampling = threading.Thread(target=self._sample, args=(process.pid, ended))
        sampling.start()
        assert process.stdout is not None
        for line in process.stdout:
            if not line.startswith('["'):  # of a progress bar
                continue
            name, key = json.loads(line)
            self._stop(process.pid)
            if name:
                self._cpu, self._since = _cpu(process.pid), time.perf_counter()
                self._now = self.stages.setdefault(name, Measured(key))
        self._stop(process.pid)
        process.wait()
        ended.set()
        sampling.join()

    def _stop(self, pid: int) -> None:
        if self._now is not None:
            self._now.seconds += time.perf_counter() - self._since
            self._now.cpu += max(0.0, _cpu(pid) - self._cpu)
        self._now = None

    def _sample(self, pid: int, ended: threading.Event) -> None:
        while not ended.wait(0.25):
            now, memory = self._now, _memory(pid)
            if now is not None:
                now.own, now.all = max(now.own, memory[0]), max(now.all, memory[1])
                partial = self._cache / f"{now.key}.partial"
                now.disk = max(now.disk, _size(partial))


def _cpu(pid: int) -> float:
    """Seconds of a process, which may have ended but was not waited for, and of its children."""
    times = psutil.Process(pid).cpu_times()
    return times.user + times.system + times.children_user + times.children_system


def _memory(pid: int) -> tuple[float, float]:
    """Bytes of a process and its children: of anonymous memory, and all."""
    own = everything = 0.0
    try:
        processes = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    except psutil.Error:
        return 0.0, 0.0
    for process in processes:
        try:
            lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()[1:]
        except OSError:  # it has ended
            continue
        found = {name: float(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines)}
        own, everything = own + found["Pss_Anon"] * 1024, everything + found["Pss"] * 1024
    return own, everything


def _size(folder: Path) -> int:
    total = 0
    for file in folder.rglob("*") if folder.is_dir() else ():
        try:
            total += file.stat().st_size
        except OSError:  # renamed just now
            continue
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--kill", type=int, default=0, help="times that the process is killed")
    parser.add_argument(
        "--every", type=float, default=60, help="seconds at most until it is (default: %(default)s)"
    )
    parser.add_argument("--build", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("overrides", nargs="*")
    given = parser.parse_intermixed_args()
    if given.build:
        build(given.folder, given.cache, given.overrides)
        return
    watch, moments = Watch(given.cache), random.Random(given.kill)
    for attempt in range(given.kill + 1):
        process = subprocess.Popen([sys.executable, *sys.argv, "--build"], stdout=subprocess.PIPE, text=True)
        killed = threading.Timer(moments.uniform(0, given.every), process.kill)
        if attempt < given.kill:
            killed.start()
        try:
            watch.follow(process)
        finally:
            killed.cancel()
            process.kill()
        if process.returncode == 0:
            break
        print(f"killed in: {list(watch.stages)[-1] if watch.stages else 'its start'}", flush=True)
    if process.returncode:
        sys.exit(f"the process ended with {process.returncode}")
    print("| stage | CPU seconds | seconds | memory, own (MB) | all (MB) | disk (MB) | at most (MB) |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for name, of in watch.stages.items():
        size = _size(given.cache / of.key)
        cells = [f"{x / MB:,.0f}" for x in (of.own, of.all, size, max(of.disk, size))]
        print(f"| {name} | {of.cpu:,.1f} | {of.seconds:,.1f} | {' | '.join(cells)} |")
    total = [f"{sum(getattr(of, name) for of in watch.stages.values()):,.1f}" for name in ("cpu", "seconds")]
    most = [max(getattr(of, name) for of in watch.stages.values()) / MB for name in ("own", "all")]
    disk = sum(_size(given.cache / of.key) for of in watch.stages.values()) / MB
    print(f"| **all, the most** | {' | '.join(total)} | {most[0]:,.0f} | {most[1]:,.0f} | {disk:,.0f} | |")


if __name__ == "__main__":
    main()
