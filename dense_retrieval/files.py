"""Files: what is in them, and that they are on the disk for sure."""

import functools
import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path


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


def link(source: str, target: str) -> None:
    """The same file under another name, or a copy where that cannot be."""
    try:
        os.link(source, target)
    except OSError:  # another file system
        shutil.copy2(source, target)


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
