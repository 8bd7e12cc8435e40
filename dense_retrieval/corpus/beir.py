"""Corpora in BEIR's layout: a folder, a zip, BEIR's published zips, the Hugging Face hub.

::

    corpus.jsonl        {"_id": ..., "title": ..., "text": ...}   (or .jsonl.gz)
    queries.jsonl       {"_id": ..., "text": ...}
    qrels/test.tsv      query-id <tab> corpus-id <tab> score, with a header; also train.tsv, dev.tsv

Without ``queries.jsonl`` and ``qrels`` it is documents alone: no split to test on.
"""

from __future__ import annotations

import hashlib
import http.client
import logging
import shutil
import tempfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from huggingface_hub import snapshot_download
from rich.progress import wrap_file

from dense_retrieval.corpus import archive, judgements
from dense_retrieval.corpus.lines import json_objects
from dense_retrieval.corpus.text import passage_text
from dense_retrieval.records import PASSAGES, QUERIES, Corpus, InputError, features

if TYPE_CHECKING:
    from datasets import Dataset

log = logging.getLogger(__name__)

_ZIPS = "https://public.ukp.informatik.tu-darmstadt.de/thakur/BEIR/datasets"


def read_folder(
    path: str,
    text: str = "title_and_text",
    passage_characters: int | None = None,
    query_characters: int | None = None,
    test_split: str = "test",
    missing_passages: int = 0,
) -> Corpus:
    """A folder or ``.zip`` in BEIR's layout.

    Args:
        text: see :func:`passage_text`.
        passage_characters, query_characters: longer texts are cut; None keeps them whole.
        test_split: the qrels file that is the test split, and then no other one.
        missing_passages: judged passages that the corpus is known to lack. They stay in the qrels, as
            rows -1, -2, ..., and no system can find them: so the published figures were measured.

    Raises:
        InputError: something is missing, broken or inconsistent; with its file and line.
    """
    folder = Path(path)
    if folder.suffix == ".zip" and folder.is_file():
        with tempfile.TemporaryDirectory() as unpacked:
            inside = archive.unpack(folder, Path(unpacked))
            limits = passage_characters, query_characters
            try:
                return read_folder(str(inside), text, *limits, test_split, missing_passages)
            except InputError as error:
                raise InputError(str(error).replace(unpacked, path)) from error
    if not folder.is_dir():
        raise InputError(f"data.path={path}: there is no such folder or zip")
    passages, passage_rows = _table(folder, "corpus", text, passage_characters)
    queries, qrels = {}, {}
    splits = {split: split for split in ("train", "dev") if split != test_split} | {"test": test_split}
    if not list(folder.glob("queries.jsonl*")) and not (folder / "qrels").exists():
        splits = {}
    else:
        everything, _ = _table(folder, "queries", "text_only", query_characters)
    for split, name in splits.items():
        files = [folder / "qrels" / f"{name}{suffix}" for suffix in (".tsv", ".jsonl")]
        file = next((f for f in files if f.is_file()), None)
        if file:
            queries[split], qrels[split] = judgements.read(file, everything, passage_rows, missing_passages)
        elif split == "test":
            there = ", ".join(sorted({p.stem for p in files[0].parent.glob("*.*")})) or "none"
            raise InputError(f"{files[0]} is missing; the splits there: {there} (data.test_split=...)")
    return Corpus(passages, queries, qrels, np.array([], dtype=np.int64))


def read_hub(name: str, revision: str | None = None, **settings) -> Corpus:
    """A BEIR corpus from the hub's ``mteb/<name>``, which keeps BEIR's files.

    Args:
        revision: branch, tag or commit; None is the newest. The commit used is logged.
        settings: of :func:`read_folder`.

    Raises:
        InputError: the hub does not have it or cannot be reached.
    """
    patterns = ["*.jsonl", "*.jsonl.gz", "qrels/*"]
    try:
        folder = snapshot_download(name, repo_type="dataset", revision=revision, allow_patterns=patterns)
    except Exception as error:  # the hub's errors share no base class
        reason = (str(error).strip() or "no reason given").splitlines()[0]
        raise InputError(
            f"corpus {name!r} could not be had from the Hugging Face hub ({type(error).__name__}: {reason}); "
            "use BEIR's own zip with data.zip=true, or a folder in BEIR's layout with data=beir data.path=FOLDER"
        ) from error
    log.info("%s: revision %s", name, Path(folder).name)
    return read_folder(folder, **settings)


def read_zip(name: str, md5: str, **settings) -> Corpus:
    """One of BEIR's published zips, downloaded, checked and read.

    Args:
        name: of the zip, such as ``fiqa`` or ``webis-touche2020``.
        md5: the published checksum.
        settings: of :func:`read_folder`.

    Raises:
        InputError: it cannot be downloaded, or its checksum is another one.
    """
    url = f"{_ZIPS}/{name}.zip"
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"{name}.zip"
        try:
            with urllib.request.urlopen(url, timeout=60) as response, file.open("wb") as target:
                size = int(response.headers.get("Content-Length") or 0)
                with wrap_file(response, size, description=f"{name}.zip") as source:
                    shutil.copyfileobj(source, target)
        except (OSError, http.client.HTTPException) as error:
            raise InputError(
                f"{url} could not be downloaded ({error}); use the hub with data.zip=false, or download it "
                "elsewhere and give data=beir data.path=FILE.zip"
            ) from error
        with file.open("rb") as stream:
            found = hashlib.file_digest(stream, "md5").hexdigest()
        if found != md5:
            raise InputError(
                f"{url}: its MD5 is {found}, BEIR publishes {md5}; the download is broken, try again"
            )
        return read_folder(str(file), **settings)


def read_named(
    name: str, revision: str | None, zip_name: str, zip_md5: str, zip: bool = False, **settings
) -> Corpus:
    """A corpus of the BEIR benchmark, from the hub or (``zip``) from BEIR's zip."""
    return read_zip(zip_name, zip_md5, **settings) if zip else read_hub(name, revision, **settings)


def _table(folder: Path, name: str, text: str, characters: int | None) -> tuple[Dataset, dict[str, int]]:
    """``corpus`` or ``queries`` as a table, streamed, and the row of each id."""
    from datasets import Dataset

    file = next((f for f in (folder / f"{name}.jsonl", folder / f"{name}.jsonl.gz") if f.is_file()), None)
    if file is None:
        raise InputError(
            f"{folder}: {name}.jsonl is missing; BEIR's layout is corpus.jsonl, queries.jsonl, qrels/"
        )
    rows: dict[str, int] = {}
    passages = name == "corpus"

    def records() -> Iterator[dict]:
        rows.clear()
        for number, record in json_objects(file):
            title = record.get("title") or ""
            for key, value in ("_id", record.get("_id")), ("text", record.get("text")), ("title", title):
                if not isinstance(value, str):
                    raise InputError(f"{file}:{number}: the key {key!r} is missing or no string")
            identifier = record["_id"]
            if identifier in rows:
                first = next(n for n, other in json_objects(file) if other["_id"] == identifier)
                raise InputError(f"{file}:{number}: the id {identifier!r} stands already in line {first}")
            rows[identifier] = len(rows)
            shown = passage_text(title, record["text"], text, characters)
            if passages:
                yield {"id": identifier, "title": title, "text": shown}
            else:
                yield {"id": identifier, "text": shown, "querytype": "human", "source": -1}

    with tempfile.TemporaryDirectory() as arrow:
        try:
            table = Dataset.from_generator(
                records, features=features(PASSAGES if passages else QUERIES), cache_dir=arrow
            )
        except Exception as error:  # datasets wraps what the generator raised, and refuses no rows
            if isinstance(error.__cause__, InputError):
                raise error.__cause__ from None
            if not rows:
                raise InputError(f"{file}: is empty") from None
            if isinstance(error.__cause__, UnicodeError):
                raise InputError(
                    f"{file}: a text is no valid Unicode ({error.__cause__}); repair it"
                ) from None
            raise
    return table, rows
