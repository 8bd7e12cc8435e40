"""The stages of a run, each with the settings and inputs that its artifact depends on.

Every property is the folder of a finished stage, built when it is first asked for.
"""

import json
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from hydra.utils import instantiate
from omegaconf import OmegaConf

from dense_retrieval.candidates import bm25, filters, fusion
from dense_retrieval.config import Config
from dense_retrieval.groups import build
from dense_retrieval.hub import model_folder
from dense_retrieval.losses import temperature
from dense_retrieval.queries import clean, draw, human
from dense_retrieval.records import CandidateList, Corpus, Groups, read_table, write_table
from dense_retrieval.search.index import search
from dense_retrieval.stage import Store
from dense_retrieval.student.bi_encoder import BiEncoder
from dense_retrieval.student.encode import encode
from dense_retrieval.student.tokens import Tokens, tokenize
from dense_retrieval.teacher.score import score_candidates
from dense_retrieval.training.fit import fit


class Stages:
    def __init__(self, config: Config) -> None:
        self.config = config
        self.store = Store(Path(config.cache_dir))
        cuda = torch.cuda.is_available()
        self.device = ("cuda" if cuda else "cpu") if config.device == "auto" else config.device
        self.bf16 = config.precision == "bf16-mixed"

    # -- texts -----------------------------------------------------------------------------

    @cached_property
    def corpus_folder(self) -> Path:
        settings = plain(self.config.data, "drop_self_matches", "queries", "path")
        path = self.config.data.get("path")
        inputs = {"path": Path(path)} if path else {}

        def build_corpus(folder: Path) -> dict[str, int]:
            corpus = instantiate(self.config.data)
            corpus.save(folder)
            return {"passages": len(corpus.passages)} | {s: len(q) for s, q in corpus.queries.items()}

        return self.store.stage("corpus", settings, inputs, build_corpus)

    @cached_property
    def corpus(self) -> Corpus:
        return Corpus.load(self.corpus_folder)

    @cached_property
    def queries_folder(self) -> Path:
        """The training queries, cleaned, drawn by type."""
        settings = plain(self.config.querytype) | {"seed": self.config.seed}
        inputs = {"corpus": self.corpus_folder}
        if "human" not in self.config.querytype.types and self.config.generator.path:
            inputs["file"] = Path(self.config.generator.path)

        def build_queries(folder: Path) -> dict[str, Any]:
            table, counts = self._drawn_queries()
            write_table(table, folder / "queries.parquet")
            return counts

        return self.store.stage("queries", settings, inputs, build_queries)

    @cached_property
    def queries(self) -> Dataset:
        return read_table(self.queries_folder / "queries.parquet")

    # -- embeddings ------------------------------------------------------------------------

    @cached_property
    def student_folder(self) -> Path:
        return model_folder(self.config.student.path, self.config.student.revision)

    @cached_property
    def student(self) -> BiEncoder:
        """The untuned student."""
        return instantiate(self.config.student)

    def tokens_folder(self, of: str) -> Path:
        """Token ids of the "passages", the "train" queries or the "test" queries."""
        student = self.config.student
        passages = of == "passages"
        settings = {
            "of": of,
            "length": student.passage_length if passages else student.query_length,
            "prefix": student.passage_prefix if passages else student.query_prefix,
        }
        inputs = {
            "texts": self.queries_folder if of == "train" else self.corpus_folder,
            "tokenizer": self.student_folder,
        }

        def build_tokens(folder: Path) -> dict[str, int]:
            texts = {
                "passages": lambda: self.corpus.passages,
                "train": lambda: self.queries,
                "test": lambda: self.corpus.queries["test"],
            }[of]()["text"]
            return tokenize(texts, self.student.tokenizer, settings["length"], settings["prefix"], folder)

        return self.store.stage("tokens", settings, inputs, build_tokens)

    def embeddings(self, of: str, tuned: bool) -> np.ndarray:
        """``(N, D)`` float32, memory-mapped, by the tuned or the untuned student."""
        settings = {"pooling": self.config.student.pooling, "bf16": self.bf16}
        tokens = self.tokens_folder(of)
        inputs = {"tokens": tokens, "student": self.training_folder if tuned else self.student_folder}

        def build_embeddings(folder: Path) -> None:
            student = self.tuned_student if tuned else self.student
            label = f"{'tuned' if tuned else 'untuned'} student: {of}"
            encode(student, Tokens.load(tokens), folder, device=self.device, bf16=self.bf16, label=label)

        folder = self.store.stage("embeddings", settings, inputs, build_embeddings)
        return np.load(folder / "embeddings.npy", mmap_mode="r")

    # -- labels ----------------------------------------------------------------------------

    @cached_property
    def candidates(self) -> CandidateList:
        """The training queries' candidates; no list where the source is not near the top."""
        settings = plain(self.config.retriever) | plain(self.config.groups, only=["source_top_k", "list_size"])
        inputs = {"corpus": self.corpus_folder, "queries": self.queries_folder}
        if self.config.retriever.dense:
            inputs["student"] = self.student_folder

        def build_candidates(folder: Path) -> None:
            self._retrieve().save(folder / "candidates.npz")

        self.candidates_folder = self.store.stage("candidates", settings, inputs, build_candidates)
        return CandidateList.load(self.candidates_folder / "candidates.npz")

    def _retrieve(self) -> CandidateList:
        retriever, groups = self.config.retriever, self.config.groups
        lists = []
        if retriever.bm25:
            lists.append(self._bm25(self.queries["text"], retriever.k))
        if retriever.dense:
            embeddings = self.embeddings("train", tuned=False), self.embeddings("passages", tuned=False)
            lists.append(search(*embeddings, retriever.k, device=self.device))
        found = fusion.reciprocal_rank(lists, retriever.fusion_k) if len(lists) > 1 else lists[0]
        found = filters.drop_passages(found, self.corpus.heldout)
        source = np.array(self.queries["source"])
        near = filters.keep_source_within(found, source, groups.source_top_k)
        found = filters.cut(found, source, groups.list_size)
        return CandidateList(
            np.where(near[:, None], found.passages, -1), np.where(near[:, None], found.scores, -np.inf)
        )
