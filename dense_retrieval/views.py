"""What stages read of a corpus and of queries: passages, token ids, embeddings, an index, how hard to find they are."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from omegaconf import OmegaConf

from dense_retrieval.candidates.difficulty import Difficulty, difficulty
from dense_retrieval.candidates.index import bm25_index
from dense_retrieval.config import Config
from dense_retrieval.corpus.read import read
from dense_retrieval.hardware import hardware
from dense_retrieval.hub import ENCODER, dimension, model_folder, transformer_folder
from dense_retrieval.losses.loss import require_dimensions
from dense_retrieval.models import engine_of, passage_length, prefixes, student_settings, tunes_passages
from dense_retrieval.nodes import outside, plain, settings
from dense_retrieval.records import Corpus, InputError, TestSet
from dense_retrieval.stage import Counted, Folder, Outside, Step
from dense_retrieval.student.encode import embeddings
from dense_retrieval.student.export_engine import exported
from dense_retrieval.student.tokenizer import ends_texts
from dense_retrieval.student.tokens import Tokens, tokens

if TYPE_CHECKING:
    from datasets import Dataset

    from dense_retrieval.candidates.bm25 import BM25

_DOCUMENTS_PASSAGE = (
    256  # tokens, where none are given: the length of passages follows from how documents are cut
)
# Prefixes and lengths are in the token ids; the implementation of attention changes speed.
_IN_THE_IDS = ("query_prefix", "passage_prefix", "append_eos", "query_length", "passage_length")
NOT_TRAINING = (*_IN_THE_IDS, "attention")
_NOT_EMBEDDING = (*NOT_TRAINING, "dropout")


def corpus_of(c: Config) -> Step[Corpus]:
    # what is left out is for later stages
    loader = settings(c.data, "path", "drop_self_matches", "queries", "mixed", "heldout", "known", "task")
    known = plain(c.data.known) if "known" in c.data else None
    of_documents = "passage_tokens" in c.data
    if of_documents and loader["passage_tokens"] == "auto":
        loader["passage_tokens"] = loader.keyed["passage_tokens"] = _DOCUMENTS_PASSAGE
    tokenizer = tokenizer_of(c) if of_documents else None
    path = c.data.get("path")
    if c.data.get("source", "files") != "files" and not Path(path).exists():
        loader["path"] = loader.keyed["path"] = path  # a name elsewhere
        path = None
    return read(outside("data.path", path), tokenizer, loader=loader, known=known)


def untuned(c: Config) -> Outside:
    """The weights of the untuned student."""
    return Outside(model_folder(c.student.path, c.student.revision, "student=all_minilm"))


def dimensions(c: Config, setting: str) -> list[int]:
    """To which a setting has embeddings cut.

    Raises:
        InputError: see :func:`require_dimensions`.
    """
    config: Any = c
    given = list(OmegaConf.select(config, setting))
    if given:
        require_dimensions(setting, given, whole_dimension(c))
    return given


def whole_dimension(c: Config) -> int:
    """Of the student's embeddings.

    Raises:
        InputError: its ``config.json`` does not say it.
    """
    student = Counted()
    student.path = untuned(c).path
    size = dimension(student)
    if math.isnan(size):
        raise InputError(
            f"student.path={c.student.path}: its config.json has no hidden_size, of which embeddings would be cut"
        )
    return int(size)


def tokenizer_of(c: Config) -> Outside:
    """The untuned student's ``tokenizer.json``."""
    named = f"student.path={c.student.path}"
    file = transformer_folder(untuned(c).path, named, *ENCODER) / "tokenizer.json"
    if not file.is_file():
        raise InputError(
            f"{named}: has no tokenizer.json, by which documents are cut; choose another student="
        )
    return Outside(file)


def tokenized(c: Config, texts: Folder[Any], of: str) -> Step[Tokens]:
    """Token ids of "passages", of "queries" to train on, or of "test queries"."""
    student, prefix = c.student, prefixes(c)
    lengths = {"passages": passage_length(c), "queries": student.query_length}
    return tokens(
        texts,
        untuned(c),
        of="passages" if of == "passages" else "queries",
        length=lengths.get(of, c.evaluation.query_length),
        prefix=prefix["passage_prefix" if of == "passages" else "query_prefix"],
        trust_remote_code=student.trust_remote_code,
        append_eos=ends_texts(student.append_eos, student.pooling),
        executor=hardware(c).executor,
    )


def embedded(
    c: Config, texts: Folder[Any], of: str, weights: Folder[Path], engine: str | None = None
) -> Step[np.ndarray]:
    """Embeddings of what :func:`tokenized` takes, by a student; with ``student.tune=queries`` passages keep those
    of the untuned student, whoever asks.

    Args:
        engine: None is the configuration's.
    """
    if of == "passages" and not tunes_passages(c):
        weights = untuned(c)
    on, student, engine = hardware(c), student_settings(c, *_NOT_EMBEDDING), engine or engine_of(c)
    file = None
    if engine != "torch":
        passages = tokenized(c, corpus_of(c), "passages") if engine == "openvino_int8" else None
        # bfloat16 is how a file is read
        file = exported(weights, passages, student=student, engine=engine.removesuffix("_bf16"))
    bf16 = on.bf16 or engine == "openvino_bf16"
    where: dict[str, Any] = {"bf16": bf16, "device": on.workers, "max_tokens": on.max_tokens}
    where |= {"executor": on.executor, "float16_from": c.student.float16_from}
    return embeddings(tokenized(c, texts, of), weights, file, student=student, **where)


def measured(
    c: Config,
    corpus: Step[Corpus],
    queries: Step[Dataset] | Step[TestSet],
    of: str,
    sample: int | None = None,
) -> Step[Difficulty]:
    """How hard some queries are, of which :func:`tokenized` says what they may be."""
    return difficulty(
        queries,
        corpus,
        bm25(c, corpus),
        embedded(c, queries, of, untuned(c)),
        embedded(c, corpus, "passages", untuned(c)),
        sample=sample,
        device=hardware(c).device,
    )


def bm25(c: Config, corpus: Folder[Corpus]) -> Step[BM25]:
    """The index of a corpus."""
    return bm25_index(corpus, **plain(c.retriever, only=("library", "k1", "b")))


def searchers_views(
    c: Config, queries: Step[Any], of: str, corpus: Step[Corpus], members: list[Any]
) -> tuple[Step[BM25] | None, Step[np.ndarray] | None, Step[np.ndarray] | None]:
    """BM25's index, and embeddings by the untuned student, of those that are members of the teachers' ensemble."""
    index = bm25(c, corpus) if "bm25" in members else None
    if "student" not in members:
        return index, None, None
    return index, embedded(c, queries, of, untuned(c)), embedded(c, corpus, "passages", untuned(c))
