"""Values that were expensive to compute, kept by what they were computed from."""

import hashlib
import json
import logging
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

log = logging.getLogger(__name__)

_AT_ONCE = 10_000  # keys a query; SQLite allows 32,766


class Memo:
    """One SQLite file of values by key, open in a ``with`` block.

    What is put is on disk when :meth:`put` returns, so a kill loses nothing that was finished.
    Nothing is computed twice: a process that misses a value holds the memo until its block ends, and
    a second one that misses some waits, and then finds them. Who misses none waits for nobody.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._lock = FileLock(path.with_suffix(".lock"))

    def __enter__(self) -> "Memo":
        if not self.path.exists():
            with self._lock:
                self._create()
        self._connection = sqlite3.connect(self.path, isolation_level=None)
        self._connection.execute("PRAGMA synchronous=NORMAL")
        return self

    def _create(self) -> None:
        """Under another name first: no process sees it half made."""
        if self.path.exists():
            return
        new = self.path.with_suffix(".new")
        new.unlink(missing_ok=True)
        connection = sqlite3.connect(new, isolation_level=None)
        connection.execute("CREATE TABLE memo (key BLOB PRIMARY KEY, value) WITHOUT ROWID")
        connection.execute("PRAGMA journal_mode=WAL")
        connection.close()
        new.rename(self.path)

    def __exit__(self, *_: object) -> None:
        self._connection.close()
        self._lock.release()

    def get(self, keys: Sequence[bytes]) -> dict[bytes, Any]:
        """The values of those keys that have one; if one has none, the memo is held to compute it."""
        found = self._found(keys)
        if self._lock.is_locked or len(found) == len(set(keys)):
            return found
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            log.info("%s: waiting for the process that is writing it", self.path.name)
            self._lock.acquire()
        return self._found(keys)

    def _found(self, keys: Sequence[bytes]) -> dict[bytes, Any]:
        found: dict[bytes, Any] = {}
        for start in range(0, len(keys), _AT_ONCE):
            part = list(keys[start : start + _AT_ONCE])
            marks = ",".join("?" * len(part))
            found.update(self._connection.execute(f"SELECT * FROM memo WHERE key IN ({marks})", part))
        return found

    def put(self, items: Iterable[tuple[bytes, float | str]]) -> None:
        """All of the items or, where it is interrupted, none."""
        with self._connection:
            self._connection.execute("BEGIN")
            self._connection.executemany("INSERT OR REPLACE INTO memo VALUES (?, ?)", items)


def move(old: Path, new: Path) -> None:
    """Give a memo another name, with what a killed process left in its log."""
    connection = sqlite3.connect(old)
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    old.rename(new)


def memo_path(root: Path, name: str, made_by: Mapping[str, Any]) -> Path:
    """The memo of one model with its settings: ``root/name-<hash>.sqlite``."""
    digest = hashlib.sha256(json.dumps(made_by, sort_keys=True).encode()).hexdigest()[:16]
    return root / f"{name}-{digest}.sqlite"


def key(*texts: str) -> bytes:
    """``(16,)`` bytes that stand for some texts."""
    digest = hashlib.sha256()
    for text in texts:
        encoded = text.encode("utf-8", "surrogatepass")
        digest.update(len(encoded).to_bytes(8, "little") + encoded)
    return digest.digest()[:16]
