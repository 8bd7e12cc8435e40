"""Text files and JSON lines, read line by line; what cannot be read is named by file and line."""

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path

from dense_retrieval.records import InputError


def text_lines(file: Path) -> Iterator[tuple[int, str]]:
    """Number, from 1, and text of each line that is not blank, of a UTF-8 file or its ``.gz``.

    Raises:
        InputError: another encoding, a broken gzip.
    """
    opener = gzip.open if file.suffix == ".gz" else open
    number = 0
    try:
        with opener(file, "rb") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    # Some editors put a byte order mark before the first line.
                    yield number, line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise InputError(f"{file}:{number}: is not UTF-8 ({error.reason}); save the file as UTF-8") from error
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise InputError(
            f"{file}: a broken gzip, readable up to line {number} ({error}); download it again"
        ) from error


def json_objects(file: Path) -> Iterator[tuple[int, dict]]:
    """Line number and JSON object of each line that is not blank.

    Raises:
        InputError: a line that is no JSON object.
    """
    for number, line in text_lines(file):
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(f"{file}:{number}: broken JSON ({error.msg}, column {error.colno})") from error
        if not isinstance(record, dict):
            raise InputError(f"{file}:{number}: a JSON object is needed, not {type(record).__name__}")
        yield number, record
