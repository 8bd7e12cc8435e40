"""Zips in BEIR's layout: no more of them is unpacked than is read."""

import errno
import shutil
import zipfile
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from dense_retrieval.records import InputError

_MAX_RATIO = 200  # of unpacked to packed bytes; texts have 2 to 10, a zip bomb has 1,000
_SMALL = 100_000_000  # bytes that do no harm


def unpack(file: Path, folder: Path) -> Path:
    """Unpack ``corpus.jsonl``, ``queries.jsonl`` and ``qrels``, and return the folder that holds them.

    Raises:
        InputError: a broken zip, one with a member outside its folder, one without or with several
            corpora, one that does not fit the disk, a zip bomb.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            for name in archive.namelist():
                if not (folder / name).resolve().is_relative_to(folder.resolve()):
                    raise InputError(
                        f"{file}: its member {name!r} would be written outside the folder; not unpacked"
                    )
            inside, members = _layout(file, archive.infolist())
            _check_sizes(file, members, folder)
            archive.extractall(folder, members)
    except InputError:
        raise
    except Exception as error:  # zipfile's, zlib's, struct's, OSError: a broken zip has many
        full = getattr(error, "errno", None) == errno.ENOSPC
        remedy = "make room, or set TMPDIR to a larger disk" if full else "download it again"
        raise InputError(f"{file}: no readable zip ({error}); {remedy}") from error
    return folder / inside


def _layout(file: Path, members: Iterable[zipfile.ZipInfo]) -> tuple[PurePosixPath, list[zipfile.ZipInfo]]:
    """The folder of the one corpus, and the members that are read of it."""
    files = {PurePosixPath(member.filename): member for member in members if not member.is_dir()}
    found = sorted({path.parent for path in files if path.match("corpus.jsonl*")})
    if len(found) != 1:
        holds = f"several corpora ({', '.join(map(str, found))})" if found else "no corpus.jsonl"
        raise InputError(f"{file}: holds {holds}; one corpus in BEIR's layout is needed")
    (folder,) = found
    return folder, [
        member
        for path, member in files.items()
        if path.parent == folder / "qrels"
        or (path.parent == folder and (path.match("corpus.jsonl*") or path.match("queries.jsonl*")))
    ]


def _check_sizes(file: Path, members: Iterable[zipfile.ZipInfo], folder: Path) -> None:
    """By the zip's own table, which zipfile writes no byte beyond."""
    needed = 0
    for member in members:
        needed += member.file_size
        if member.file_size > max(_SMALL, _MAX_RATIO * member.compress_size):
            raise InputError(
                f"{file}: its member {member.filename!r} would grow {member.file_size / 1e9:.1f} GB large from "
                f"{member.compress_size / 1e6:.1f} MB, as no text does; unpack it yourself if you trust it"
            )
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise InputError(
            f"{file}: its corpus needs {needed / 1e9:.1f} GB, {folder.parent} has {free / 1e9:.1f} GB; make "
            "room, or set TMPDIR to a larger disk"
        )
