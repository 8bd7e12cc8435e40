"""Passages, ids and vectors as other search engines take them in bulk, and the search in what was written.

Passages are read from memory-mapped files some at a time, so that there may be millions. Wherever there are numbers of
passages, they are our rows; ids are the corpus's.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from dense_retrieval.candidates.dense import in_parts, search
from dense_retrieval.records import CandidateList

if TYPE_CHECKING:
    from datasets import Dataset
    from qdrant_client import QdrantClient

_AT_ONCE = 1_000  # passages
_FILE = 50_000_000  # bytes of a file of lines: Elasticsearch takes requests of up to 100 MB
_DECIMALS = 9  # of a vector's numbers: float32 has no more


@dataclass(frozen=True)
class Passages:
    """N passages: a table of their "id", "title" and "text", and ``(N, D)`` vectors, both memory-mapped."""

    table: Dataset
    vectors: np.ndarray

    def batches(self) -> Iterator[tuple[int, list[dict[str, str]], np.ndarray]]:
        """First row, and lines and float32 vectors, of some passages after the others."""
        for start in range(0, len(self.table), _AT_ONCE):
            columns = self.table[start : start + _AT_ONCE]
            lines = [
                dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)
            ]
            yield start, lines, self.vectors[start : start + _AT_ONCE].astype(np.float32)


def write_faiss(passages: Passages, folder: Path) -> None:
    """``passages.faiss``, an exact index by inner product, and ``passages.jsonl``: its line n is the index's n.

    Vectors in float16 stay so. The index is held in memory, as by those who search it.
    """
    import faiss

    dimension, metric = passages.vectors.shape[1], faiss.METRIC_INNER_PRODUCT
    half = faiss.ScalarQuantizer.QT_fp16
    float16 = passages.vectors.dtype == np.float16
    index = faiss.IndexScalarQuantizer(dimension, half, metric) if float16 else faiss.IndexFlatIP(dimension)
    for _, part in in_parts(passages.vectors):
        index.add(part)
    faiss.write_index(index, str(folder / "passages.faiss"))
    with (folder / "passages.jsonl").open("w", encoding="utf-8") as stream:
        for _, lines, _ in passages.batches():
            stream.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)


def search_faiss(folder: Path, queries: np.ndarray, k: int) -> CandidateList:
    """The k best of each query ``(Q, D)``."""
    import faiss

    scores, found = faiss.read_index(str(folder / "passages.faiss")).search(queries, k)
    return CandidateList(found, np.where(found < 0, -np.inf, scores).astype(np.float32))


def write_qdrant(passages: Passages, client: QdrantClient, collection: str) -> None:
    """A new collection, compared by inner product; the points' numbers are rows, their payload is id, title, text."""
    from qdrant_client import models

    like = models.VectorParams(size=passages.vectors.shape[1], distance=models.Distance.DOT)
    client.create_collection(collection, vectors_config=like)
    for start, lines, vectors in passages.batches():
        ids: list[Any] = list(range(start, start + len(lines)))
        points = models.Batch(ids=ids, vectors=vectors.tolist(), payloads=lines)
        client.upsert(collection, points, wait=True)


def search_qdrant(client: QdrantClient, collection: str, queries: np.ndarray, k: int) -> CandidateList:
    """The k best of each query ``(Q, D)``."""
    from qdrant_client import models

    asked = [models.QueryRequest(query=query.tolist(), limit=k) for query in queries]
    answers = client.query_batch_points(collection, asked)
    found = np.full((len(queries), k), -1, dtype=np.int64)
    scores = np.full((len(queries), k), -np.inf, dtype=np.float32)
    for row, answer in enumerate(answers):
        found[row, : len(answer.points)] = [point.id for point in answer.points]
        scores[row, : len(answer.points)] = [point.score for point in answer.points]
    return CandidateList(found, scores)


def write_elasticsearch(passages: Passages, folder: Path) -> None:
    """``mapping.json`` of a new index, and ``bulk-*.ndjson``, each a request to ``_bulk``."""
    vector = {
        "type": "dense_vector",
        "dims": passages.vectors.shape[1],
        "index": True,
        "similarity": "cosine",  # an inner product would refuse vectors whose length float16 has rounded
        "index_options": {"type": "hnsw"},  # the default rounds to int8
    }
    texts = {name: {"type": "text"} for name in ("title", "text")}
    mapping = {"mappings": {"properties": texts | {"vector": vector}}}
    (folder / "mapping.json").write_text(json.dumps(mapping, indent=1))

    def lines() -> Iterator[str]:
        for line, vector in _with_vectors(passages):
            action = json.dumps({"index": {"_id": line["id"]}}, ensure_ascii=False)
            source = {"title": line["title"], "text": line["text"], "vector": vector}
            yield f"{action}\n{json.dumps(source, ensure_ascii=False)}\n"

    _write_lines(folder, "bulk", ".ndjson", lines())


def write_lucene(passages: Passages, folder: Path) -> None:
    """``vectors-*.jsonl``, what Anserini calls a JsonDenseVectorCollection, and Pyserini's encoder writes."""

    def lines() -> Iterator[str]:
        for line, vector in _with_vectors(passages):
            source = {"docid": line["id"], "id": line["id"], "contents": line["text"], "vector": vector}
            yield json.dumps(source, ensure_ascii=False) + "\n"

    _write_lines(folder, "vectors", ".jsonl", lines())


def search_lines(folder: Path, queries: np.ndarray, k: int) -> CandidateList:
    """The k best of each query ``(Q, D)`` among the vectors in files of lines, in their order, by exact search."""
    with TemporaryDirectory(dir=folder) as room:
        n = 0
        with (Path(room) / "vectors").open("wb") as stream:
            for file in sorted([*folder.glob("*.ndjson"), *folder.glob("*.jsonl")]):
                with file.open(encoding="utf-8") as lines:
                    for line in lines:
                        if vector := json.loads(line).get("vector"):
                            np.array(vector, dtype=np.float32).tofile(stream)
                            n += 1
        shape = (n, queries.shape[1])
        vectors = np.memmap(Path(room) / "vectors", np.float32, "r", shape=shape)
        return search(queries, vectors, k)


def _with_vectors(passages: Passages) -> Iterator[tuple[dict[str, str], list[float]]]:
    for _, lines, vectors in passages.batches():
        rounded = np.round(vectors.astype(np.float64), _DECIMALS).tolist()
        yield from zip(lines, rounded, strict=True)


def _write_lines(folder: Path, stem: str, suffix: str, lines: Iterable[str]) -> None:
    """Files of at most 50 MB, or of one line."""
    number, left = -1, 0
    stream = None
    try:
        for line in lines:
            encoded = line.encode()
            if stream is None or left < len(encoded):
                if stream:
                    stream.close()
                number, left = number + 1, _FILE
                stream = (folder / f"{stem}-{number:05d}{suffix}").open("wb")
            stream.write(encoded)
            left -= len(encoded)
    finally:
        if stream:
            stream.close()


WRITE: dict[str, Callable[[Passages, Path], None]] = {
    "faiss": write_faiss,
    "elasticsearch": write_elasticsearch,
    "lucene": write_lucene,
}
SEARCH: dict[str, Callable[[Path, np.ndarray, int], CandidateList]] = {
    "faiss": search_faiss,
    "elasticsearch": search_lines,
    "lucene": search_lines,
}
