"""Values that were expensive to compute, kept by what they were computed from."""

import hashlib
import json
import logging
import sqlite3
import zlib
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

    Each value has a checksum. One that does not match is missing; a file that SQLite cannot read is set aside, under
    another name, and begun anew. Both are said.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._lock = FileLock(path.with_suffix(".lock"))

    def __enter__(self) -> "Memo":
        self._open()
        return self

    def _open(self) -> None:
        if not self.path.exists():
            with self._lock:
                self._create()
        self._connection = sqlite3.connect(self.path, isolation_level=None)
        self._connection.text_factory = lambda text: text.decode(
            "utf-8", "replace"
        )  # its checksum is off then
        try:
            self._connection.execute("PRAGMA synchronous=NORMAL")
            columns = self._connection.execute("SELECT name FROM pragma_table_info('memo')").fetchall()
            if not columns:
                raise sqlite3.DatabaseError("it has no table")
            if ("checksum",) not in columns:  # from before there were any
                self._connection.execute("ALTER TABLE memo ADD COLUMN checksum")
        except sqlite3.DatabaseError as error:
            self._set_aside(error)

    def _create(self) -> None:
        """Under another name first: no process sees it half made."""
        if self.path.exists():
            return
        new = self.path.with_suffix(".new")
        new.unlink(missing_ok=True)
        connection = sqlite3.connect(new, isolation_level=None)
        connection.execute("CREATE TABLE memo (key BLOB PRIMARY KEY, value, checksum) WITHOUT ROWID")
        connection.execute("PRAGMA journal_mode=WAL")
        connection.close()
        new.rename(self.path)

    def _set_aside(self, error: sqlite3.DatabaseError) -> None:
        """Begin anew in place of a damaged file; raises the error if it is about something else."""
        damaged = ("no table", "malformed", "not a database", "disk I/O error")
        if not any(words in str(error) for words in damaged):
            raise error
        self._connection.close()
        aside = self.path.with_suffix(".damaged")
        log.warning(
            "%s is damaged (%s): set aside as %s; its values are made anew", self.path, error, aside.name
        )
        for suffix in ("", "-wal", "-shm"):
            part = Path(f"{self.path}{suffix}")
            if part.exists():
                part.rename(f"{aside}{suffix}")
        self._open()

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
        try:
            return self._read(keys)
        except sqlite3.DatabaseError as error:
            self._set_aside(error)
            return {}

    def _read(self, keys: Sequence[bytes]) -> dict[bytes, Any]:
        found: dict[bytes, Any] = {}
        asked, wrong = set(keys), 0
        for start in range(0, len(keys), _AT_ONCE):
            part = list(keys[start : start + _AT_ONCE])
            marks = ",".join("?" * len(part))
            rows = self._connection.execute(f"SELECT * FROM memo WHERE key IN ({marks})", part)
            for name, value, checksum in rows:
                if name in asked and value is not None and checksum in (None, _checksum(name, value)):
                    found[name] = value
                else:
                    wrong += 1
        if wrong:
            log.warning("%s: %d values are not those that were written; they are made anew", self.path, wrong)
        return found

    def put(self, items: Iterable[tuple[bytes, float | str]]) -> None:
        """All of the items or, where it is interrupted, none."""
        with self._connection:
            self._connection.execute("BEGIN")
            rows = ((name, value, _checksum(name, value)) for name, value in items)
            self._connection.executemany("INSERT OR REPLACE INTO memo VALUES (?, ?, ?)", rows)


def _checksum(name: object, value: object) -> int:
    return zlib.crc32(repr((name, value)).encode("utf-8", "surrogatepass"))


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
