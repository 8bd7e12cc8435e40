"""Token ids and embeddings of passages and queries, and an index of their words."""

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from hydra.utils import instantiate

from dense_retrieval.candidates.bm25 import BM25
from dense_retrieval.hub import model_folder
from dense_retrieval.stages.queries import SYNTHETIC_DEV, QueryStages, plain
from dense_retrieval.student.bi_encoder import BiEncoder
from dense_retrieval.student.encode import encode
from dense_retrieval.student.tokens import Tokens, tokenize


class TextStages(QueryStages):
    """Token ids, embeddings and BM25."""

    @cached_property
    def student_folder(self) -> Path:
        return model_folder(self.config.student.path, self.config.student.revision)

    @cached_property
    def student(self) -> BiEncoder:
        """The untuned student."""
        return instantiate(self.config.student)

    def tokens_folder(self, of: str) -> Path:
        """Token ids of the "passages", of the "training", the "heldout" or the dev queries, or of a split's."""
        student = self.config.student
        passages = of == "passages"
        settings: dict[str, Any] = {
            "of": of,
            "length": student.passage_length if passages else student.query_length,
            "prefix": student.passage_prefix if passages else student.query_prefix,
        }
        of_queries = {
            "training": "queries_folder",
            "heldout": "heldout_folder",
            SYNTHETIC_DEV: "groups_folder",
        }
        texts_folder = getattr(self, of_queries.get(of, "corpus_folder"))
        inputs = {"texts": texts_folder, "tokenizer": self.student_folder}

        def build_tokens(folder: Path) -> dict[str, int]:
            tables = {
                "passages": lambda: self.corpus.passages,
                "training": lambda: self.queries,
                "heldout": lambda: self.heldout_queries,
                SYNTHETIC_DEV: lambda: self.dev_queries,  # type: ignore[attr-defined]
            }
            texts = tables.get(of, lambda: self.corpus.queries[of])()["text"]
            return tokenize(texts, self.student.tokenizer, settings["length"], settings["prefix"], folder)

        return self.store.stage("tokens", settings, inputs, build_tokens)

    @property
    def bm25(self) -> BM25:
        """An index of the passages, made anew: it is large."""
        settings: dict[str, Any] = plain(self.config.retriever, only=["library", "k1", "b"])
        return BM25(self.corpus.passages["text"], **settings)

    def embeddings(self, of: str, tuned: bool) -> np.ndarray:
        """``(N, D)`` float32, memory-mapped, by the tuned or the untuned student."""
        settings = {"pooling": self.config.student.pooling, "bf16": self.bf16}
        tokens = self.tokens_folder(of)
        weights = self.tuned_folder if tuned else self.student_folder  # type: ignore[attr-defined]
        inputs = {"tokens": tokens, "student": weights}

        def build_embeddings(folder: Path) -> None:
            student = self.tuned_student if tuned else self.student  # type: ignore[attr-defined]
            label = f"{'tuned' if tuned else 'untuned'} student: {of}"
            encode(
                student,
                Tokens.load(tokens),
                folder,
                device=self.device,
                bf16=self.bf16,
                max_tokens=self.max_tokens,
                label=label,
            )

        folder = self.store.stage("embeddings", settings, inputs, build_embeddings)
        return np.load(folder / "embeddings.npy", mmap_mode="r")
