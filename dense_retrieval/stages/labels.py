"""From training queries to groups: candidates, teacher scores, filters."""

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from dense_retrieval.candidates import filters, fusion
from dense_retrieval.groups import build
from dense_retrieval.records import CandidateList, Groups, InputError
from dense_retrieval.search.index import search
from dense_retrieval.stages.queries import counts_of, plain
from dense_retrieval.stages.teachers import TeacherStages


class LabelStages(TeacherStages):
    """Candidates, their scores, groups."""

    @cached_property
    def candidates_folder(self) -> Path:
        """The training queries' candidates; an empty list where the source is not near the top."""
        settings = plain(self.config.retriever) | plain(
            self.config.groups, only=["source_top_k", "list_size"]
        )
        inputs = {"corpus": self.corpus_folder, "queries": self.queries_folder}
        inputs["duplicates"] = self.duplicates_folder
        if self.config.retriever.dense:
            inputs |= {"passage_tokens": self.tokens_folder("passages"), "student": self.student_folder}
            inputs |= {"query_tokens": self.tokens_folder("training")}
            settings |= {"pooling": self.config.student.pooling, "bf16": self.bf16}

        def build_candidates(folder: Path) -> dict[str, int]:
            found = self._retrieve()
            found.save(folder / "candidates.npz")
            return {"queries": len(found.passages), "kept": int((found.passages[:, 0] >= 0).sum())}

        return self.store.stage("candidates", settings, inputs, build_candidates)

    def _retrieve(self) -> CandidateList:
        retriever, groups = self.config.retriever, self.config.groups
        lists = []
        if retriever.bm25:
            lists.append(self.bm25.search(self.queries["text"], retriever.k))
        if retriever.dense:
            embeddings = self.embeddings("training", tuned=False), self.embeddings("passages", tuned=False)
            lists.append(search(*embeddings, retriever.k, device=self.device))
        found = fusion.reciprocal_rank(lists, retriever.fusion_k) if len(lists) > 1 else lists[0]
        found = filters.drop_passages(found, self.untrained)
        source = np.array(self.queries["source"])
        near = filters.keep_source_within(found, source, groups.source_top_k)
        found = filters.cut(found, source, groups.list_size)
        return filters.drop(found, np.broadcast_to(~near[:, None], found.passages.shape))

    @cached_property
    def scores_folder(self) -> Path:
        """The teacher's scores of the candidates."""
        inputs = {"candidates": self.candidates_folder} | self.teacher_inputs

        settings = self.teacher_settings
        if self.config.groups.scored_before is not None:
            if "members" in self.config.teacher:
                raise InputError("groups.scored_before needs a single teacher: choose one with teacher=")
            settings |= plain(self.config.groups, only=["scored_before"])

        def build_scores(folder: Path) -> dict[str, int]:
            candidates = CandidateList.load(self.candidates_folder / "candidates.npz")
            candidates.passages[self.scored_later] = -1
            texts, types = self.queries["text"], self.queries["querytype"]
            scored = self.score(candidates, "training", texts, types, "teacher scores")
            scored.save(folder / "scores.npz")
            return {"pairs": int((candidates.passages >= 0).sum())}

        return self.store.stage("scores", settings, inputs, build_scores)

    @cached_property
    def scored_later(self) -> np.ndarray:
        """``(Q,)`` bool: training queries that the teacher scores while they are trained on.

        Those that come first, in their random order, are scored before: labels and temperatures are
        scaled by them.
        """
        before = self.config.groups.scored_before
        return np.arange(len(self.queries)) >= (len(self.queries) if before is None else before)

    @cached_property
    def groups_folder(self) -> Path:
        """Training groups, and the normalised scores of all lists."""
        settings = plain(self.config.groups, "source_top_k", "scored_before") | {"seed": self.config.seed}

        def build_groups(folder: Path) -> dict[str, Any]:
            scored = CandidateList.load(self.scores_folder / "scores.npz")
            candidates = CandidateList.load(self.candidates_folder / "candidates.npz")
            built = build.build(
                CandidateList(candidates.passages, scored.scores),
                np.array(self.queries["source"]),
                self.queries["querytype"],
                **settings,
                later=self.scored_later,
            )
            np.save(folder / "scale.npy", built.scale)
            built.groups.save(folder / "groups.npz")
            np.save(folder / "normalised.npy", built.normalised)
            return built.yields

        return self.store.stage("groups", settings, {"scores": self.scores_folder}, build_groups)

    @cached_property
    def groups(self) -> Groups:
        return Groups.load(self.groups_folder / "groups.npz")

    @cached_property
    def dev_queries(self) -> Dataset:
        """The training queries whose losses choose the checkpoint.

        Raises:
            InputError: there are none.
        """
        if not self.groups.dev.any():
            raise InputError(
                "evaluation.split=synthetic_dev tests on the dev queries: groups.dev_fraction must be above 0"
            )
        return self.queries.select(np.unique(self.groups.query[self.groups.dev]))

    @cached_property
    def yields(self) -> dict[str, dict[str, Any]]:
        """Query type -> step -> queries left; and under "dropped" what cleaning dropped, by reason."""
        labelled = counts_of(self.groups_folder)
        cleaned = counts_of(self.cleaned_folder()) if list(labelled) != ["human"] else {}
        return {name: cleaned.get(name, {}) | steps for name, steps in labelled.items()}
