"""``conf/data/``: corpora."""

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from dense_retrieval.schemas.setting import setting


@dataclass
class Data:
    """A corpus."""

    _target_: str = MISSING
    text: str = setting("title_and_text", "title_and_text, BEIR's convention, or text_only, the paper's")
    passage_characters: int | None = setting(None, "longer passages are cut; null = never", least=1)
    drop_self_matches: bool = setting(False, "no query finds the passage that has its id (ArguAna)")
    task: str = setting(
        "Given a web search query, retrieve relevant passages that answer the query",
        "what a query asks for, which students that read instructions are told",
    )
    queries: str | None = setting(None, "file of synthetic queries that come with the corpus")
    mixed: list[str] = setting(
        ["claim", "keyword", "question", "title", "msmarco", "web"], "the query types of querytype=mixed"
    )


@dataclass
class EmbeddedData(Data):
    """A corpus of the package."""

    text: str = setting("text_only", "title_and_text, BEIR's convention, or text_only, the paper's")
    passage_characters: int | None = setting(2048, "longer passages are cut; null = never", least=1)


@dataclass
class BeirData(Data):
    """A corpus in BEIR's form."""

    query_characters: int | None = setting(None, "longer queries are cut; null = never", least=1)
    test_split: str = setting("test", "name of the qrels file")
    heldout: int = setting(100, "passages that no training query may come from", least=0)
    missing_passages: int = setting(0, "judged passages that the corpus is known to lack", least=0)


@dataclass
class FolderData(BeirData):
    """A corpus on this machine."""

    _target_: str = "dense_retrieval.corpus.beir.read_folder"
    path: str = setting(MISSING, "folder or zip in BEIR's layout, or a .jsonl or .parquet of documents alone")


@dataclass
class Columns:
    """Of a .csv, .jsonl or Parquet file with documents, or of a named collection."""

    text: str = setting("text", "column of the texts")
    title: str = setting("title", "column of the titles, where there is one")
    id: str = setting("id", "column of the ids, where there is one; else the file and the row")


@dataclass
class DocumentsData(Data):
    """Documents on this machine, or of a named collection, without queries."""

    _target_: str = "dense_retrieval.corpus.documents.read_documents"
    path: str = setting(
        MISSING,
        "folder or file: .txt .md .html .pdf .csv .jsonl .parquet; or the name of a collection of data.source",
    )
    source: str = setting(
        "files",
        "where data.path is: files; hub, a dataset of the Hugging Face hub or a folder in its layout; ir_datasets",
    )
    subset: str | None = setting(
        None, "configuration of a dataset of the hub, such as corpus; null = its only one"
    )
    split: str = setting("train", "of a dataset of the hub")
    revision: str | None = setting(None, "branch, tag or commit on the hub")
    passage_tokens: Any = setting(
        MISSING, "of a passage at most, by the student's tokenizer; auto is 256", least=32
    )
    overlap_tokens: int = setting(0, "of a passage that the one before it ends with, at most", least=0)
    columns: Columns = field(default_factory=Columns, metadata={"meaning": "names of a table's columns"})
    heldout: int = setting(100, "passages whose synthetic queries are tested on", least=0)


@dataclass
class Known:
    """What BEIR says of a corpus of its (table 1 of arXiv 2104.08663): plans need it before the corpus is there."""

    passages: int | None = setting(None, "of the corpus", least=1)
    words: float | None = setting(None, "of a passage, on average", above=0)
    train_queries: int | None = setting(None, "judged queries to train on", least=1)
    test_queries: int | None = setting(None, "judged queries to test on", least=1)


@dataclass
class NamedData(BeirData):
    """A corpus of BEIR's."""

    _target_: str = "dense_retrieval.corpus.beir.read_named"
    name: str = setting(MISSING, "dataset on the hub")
    revision: str | None = setting(None, "branch, tag or commit there")
    zip: bool = setting(False, "BEIR's own zip instead of the hub")
    zip_name: str = setting(MISSING, "of BEIR's zip, without .zip")
    zip_md5: str = setting(MISSING, "of BEIR's zip, as BEIR publishes it")
    known: Known = field(default_factory=Known, metadata={"meaning": "its size, for plans"})


@dataclass
class Mixture(Data):
    """Several corpora, one student. What is given here holds for all of them."""

    _target_: str = ""
    members: list[str] = setting(MISSING, 'the overrides of each corpus, such as "data=fiqa querytype=mixed"')
