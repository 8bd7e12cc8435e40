"""Scores of (query, passage) pairs: by one teacher, or by several together."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from hydra import compose
from hydra.errors import HydraException
from hydra.utils import instantiate

from dense_retrieval.hub import model_folder
from dense_retrieval.memo import Memo, memo_path
from dense_retrieval.records import CandidateList, InputError
from dense_retrieval.stage import fingerprint
from dense_retrieval.stages.queries import plain
from dense_retrieval.stages.texts import TextStages
from dense_retrieval.sweep import split_overrides
from dense_retrieval.teacher import ensemble
from dense_retrieval.teacher.score import Teacher, score_candidates

_FILES = ("path", "revision", "adapter", "trust_remote_code")  # the weights' content stands for these


class TeacherStages(TextStages):
    """The teacher, or the members of an ensemble."""

    @cached_property
    def teacher(self) -> Teacher:
        """The one teacher, where it is no ensemble."""
        return self._load(self.config.teacher)

    def _load(self, teacher: Any) -> Teacher:
        return instantiate(teacher).to(self.device)

    @cached_property
    def _members(self) -> list[Any]:
        """Of an ensemble "bm25", "student" and configurations of teachers; else the one teacher's."""
        teacher: Any = self.config.teacher
        if "members" not in teacher:
            return [teacher]
        return [m if m in ("bm25", "student") else _composed(m) for m in teacher.members]

    @property
    def teacher_settings(self) -> dict[str, Any]:
        """What changes the scores, but for the weights."""
        settings: dict[str, Any] = {"bf16": self.bf16}
        for number, member in enumerate(self._members):
            if member == "bm25":
                values: Any = plain(self.config.retriever, only=["library", "k1", "b"])
            else:
                values = plain(self.config.student if member == "student" else member, *_FILES)
            settings[f"teacher {number}"] = values
        if "members" in self.config.teacher:
            settings["weights"] = plain(self.config.teacher, only=["weights"])["weights"]
        return settings

    @cached_property
    def teacher_inputs(self) -> dict[str, Path]:
        """The weights' files."""
        inputs: dict[str, Path] = {}
        for number, member in enumerate(self._members):
            if member == "student":
                inputs[f"teacher {number}"] = self.student_folder
            elif member != "bm25":
                inputs |= {f"{name} {number}": path for name, path in _weights(member).items()}
        return inputs

    def score(
        self,
        candidates: CandidateList,
        of: str,
        queries: Sequence[str],
        querytypes: Sequence[str],
        label: str,
    ) -> CandidateList:
        """The candidates with the teacher's scores.

        Args:
            candidates: ``(Q, K)``.
            of: which queries these are, as for :meth:`embeddings`.
            queries, querytypes: their Q texts and types.
        """
        lists = [self._member_scores(m, candidates, of, queries, label) for m in self._members]
        if "members" not in self.config.teacher:
            return lists[0]
        weights = self.config.teacher.weights
        return ensemble.average(lists, querytypes, None if weights is None else list(weights))

    def _member_scores(
        self, member: Any, candidates: CandidateList, of: str, queries: Sequence[str], label: str
    ) -> CandidateList:
        if member == "bm25":
            return self.bm25.score(queries, candidates)
        if member == "student":
            passages = self.embeddings("passages", tuned=False)[candidates.passages]
            cosines = np.einsum("qd,qkd->qk", self.embeddings(of, tuned=False), passages)
            scores = np.where(candidates.passages >= 0, cosines, -np.inf)
            return CandidateList(candidates.passages, scores.astype(np.float32))
        made_by = plain(member, *_FILES) | {"bf16": self.bf16}
        made_by |= {name: fingerprint(path) for name, path in _weights(member).items()}
        with Memo(memo_path(self.store.root, "scores", made_by)) as memo:
            return score_candidates(
                lambda: self._load(member),
                candidates,
                queries,
                self.corpus.passages["text"],
                memo,
                max_tokens=self.max_tokens,
                bf16=self.bf16,
                label=label,
            )


def _composed(words: str) -> Any:
    try:
        return compose("config", overrides=split_overrides(words)).teacher
    except HydraException as error:
        raise InputError(f"teacher.members: {words!r}: {' '.join(str(error).split())}") from error


def _weights(teacher: Any) -> dict[str, Path]:
    adapter = teacher.get("adapter")
    if adapter and not Path(adapter).is_dir():
        raise InputError(f"teacher.adapter={adapter}: there is no such folder")
    folders = {"weights": model_folder(teacher.path, teacher.revision)}
    return folders | ({"adapter": Path(adapter)} if adapter else {})
