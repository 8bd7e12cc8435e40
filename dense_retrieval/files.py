"""Files: what is in them, in shards that survive a kill, and on the disk for sure."""

import functools
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np


def fingerprint(path: Path) -> str:
    """The SHA-256 of a file, or of a folder's file names and contents; symbolic links are followed."""
    digest = hashlib.sha256()
    for file in sorted(_files(path, ())) if path.is_dir() else [path]:
        digest.update(f"{file.relative_to(path)}\0{file.stat().st_size}\0".encode())
        digest.update(bytes.fromhex(sha256(file, file.stat().st_mtime_ns)))
    return digest.hexdigest()


def _files(folder: Path, above: tuple[Path, ...]) -> Iterator[Path]:
    real = folder.resolve()
    if real not in above:  # else a link to a folder that it is in
        for path in folder.iterdir():
            if path.is_dir():
                yield from _files(path, (*above, real))
            elif path.is_file():
                yield path


@functools.lru_cache(maxsize=100_000)  # a run asks for the same gigabytes of weights again and again
def sha256(file: Path, _modified: int) -> str:
    """Of a file's content; read once for each time of modification."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


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
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(unfinished, file)
        results.append(np.load(file, mmap_mode="r"))
    return results


def remove_shards(folder: Path) -> None:
    """What :func:`in_shards` left, when it is of no more use."""
    for file in folder.glob("shard-*.npy"):
        file.unlink()


def written_through(folder: Path) -> None:
    """Returns when a folder and all that is in it are on the disk."""
    for path in [*folder.rglob("*"), folder]:
        sync(path)


def sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
