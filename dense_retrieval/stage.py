"""The stage store: every stage of a run is a folder, built once for its settings and inputs."""

import functools
import hashlib
import json
import logging
import os
import platform
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

import dense_retrieval

log = logging.getLogger(__name__)


class Store:
    """Finished artifacts under ``root``, addressed by what made them.

    An artifact's key is the SHA-256 of its stage's name, version and settings and of its inputs:
    the keys of other artifacts, and the contents of files and folders from outside. Settings
    that change only speed (device, workers, chunk sizes) do not belong in ``settings``.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.reused: list[str] = []  # stages that were there before this process
        self._built: set[Path] = set()

    def stage(
        self,
        name: str,
        settings: Mapping[str, Any],
        inputs: Mapping[str, Path],
        build: Callable[[Path], Mapping[str, Any] | None],
        version: int = 1,
    ) -> Path:
        """The folder of a finished artifact, built now if it does not exist.

        Args:
            settings: JSON values that change the artifact, after conversion by the typed schema.
            inputs: other artifacts' folders, or files and folders from outside.
            build: fills the folder that it is given. After a kill it gets the same folder again,
                with what it had written; what it returns (row counts, say) is recorded.
            version: to be raised when the stage's code gives other results.
        """
        made_from = {
            "stage": name,
            "version": version,
            "settings": dict(settings),
            "inputs": {k: fingerprint(p) for k, p in sorted(inputs.items())},
        }
        key = hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()[:16]
        done = self.root / f"{name}-{key}"
        if not done.exists():
            self.root.mkdir(parents=True, exist_ok=True)
            with _announced_lock(self.root / f"{name}-{key}.lock", name):
                if not done.exists():  # another process may have built it while we waited
                    self._build(done, made_from, build)
                    self._built.add(done)
        if done not in self._built:
            self.reused.append(name)
        return done

    def _build(self, done: Path, made_from: dict, build: Callable) -> None:
        partial = done.with_name(done.name + ".partial")
        partial.mkdir(exist_ok=True)
        start = time.perf_counter()
        counts = build(partial) or {}
        record = made_from | {
            "counts": dict(counts),
            "seconds": round(time.perf_counter() - start, 1),
            "versions": versions(),
            "commit": commit(),
        }
        (partial / "stage.json").write_text(json.dumps(record, indent=1))
        os.replace(partial, done)  # atomic: a folder of this name is complete
        log.info("%s: built in %.0f s %s", made_from["stage"], record["seconds"], counts or "")


def fingerprint(path: Path) -> str:
    """An artifact's key, or the SHA-256 of a file, or of a folder's file names and contents."""
    if (path / "stage.json").is_file():
        return path.name
    digest = hashlib.sha256()
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    for file in files:
        digest.update(f"{file.relative_to(path)}\0{file.stat().st_size}\0".encode())
        digest.update(_digest(file, file.stat().st_mtime_ns))
    return digest.hexdigest()


@functools.cache  # a run asks for the same gigabytes of weights again and again
def _digest(file: Path, _modified: int) -> bytes:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").digest()


def in_shards(
    folder: Path, parts: Iterable[np.ndarray], compute: Callable[[np.ndarray], np.ndarray]
) -> list[np.ndarray]:
    """``compute(part)`` of each part, each kept in ``folder`` as soon as it is there.

    A second call, after a kill, computes only what is missing. The parts must be the same.
    """
    results = []
    for number, part in enumerate(parts):
        file = folder / f"shard-{number:05d}.npy"
        if not file.exists():
            unfinished = file.with_suffix(".tmp")
            with unfinished.open("wb") as stream:
                np.save(stream, compute(part))
            os.replace(unfinished, file)
        results.append(np.load(file, mmap_mode="r"))
    return results


def _announced_lock(path: Path, name: str) -> FileLock:
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log.info("%s: waiting for the process that is building it", name)
        lock.acquire()
    lock.release()
    return lock


def versions() -> dict[str, str]:
    packages = ["torch", "transformers", "pytorch-lightning"]
    return {
        "python": platform.python_version(),
        "dense_retrieval": dense_retrieval.__version__,
    } | {p: version(p) for p in packages}


def commit() -> str | None:
    """The git commit of the checkout that this code runs from, if it is one."""
    here = Path(__file__).parent
    git = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=40"]
    found = subprocess.run(git, capture_output=True, text=True)
    return found.stdout.strip() or None if found.returncode == 0 else None
