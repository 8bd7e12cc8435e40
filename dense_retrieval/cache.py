"""python -m dense_retrieval.cache list|verify|prune: what the cache holds, and what of it is not needed any more.

    python -m dense_retrieval.cache list                      # each artifact: size, age, last use, runs that need it
    python -m dense_retrieval.cache verify                    # read everything, name what is damaged
    python -m dense_retrieval.cache prune --keep-runs         # remove what no run below runs/ needs
    python -m dense_retrieval.cache prune --older-than 30     # remove what was not used for 30 days
    python -m dense_retrieval.cache prune --stage embeddings  # remove all embeddings: a run computes them again

``prune`` only says what it would remove until it is given ``--yes``. The answers of language models and the scores
of teachers (``*.sqlite``) are never removed: they are what was expensive.
"""

import argparse
import json
import shutil
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

from dense_retrieval.records import InputError
from dense_retrieval.store import damage, lock, require_format

_DAY = 86_400


@dataclass(frozen=True)
class Artifact:
    """A folder of the cache; ``runs`` are the folders of the runs that used it."""

    folder: Path
    size: int  # bytes
    built: float  # seconds since 1970
    used: float
    runs: tuple[Path, ...]


def artifacts(root: Path, runs: Path) -> list[Artifact]:
    """All artifacts of a cache, unfinished and damaged ones too, the last used ones first.

    Raises:
        InputError: there is no such cache, or a newer version made it.
    """
    if not root.is_dir():
        raise InputError(f"{root}: there is no such cache; give its folder with --cache-dir")
    require_format(root)
    needed: dict[str, list[Path]] = {}
    for file in sorted(runs.rglob("metrics.json")) if runs.is_dir() else []:
        try:
            used = json.loads(file.read_text()).get("used", [])
        except (OSError, ValueError, AttributeError):
            continue  # no run of this package
        for key in used:
            needed.setdefault(key, []).append(file.parent)
    found = []
    for folder in root.iterdir():
        if folder.is_dir():
            files = [file.stat() for file in folder.rglob("*") if file.is_file()]
            built = max((stat.st_mtime for stat in files), default=folder.stat().st_mtime)
            size = sum(stat.st_size for stat in files)
            used = max(built, folder.stat().st_mtime)
            found.append(Artifact(folder, size, built, used, tuple(needed.get(folder.name, ()))))
    return sorted(found, key=lambda artifact: -artifact.used)


def unneeded(
    found: Iterable[Artifact], keep_runs: bool, older_than: float | None, now: float, stage: str | None = None
) -> list[Artifact]:
    """What ``prune`` removes: of what no run needs, what was not used for ``older_than`` days, and what a stage
    made, that which is all that is asked for."""
    return [
        artifact
        for artifact in found
        if (not keep_runs or not artifact.runs)
        and (older_than is None or now - artifact.used > older_than * _DAY)
        and (stage is None or artifact.folder.name.rpartition("-")[0] == stage)
    ]


def _list(found: list[Artifact], now: float) -> None:
    table = Table(box=None)
    for column in ("artifact", "runs"):
        table.add_column(column)
    for column in ("size", "built", "last use"):
        table.add_column(column, justify="right")
    for artifact in found:
        runs = ", ".join(map(str, artifact.runs[:2])) + f" and {len(artifact.runs) - 2} more" * (
            len(artifact.runs) > 2
        )
        ages = (_age(now - artifact.built), _age(now - artifact.used))
        table.add_row(artifact.folder.name, runs or "-", decimal(artifact.size), *ages)
    Console().print(table)
    print(f"{len(found)} artifacts, {decimal(sum(artifact.size for artifact in found))}")


def _age(seconds: float) -> str:
    for unit, length in (("d", _DAY), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit} ago"
    return "now"


def _verify(found: list[Artifact]) -> int:
    wrong = 0
    for artifact in found:
        unfinished = artifact.folder.name.endswith(".partial")
        if not unfinished and (reason := damage(artifact.folder, everything=True)):
            wrong += 1
            print(f"{artifact.folder}: {reason}; the next run that needs it builds it again")
    print(f"{len(found)} artifacts, {wrong} damaged")
    return min(wrong, 1)


def _prune(chosen: list[Artifact], root: Path, really: bool) -> None:
    for artifact in chosen:
        print(f"{'removed' if really else 'would remove'}: {artifact.folder} ({decimal(artifact.size)})")
        if really:
            with lock(root, artifact.folder.name.removesuffix(".partial")):
                shutil.rmtree(artifact.folder)
    size = decimal(sum(artifact.size for artifact in chosen))
    print(f"{len(chosen)} artifacts, {size}{'' if really or not chosen else '; --yes removes them'}")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m dense_retrieval.cache",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("action", choices=["list", "verify", "prune"])
    parser.add_argument("--cache-dir", type=Path, default=Path("cache"), help="default: %(default)s")
    parser.add_argument(
        "--runs", type=Path, default=Path("runs"), help="where runs are (default: %(default)s)"
    )
    parser.add_argument("--keep-runs", action="store_true", help="prune: only what no run needs")
    parser.add_argument(
        "--older-than", type=float, metavar="DAYS", help="prune: only what was not used for so long"
    )
    parser.add_argument(
        "--stage", metavar="NAME", help="prune: only what this stage made, such as embeddings"
    )
    parser.add_argument("--yes", action="store_true", help="prune: remove, do not only say what")
    given = parser.parse_args()
    try:
        found, now = artifacts(given.cache_dir, given.runs), time.time()
        if given.action == "list":
            _list(found, now)
        elif given.action == "verify":
            sys.exit(_verify(found))
        elif not given.keep_runs and given.older_than is None and given.stage is None:
            sys.exit(
                "error: prune needs --keep-runs or --older-than DAYS or --stage NAME, or several of them"
            )
        else:
            chosen = unneeded(found, given.keep_runs, given.older_than, now, given.stage)
            _prune(chosen, given.cache_dir, given.yes)
    except InputError as error:
        sys.exit(f"error: {error}")
    except PermissionError as error:
        sys.exit(f"error: {error.filename} cannot be removed: {error.strerror}")


if __name__ == "__main__":
    main()
