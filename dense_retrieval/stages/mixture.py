"""Several corpora, one student."""

from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from hydra import compose
from hydra.core.hydra_config import HydraConfig

from dense_retrieval.config import Config
from dense_retrieval.records import Groups, InputError
from dense_retrieval.stages.rankings import Stages
from dense_retrieval.stages.training import TrainingStages
from dense_retrieval.student.tokens import Tokens, concatenate
from dense_retrieval.sweep import split_overrides


class MixtureStages(TrainingStages):
    """Each corpus goes through stages of its own up to its groups; one student learns from all of
    them, every batch from one corpus, and is tested on each.

    Args:
        members: what would follow ``python -m dense_retrieval.run`` for each corpus alone, such as
            ``data=fiqa`` or ``data=beir data.path=FOLDER``. Other overrides hold for all of them.
    """

    def __init__(
        self, config: Config, log: Callable[[Mapping[str, float], int], None], members: list[str]
    ) -> None:
        super().__init__(config, log)
        if len(members) < 2:
            raise InputError(
                "data=mixture needs two corpora at least: \"data.members=['data=scifact', 'data=fiqa']\""
            )
        if config.groups.scored_before is not None:
            raise InputError(
                f"groups.scored_before={config.groups.scored_before} and data=mixture do not go together: "
                "leave one out"
            )
        shared = [o for o in HydraConfig.get().overrides.task if not o.startswith(("data=", "data.members="))]
        self.members: dict[str, Stages] = {}
        for number, words in enumerate(members):
            member: Any = compose("config", overrides=[*shared, *split_overrides(words)])
            if member.student != config.student:
                raise InputError(f"data.members: {words!r} has another student; give student= for all")
            self.members[f"{number}-{words.split()[0].removeprefix('data=')}"] = Stages(member, log)
        for stages in self.members.values():
            stages.store = self.store
            # What they test is the student of the mixture.
            stages.use_student(lambda: self.training_folder / "model")

    @cached_property
    def groups_folder(self) -> Path:
        """The groups of all members, rows counted through, and which corpus each is of."""
        inputs = {name: stages.groups_folder for name, stages in self.members.items()}

        def build_groups(folder: Path) -> dict[str, int]:
            parts = [stages.groups for stages in self.members.values()]
            queries = np.cumsum([0] + [len(stages.queries) for stages in self.members.values()])
            passages = np.cumsum([0] + [len(stages.corpus.passages) for stages in self.members.values()])
            moved = [
                Groups(
                    part.query + query,
                    np.where(part.passages >= 0, part.passages + passage, -1),
                    part.teacher,
                    part.source + passage,
                    part.dev,
                )
                for part, query, passage in zip(parts, queries, passages, strict=False)
            ]
            names = ["query", "passages", "teacher", "source", "dev"]
            Groups(*(np.concatenate([getattr(part, n) for part in moved]) for n in names)).save(
                folder / "groups.npz"
            )
            np.save(folder / "corpus.npy", np.repeat(np.arange(len(parts)), [len(p.query) for p in parts]))
            return {name: len(p.query) for name, p in zip(self.members, parts, strict=True)}

        return self.store.stage("mixture", {}, inputs, build_groups)

    @property
    def group_corpus(self) -> np.ndarray:
        return np.load(self.groups_folder / "corpus.npy")

    def tokens_folder(self, of: str) -> Path:
        inputs = {name: stages.tokens_folder(of) for name, stages in self.members.items()}

        def build_tokens(folder: Path) -> None:
            concatenate([Tokens.load(path) for path in inputs.values()], folder)

        return self.store.stage("mixture_tokens", {}, inputs, build_tokens)

    @property
    def scored_lists(self) -> tuple[np.ndarray, np.ndarray]:
        parts = zip(*(stages.scored_lists for stages in self.members.values()), strict=True)
        scores, source = (np.concatenate(part) for part in parts)
        return scores, source

    @property
    def training_cosines(self) -> np.ndarray:
        return np.concatenate([stages.training_cosines for stages in self.members.values()])
