"""python -m dense_retrieval.index RUN format=faiss|qdrant|elasticsearch|lucene [OVERRIDE...]: for search engines.

    python -m dense_retrieval.index runs/... format=faiss          # an index file, and passages.jsonl
    python -m dense_retrieval.index runs/... format=qdrant         # a folder for QdrantClient(path=...)
    python -m dense_retrieval.index runs/... format=qdrant url=http://localhost:6333 collection=NAME
    python -m dense_retrieval.index runs/... format=elasticsearch  # requests to _bulk, and the mapping
    python -m dense_retrieval.index runs/... format=lucene         # JSON lines with vectors, for Anserini and Pyserini

Texts, ids and the tuned student's vectors of all passages go to RUN/index/FORMAT, or output=FOLDER. Then the run's test
queries are asked there, and what is found is compared with the run's own search.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from dense_retrieval import bulk
from dense_retrieval.bulk import Passages
from dense_retrieval.errors import in_one_line
from dense_retrieval.evaluation import agreement
from dense_retrieval.files import written_through
from dense_retrieval.parity import DEPTH, Asked, ask, own_words
from dense_retrieval.records import CandidateList, InputError
from dense_retrieval.search import opened

if TYPE_CHECKING:
    from qdrant_client import QdrantClient

# What to do with what was written; a query's vector is the student's, SentenceTransformer(...).encode_query(...).
_NEXT = {
    "faiss": 'faiss.read_index("{folder}/passages.faiss") searches it; number n is line n of passages.jsonl',
    "qdrant": 'QdrantClient(path="{folder}") opens it; the collection is "{collection}"',
    "elasticsearch": """curl -X PUT localhost:9200/{collection} \\
  -H 'Content-Type: application/json' -d @{folder}/mapping.json
for file in {folder}/bulk-*.ndjson; do
  curl localhost:9200/{collection}/_bulk -H 'Content-Type: application/x-ndjson' --data-binary @$file; done""",
    "lucene": """bin/run.sh io.anserini.index.IndexHnswDenseVectors -collection JsonDenseVectorCollection \\
  -input {folder} -index INDEX -threads 8""",
}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m dense_retrieval.index",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, metavar="RUN")
    parser.add_argument(
        "words", nargs="*", metavar="NAME=VALUE", help="format=, output=, url=, collection=, overrides"
    )
    given = parser.parse_intermixed_args()
    try:
        index(given.folder, *own_words(given.words, "format", "output", "url", "collection"))
    except (InputError, HydraException, OmegaConfBaseException) as error:
        sys.exit(f"error: {in_one_line(error)}")


def index(folder: Path, own: dict[str, str], overrides: list[str]) -> agreement.Parity:
    """Write all passages, and say how what is found there compares with the run's own search.

    Args:
        own: "format", and perhaps "output", "collection" and, of Qdrant, "url".

    Raises:
        InputError: no such run, format or package; what is to be written is there already.
    """
    form = own.get("format", "")
    if form not in _NEXT:
        raise InputError(f"format={form}: choose of {', '.join(_NEXT)}")
    if own.get("url") and form != "qdrant":
        raise InputError(f"url={own['url']} goes with format=qdrant")
    if form == "qdrant" and find_spec("qdrant_client") is None:
        raise InputError("format=qdrant needs qdrant-client: pip install 'dense_retrieval[qdrant]'")
    of = opened(folder, overrides)
    output = Path(own.get("output") or of.folder / "index" / form)
    if not own.get("url") and output.exists():
        raise InputError(f"{output} is there already: remove it, or give another output=")
    asked = ask(of)
    passages, collection = Passages(asked.table, asked.passages), own.get("collection", "passages")
    if url := own.get("url"):
        found = _on_server(url, collection, passages, asked)
        print(f"{len(passages.table)} passages are in the collection {collection} of {url}")
    else:
        found = _in_folder(form, collection, passages, asked, output)
        print(_NEXT[form].format(folder=output, collection=collection))
    parity = agreement.parity(asked.ranking(asked.queries, asked.passages), asked.cut(found), asked.qrels)
    print(f"{form} against our search: {parity}")
    return parity


def _in_folder(form: str, collection: str, passages: Passages, asked: Asked, output: Path) -> CandidateList:
    """Write a folder, which gets its name when all of it is there; what it finds."""
    partial = output.with_name(f"{output.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    if form == "qdrant":
        from qdrant_client import QdrantClient

        client = QdrantClient(path=str(partial))
        bulk.write_qdrant(passages, client, collection)
        client.close()
    else:
        bulk.WRITE[form](passages, partial)
    written_through(partial)
    os.replace(partial, output)
    if form == "qdrant":
        client = QdrantClient(path=str(output))
        found = bulk.search_qdrant(client, collection, asked.queries, DEPTH + 1)
        client.close()
        return found
    return bulk.SEARCH[form](output, asked.queries, DEPTH + 1)


def _on_server(url: str, collection: str, passages: Passages, asked: Asked) -> CandidateList:
    client = _client(url)
    try:
        if client.collection_exists(collection):
            raise InputError(f"{url} has a collection {collection} already: give another collection=")
        bulk.write_qdrant(passages, client, collection)
        return bulk.search_qdrant(client, collection, asked.queries, DEPTH + 1)
    except InputError:
        raise
    except Exception as error:  # of two transports
        first = str(error).strip().partition("\n")[0][:200]
        raise InputError(f"url={url}: Qdrant does not take it ({type(error).__name__}: {first})") from error


def _client(url: str) -> QdrantClient:
    from qdrant_client import QdrantClient

    return QdrantClient(url=url, api_key=os.environ.get("QDRANT_API_KEY"))


if __name__ == "__main__":
    main()
