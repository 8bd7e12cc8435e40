"""The store of finished artifacts: built once, checked when opened, shared by processes."""

import functools
import gc
import hashlib
import json
import logging
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar, overload

from filelock import FileLock, Timeout

import dense_retrieval
from dense_retrieval import resident
from dense_retrieval.files import sha256, sync, written_through
from dense_retrieval.records import InputError
from dense_retrieval.stage import Built, Member, Step, key_of

log = logging.getLogger(__name__)

T = TypeVar("T")

FORMAT = 2  # of the cache's root and of its stage.json files
_LARGE = 64 * 2**20  # bytes; a larger file is read again only if its time or size has changed


class Store:
    """Artifacts under ``root``, each in a folder named by its step's key.

    A folder of that name is complete: it is filled under another name, written through to the disk, and then
    renamed. Its ``stage.json`` says what made it, and the SHA-256 of each file, which are checked when the folder
    is first opened in a process. What is damaged is said, and built again.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.used: dict[str, str] = {}  # key -> stage, of all artifacts asked for
        self.built: set[str] = set()  # keys of those made by this process
        require_format(root)

    def build(self, *steps: Step[Any]) -> None:
        """Run what is missing of some steps, and of what they need for it."""
        for step in steps:
            if step.key not in self.used:
                if not self._whole(step):
                    self._make(step)
                self.used[step.key] = step.stage.name

    def has(self, step: Step[Any]) -> bool:
        """Whether a step is built and undamaged."""
        folder = self.root / step.key
        return folder.exists() and damage(folder) is None

    @overload
    def open(self, step: Step[T]) -> Built[T]: ...
    @overload
    def open(self, step: Member) -> Built[Path]: ...
    def open(self, step: Step[Any] | Member) -> Built[Any]:
        """A step that was built, or a part of one."""
        whole = step.step if isinstance(step, Member) else step
        if whole.key not in self.used:
            raise TypeError(f"{whole.stage.name} was not built")
        load = (lambda path: path) if isinstance(step, Member) else whole.stage.load
        return Built(self.root / step.key, step.key, load)

    def load(self, step: Step[T]) -> T:
        """What the artifact of a built step holds."""
        return self.open(step).load()

    def counts(self, step: Step[Any]) -> dict[str, Any]:
        """What the stage counted when it was built."""
        return json.loads((self.open(step).path / "stage.json").read_text())["counts"]

    @property
    def reused(self) -> list[str]:
        """Stages that were there before this process."""
        return list(dict.fromkeys(name for key, name in self.used.items() if key not in self.built))

    def _whole(self, step: Step[Any]) -> bool:
        """It is there, and undamaged; what is damaged is taken away."""
        folder = self.root / step.key
        if not folder.exists():
            return False
        reason = damage(folder)
        if reason is None:
            _touch(folder)
            return True
        log.warning("%s: %s; building it again", folder, reason)
        try:
            with lock(self.root, step.key):
                if folder.exists() and damage(folder):
                    shutil.rmtree(folder)
        except PermissionError as error:
            raise InputError(
                f"{folder} is damaged ({reason}) and not yours to replace; use another cache_dir"
            ) from error
        return folder.exists()

    def _make(self, step: Step[Any]) -> None:
        self.build(*step.inputs)
        self.root.mkdir(parents=True, exist_ok=True)
        _write_format(self.root)
        with lock(self.root, step.key):
            if (self.root / step.key).exists():  # another process has built it while we waited
                return
            partial = self.root / f"{step.key}.partial"
            partial.mkdir(exist_ok=True)
            start = time.perf_counter()
            with resident.peak() as memory:
                counts = step.run(partial, self.open)
                took = {"seconds": round(time.perf_counter() - start, 1), "memory": memory()}
            gc.collect()  # a trainer and its module hold each other, and the module a student
            _finish(partial, self.root / step.key, step.made_from, dict(counts), took)
            self.built.add(step.key)
        log.info("%s: built in %.0f s%s", step.stage.name, took["seconds"], _said(counts))


def _said(counts: Mapping[str, Any]) -> str:
    """``: passages 2,332, best epoch 1``; what is counted by type is said elsewhere."""
    numbers = {name.replace("_", " "): of for name, of in counts.items() if isinstance(of, int | float)}
    return f": {', '.join(f'{name} {of:,}' for name, of in numbers.items())}" if numbers else ""


def _finish(partial: Path, done: Path, made_from: dict[str, Any], counts: dict, took: dict) -> None:
    """Record what a folder holds, and give it its name once all of it is on the disk.

    Args:
        took: "seconds", and "memory", the peak in bytes.
    """
    (partial / "stage.json").unlink(missing_ok=True)
    files = sorted(file for file in partial.rglob("*") if file.is_file())
    record = made_from | {
        "counts": counts,
        **took,
        "host": platform.node(),
        "versions": versions(),
        "commit": commit(),
        "outputs": {str(file.relative_to(partial)): _state(file) for file in files},
    }
    record["sha256"] = _record_digest(record)
    (partial / "stage.json").write_text(json.dumps(record, indent=1))
    written_through(partial)
    os.replace(partial, done)  # atomic: a folder of this name is complete
    sync(done.parent)


def damage(folder: Path, everything: bool = False) -> str | None:
    """What is wrong with a finished artifact; None if nothing is.

    Args:
        folder: one written before there were checksums is taken as it is.
        everything: read large files too, whose time and size have not changed.
    """
    try:
        record = json.loads((folder / "stage.json").read_text())
        made_from = {name: record[name] for name in ("stage", "version", "settings", "inputs")}
        if key_of(made_from) != folder.name or ("outputs" in record) != ("sha256" in record):
            return "stage.json is not the one that was written"
        if "outputs" not in record:
            return None
        if record["sha256"] != _record_digest(record):
            return "stage.json is not the one that was written"
        states = record["outputs"].items()
    except (OSError, ValueError, KeyError, TypeError):
        return "stage.json cannot be read"
    for name, state in states:
        file = folder / name
        if not file.is_file():
            return f"{name} is missing"
        stat = file.stat()
        if stat.st_size != state["size"]:
            return f"{name} has {stat.st_size} bytes, not {state['size']}"
        unchanged = not everything and stat.st_size > _LARGE and stat.st_mtime_ns == state["modified"]
        if not unchanged and sha256(file, stat.st_mtime_ns) != state["sha256"]:
            return f"{name} has another content than was written"
    return None


def _state(file: Path) -> dict[str, Any]:
    stat = file.stat()
    return {
        "sha256": sha256(file, stat.st_mtime_ns),
        "size": stat.st_size,
        "modified": stat.st_mtime_ns,
    }


def _record_digest(record: dict[str, Any]) -> str:
    rest = {name: value for name, value in record.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _touch(folder: Path) -> None:
    """The folder's time is that of its last use."""
    with suppress(OSError):  # another user's
        os.utime(folder)


@contextmanager
def lock(root: Path, key: str) -> Iterator[None]:
    """Held by one process; the kernel frees it when that dies. The file says who has it."""
    path = root / f"{key}.lock"
    held = FileLock(path)
    try:
        held.acquire(timeout=0.2)  # by then the holder has said who it is
    except Timeout:
        log.info("%s: waiting for %s, which is building it", key, _holder(path))
        held.acquire()
    try:
        since = datetime.now().astimezone().isoformat(timespec="seconds")
        path.write_text(json.dumps({"pid": os.getpid(), "host": platform.node(), "since": since}))
        yield
    finally:
        held.release()


def _holder(path: Path) -> str:
    try:
        holder = json.loads(path.read_text())
        return f"process {holder['pid']} on {holder['host']} (since {holder['since']})"
    except (OSError, ValueError, KeyError):
        return "another process"


def require_format(root: Path) -> None:
    """Raises InputError where a newer version made the cache."""
    file = root / "FORMAT"
    found = file.read_text().strip() if file.is_file() else str(FORMAT)
    if not found.isdigit() or int(found) > FORMAT:
        raise InputError(
            f"{root} is a cache of format {found[:20]!r}, this version knows {FORMAT}; update dense_retrieval, or "
            "choose another cache_dir="
        )


def _write_format(root: Path) -> None:
    if not (root / "FORMAT").exists():
        (root / "FORMAT").write_text(f"{FORMAT}\n")


def versions() -> dict[str, str]:
    packages = ["torch", "transformers", "pytorch-lightning"]
    return {
        "python": platform.python_version(),
        "dense_retrieval": dense_retrieval.__version__,
    } | {p: version(p) for p in packages}


@functools.cache
def commit() -> str | None:
    """The git commit of the checkout that this code runs from, if it is one."""
    here = Path(__file__).parent
    git = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=40"]
    found = subprocess.run(git, capture_output=True, text=True)
    return found.stdout.strip() or None if found.returncode == 0 else None
