"""Text files, JSON lines and Parquet, read row by row; what cannot be read is named by file and line."""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from dense_retrieval.records import InputError

ENDINGS = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet")  # of tables, the first found is taken
_ROWS_AT_ONCE = 1_000  # of Parquet


def text_lines(file: Path) -> Iterator[tuple[int, str]]:
    """Number, from 1, and text of each line that is not blank, of a UTF-8 file, its ``.gz`` or its ``.zst``.

    Raises:
        InputError: another encoding, a broken gzip or zstd.
    """
    number = 0
    try:
        with _opened(file) as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    # Some editors put a byte order mark before the first line.
                    yield number, line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise InputError(f"{file}:{number}: is not UTF-8 ({error.reason}); save the file as UTF-8") from error
    except (EOFError, OSError, zlib.error) as error:
        if getattr(error, "errno", None) is not None:  # the disk's, not the format's
            raise
        kind = "zstd" if file.suffix == ".zst" else "gzip"
        raise InputError(
            f"{file}: a broken {kind}, readable up to line {number} ({error}); download it again"
        ) from error


def _opened(file: Path) -> BinaryIO:
    if file.suffix == ".gz":
        return gzip.open(file, "rb")  # type: ignore[return-value]
    if file.suffix == ".zst":
        import pyarrow

        return io.BufferedReader(pyarrow.input_stream(str(file), compression="zstd"), 2**20)  # type: ignore[arg-type]
    return file.open("rb")


def json_objects(file: Path) -> Iterator[tuple[int, dict]]:
    """Line number and JSON object of each line that is not blank; of Parquet row number, from 1, and row.

    Raises:
        InputError: a line that is no JSON object.
    """
    if file.suffix == ".parquet":
        yield from _parquet_rows(file)
        return
    for number, line in text_lines(file):
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(f"{file}:{number}: broken JSON ({error.msg}, column {error.colno})") from error
        if not isinstance(record, dict):
            raise InputError(f"{file}:{number}: a JSON object is needed, not {type(record).__name__}")
        yield number, record


def _parquet_rows(file: Path) -> Iterator[tuple[int, dict]]:
    import pyarrow
    from pyarrow import parquet

    number = 0
    try:
        with parquet.ParquetFile(file, memory_map=True) as table:
            for batch in table.iter_batches(_ROWS_AT_ONCE):
                for record in batch.to_pylist():
                    number += 1
                    yield number, record
    except pyarrow.ArrowException as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"{file}: a broken Parquet, readable up to row {number} ({reason}); download it again"
        ) from error


def table_files(folder: Path, name: str) -> list[Path]:
    """The files of a table: ``name.jsonl``, or its ``.gz``, ``.zst`` or ``.parquet``; else several of such, in the
    order of their names: ``name-*.jsonl`` beside each other, or whatever is in a folder ``name``."""
    whole = next((f for f in (folder / f"{name}{ending}" for ending in ENDINGS) if f.is_file()), None)
    if whole:
        return [whole]
    parts = [*folder.glob(f"{name}-*"), *(folder / name).glob("*")]
    return sorted(file for file in parts if file.is_file() and file.name.endswith(ENDINGS))
