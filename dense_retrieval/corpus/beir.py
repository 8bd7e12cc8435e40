"""Corpora in BEIR's layout: a folder, a zip, BEIR's published zips, the Hugging Face hub.

::

    corpus.jsonl        {"_id": ..., "title": ..., "text": ...}   (or .jsonl.gz)
    queries.jsonl       {"_id": ..., "text": ...}
    qrels/test.tsv      query-id <tab> corpus-id <tab> score, with a header; also train.tsv, dev.tsv
"""

import gzip
import hashlib
import json
import tempfile
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from datasets import Dataset
from huggingface_hub import snapshot_download

from dense_retrieval.corpus import holdout
from dense_retrieval.corpus.text import passage_text
from dense_retrieval.records import PASSAGES, QUERIES, Corpus, InputError, Qrels

_ZIPS = "https://public.ukp.informatik.tu-darmstadt.de/thakur/BEIR/datasets"


def read_folder(
    path: str,
    text: str = "title_and_text",
    passage_characters: int | None = None,
    query_characters: int | None = None,
    test_split: str = "test",
    heldout: int = 100,
) -> Corpus:
    """A folder or ``.zip`` in BEIR's layout.

    Args:
        text: see :func:`passage_text`.
        passage_characters, query_characters: longer texts are cut; None keeps them whole.
        test_split: the qrels file that is the test split.
        heldout: passages that no training query may come from.

    Raises:
        InputError: something is missing, broken or inconsistent; with its file and line.
    """
    folder = Path(path)
    if folder.suffix == ".zip" and folder.is_file():
        with tempfile.TemporaryDirectory() as unpacked:
            inside = _unzip(folder, Path(unpacked))
            return read_folder(str(inside), text, passage_characters, query_characters, test_split, heldout)
    if not folder.is_dir():
        raise InputError(f"data.path={path}: there is no such folder or zip")
    passages, passage_rows = _table(folder, "corpus", text, passage_characters)
    everything, _ = _table(folder, "queries", "text_only", query_characters)
    queries, qrels = {}, {}
    for split, name in {"train": "train", "test": test_split}.items():
        files = [folder / "qrels" / f"{name}{suffix}" for suffix in (".tsv", ".jsonl")]
        file = next((f for f in files if f.is_file()), None)
        if file:
            queries[split], qrels[split] = _split(file, everything, passage_rows)
        elif split == "test":
            there = ", ".join(sorted({p.stem for p in files[0].parent.glob("*.*")})) or "none"
            raise InputError(f"{files[0]} is missing; the splits there: {there} (data.test_split=...)")
    return Corpus(passages, queries, qrels, holdout.draw(len(passages), heldout))


def read_hub(name: str, revision: str | None = None, **settings) -> Corpus:
    """A BEIR corpus from the hub's ``mteb/<name>``, which keeps BEIR's files.

    Args:
        revision: branch, tag or commit; None is the newest. The commit used is recorded.
        settings: of :func:`read_folder`.

    Raises:
        InputError: the hub does not have it or cannot be reached.
    """
    patterns = ["*.jsonl", "*.jsonl.gz", "qrels/*"]
    try:
        folder = snapshot_download(name, repo_type="dataset", revision=revision, allow_patterns=patterns)
    except Exception as error:  # the hub's errors share no base class
        reason = str(error).strip().splitlines()[0]
        raise InputError(
            f"corpus {name!r} could not be had from the Hugging Face hub ({type(error).__name__}: {reason}); "
            "use BEIR's own zip with data.zip=true, or a folder in BEIR's layout with data=beir data.path=FOLDER"
        ) from error
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
            urllib.request.urlretrieve(url, file)
        except OSError as error:
            raise InputError(
                f"{url} could not be downloaded ({error}); use the hub with data.zip=false, or download it "
                "elsewhere and give data=beir data.path=FILE.zip"
            ) from error
        found = hashlib.md5(file.read_bytes(), usedforsecurity=False).hexdigest()
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


def _unzip(file: Path, folder: Path) -> Path:
    """Unpack, and return the folder that holds ``corpus.jsonl``.

    Raises:
        InputError: a broken zip, or one with a member outside its folder.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            for member in archive.namelist():
                if not (folder / member).resolve().is_relative_to(folder.resolve()):
                    raise InputError(
                        f"{file}: its member {member!r} would be written outside the folder; not unpacked"
                    )
            archive.extractall(folder)
    except (zipfile.BadZipFile, EOFError) as error:
        raise InputError(f"{file}: no readable zip ({error}); download it again") from error
    found = sorted(folder.rglob("corpus.jsonl*"))
    if not found:
        raise InputError(f"{file}: holds no corpus.jsonl; a zip in BEIR's layout is needed")
    return found[0].parent


def _lines(file: Path) -> Iterator[tuple[int, dict]]:
    """Line numbers and JSON objects; raises InputError with file and line."""
    opener = gzip.open if file.suffix == ".gz" else open
    with opener(file, "rt", encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except json.JSONDecodeError as error:
                raise InputError(
                    f"{file}:{number}: broken JSON ({error.msg}, column {error.colno})"
                ) from error
            if not isinstance(record, dict):
                raise InputError(f"{file}:{number}: a JSON object is needed, not {type(record).__name__}")
            yield number, record


def _table(folder: Path, name: str, text: str, characters: int | None) -> tuple[Dataset, dict[str, int]]:
    """``corpus`` or ``queries`` as a table, streamed, and the row of each id."""
    file = next((f for f in (folder / f"{name}.jsonl", folder / f"{name}.jsonl.gz") if f.is_file()), None)
    if file is None:
        raise InputError(
            f"{folder}: {name}.jsonl is missing; BEIR's layout is corpus.jsonl, queries.jsonl, qrels/"
        )
    rows: dict[str, int] = {}
    passages = name == "corpus"

    def records() -> Iterator[dict]:
        rows.clear()
        for number, record in _lines(file):
            for key in ("_id", "text"):
                if not isinstance(record.get(key), str):
                    raise InputError(f"{file}:{number}: the key {key!r} is missing or no string")
            identifier = record["_id"]
            if identifier in rows:
                raise InputError(
                    f"{file}:{number}: the id {identifier!r} stands already in row {rows[identifier] + 1}"
                )
            rows[identifier] = len(rows)
            title = record.get("title") or ""
            shown = passage_text(title, record["text"], text, characters)
            if passages:
                yield {"id": identifier, "title": title, "text": shown}
            else:
                yield {"id": identifier, "text": shown, "querytype": "human", "source": -1}

    with tempfile.TemporaryDirectory() as arrow:
        try:
            table = Dataset.from_generator(
                records, features=PASSAGES if passages else QUERIES, cache_dir=arrow
            )
        except Exception as error:  # datasets wraps what the generator raised, and refuses no rows
            if isinstance(error.__cause__, InputError):
                raise error.__cause__ from None
            if not rows:
                raise InputError(f"{file}: is empty") from None
            raise
    return table, rows


def _split(file: Path, queries: Dataset, passage_rows: dict[str, int]) -> tuple[Dataset, Qrels]:
    """The queries that a qrels file names, with its judgements."""
    row_of = {identifier: row for row, identifier in enumerate(queries["id"])}
    triples = []
    for number, query, passage, score in _judgements(file):
        for identifier, known, where in (query, row_of, "queries"), (passage, passage_rows, "corpus"):
            if identifier not in known:
                raise InputError(f"{file}:{number}: the id {identifier!r} is not in {where}.jsonl")
        triples.append((row_of[query], passage_rows[passage], score))
    if not triples:
        raise InputError(f"{file}: has no judgement")
    query_rows, passage_rows_, relevance = np.array(triples, dtype=np.int64).T
    used, within = np.unique(query_rows, return_inverse=True)
    return queries.select(used), Qrels(within, passage_rows_, relevance)


def _judgements(file: Path) -> Iterator[tuple[int, str, str, int]]:
    """Line number, query id, passage id and relevance, from BEIR's ``.tsv`` or mteb's ``.jsonl``."""
    if file.suffix == ".jsonl":
        for number, record in _lines(file):
            try:
                yield number, str(record["query-id"]), str(record["corpus-id"]), int(record["score"])
            except (KeyError, ValueError, TypeError) as error:
                raise InputError(
                    f"{file}:{number}: query-id, corpus-id and a numeric score are needed"
                ) from error
        return
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            fields = line.rstrip("\n").split("\t")
            if not line.strip() or (number == 1 and fields[-1] == "score"):
                continue
            if len(fields) != 3 or not fields[2].strip().lstrip("-").isdigit():
                raise InputError(
                    f"{file}:{number}: query-id, corpus-id and a whole score with tabs between are needed"
                )
            yield number, fields[0], fields[1], int(fields[2])
