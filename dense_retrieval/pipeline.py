"""The pipeline: which stage reads what, with which settings. Nothing is computed here.

The order of the lines is the order of the work. Each function takes the configuration of one corpus and gives
steps, which a :class:`~dense_retrieval.store.Store` builds.
"""

import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
import transformers
from datasets import Dataset
from hydra import compose
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.utils import instantiate
from omegaconf import OmegaConf

from dense_retrieval.candidates.mine import candidates
from dense_retrieval.config import Config, LanguageModel
from dense_retrieval.corpus.dedup import find_duplicates
from dense_retrieval.corpus.read import read
from dense_retrieval.evaluation.rank import DEPTH, bm25_ranking, student_ranking, teacher_ranking
from dense_retrieval.groups.build import groups
from dense_retrieval.groups.mixture import mixture
from dense_retrieval.hub import model_folder
from dense_retrieval.losses.combined import DistillationLoss
from dense_retrieval.queries.clean import clean_queries
from dense_retrieval.queries.draw import dev_queries, draw_queries, heldout_queries
from dense_retrieval.queries.files import from_file
from dense_retrieval.queries.prompts import Prompt, type_name
from dense_retrieval.queries.write import HOW_IT_ANSWERS, write
from dense_retrieval.records import CandidateList, Corpus, Groups, InputError
from dense_retrieval.stage import Folder, Outside, Settings, Step
from dense_retrieval.student.encode import embeddings
from dense_retrieval.student.tokens import Tokens, mixture_tokens, tokens
from dense_retrieval.sweep import split_overrides
from dense_retrieval.teacher.scores import scores
from dense_retrieval.training.train import train

for library in ("bm25s", "httpx", "faiss.loader"):  # they narrate
    logging.getLogger(library).setLevel(logging.WARNING)
transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()
datasets.disable_progress_bars()
warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)  # peft asks for it

SYNTHETIC_DEV = "synthetic_dev"  # a split: the synthetic queries of the training's dev passages
_WHAT_IS_ASKED = ("passages", "passage_characters", "passage_first", "seed")
_FILES = ("path", "revision", "adapter", "trust_remote_code")  # the weights' content stands for these


def plain(config: Any, *without: str, only: Sequence[str] | None = None) -> dict[str, Any]:
    """A node of the configuration as JSON values, without some keys, or with these only."""
    values = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    assert isinstance(values, dict)
    return {str(k): v for k, v in values.items() if k not in without and (only is None or k in only)}


@dataclass(frozen=True)
class Hardware:
    """Where the work is done; nothing of it changes a result but ``bf16``."""

    device: str
    bf16: bool
    max_tokens: int  # padded tokens a forward pass: what fits a CPU's cache, what fills a GPU
    memos: Path  # folder of answers and scores that no run pays for twice


def hardware(c: Config) -> Hardware:
    cuda = torch.cuda.is_available()
    device = ("cuda" if cuda else "cpu") if c.device == "auto" else c.device
    fills = 65_536 if device.startswith("cuda") else 2_048
    return Hardware(device, c.precision == "bf16-mixed", fills, Path(c.cache_dir))


@dataclass(frozen=True)
class Part:
    """One corpus with its training queries, before anything is ranked or scored."""

    config: Config
    on: Hardware
    corpus: Step[Corpus]
    duplicates: Step[np.ndarray]
    cleaned: Step[Dataset] | None  # None where all training queries are human
    heldout: Step[Dataset] | None  # queries of held-out passages, where they are asked for
    queries: Step[Dataset]
    student: Outside  # the untuned weights


def corpora(c: Config) -> dict[str, Config]:
    """The configuration of each corpus that one student is trained on; of a single one without a name.

    Of a mixture each member is what would follow ``python -m dense_retrieval.run`` for it alone; the
    command's other overrides hold for all of them.
    """
    if "members" not in c.data:
        return {"": c}
    if len(c.data.members) < 2:
        raise InputError(
            "data=mixture needs two corpora at least: \"data.members=['data=scifact', 'data=fiqa']\""
        )
    if c.groups.scored_before is not None:
        raise InputError(
            f"groups.scored_before={c.groups.scored_before} and data=mixture do not go together: leave one out"
        )
    shared = [o for o in HydraConfig.get().overrides.task if not o.startswith(("data=", "data.members="))]
    found = {}
    for number, words in enumerate(c.data.members):
        member: Any = compose("config", overrides=[*shared, *split_overrides(words)])
        if member.student != c.student:
            raise InputError(f"data.members: {words!r} has another student; give student= for all")
        found[f"{number}-{words.split()[0].removeprefix('data=')}"] = member
    return found


def prepare(c: Config) -> Part:
    """From the corpus to its training queries."""
    on = hardware(c)
    types = [type_name(t) for t in c.querytype.types]
    student = Outside(model_folder(c.student.path, c.student.revision))
    loader = plain(
        c.data, "drop_self_matches", "queries", "mixed", "path"
    )  # the first three are for later stages
    corpus = read(_outside("data.path", c.data.get("path")), **loader)
    duplicates = find_duplicates(corpus)
    cleaned = (
        clean_queries(corpus, raw_queries(c, corpus, duplicates, "train")) if types != ["human"] else None
    )
    heldout = None
    if c.evaluation.heldout_types:
        asked = clean_queries(corpus, raw_queries(c, corpus, duplicates, "heldout"))
        heldout = heldout_queries(corpus, asked, types=[type_name(t) for t in c.evaluation.heldout_types])
    queries = draw_queries(corpus, duplicates, cleaned, types=types, total=c.querytype.total, seed=c.seed)
    return Part(c, on, corpus, duplicates, cleaned, heldout, queries, student)


def raw_queries(c: Config, corpus: Step[Corpus], duplicates: Step[np.ndarray], of: str) -> Step[Dataset]:
    """Synthetic queries, not cleaned: of passages to "train" on, or of the "heldout" ones."""
    if not issubclass(OmegaConf.get_type(c.generator) or object, LanguageModel):
        return from_file(corpus, _outside("generator.path", c.generator.path))
    backend = plain(c.generator, *_WHAT_IS_ASKED)
    files = getattr(instantiate(backend), "files", None)
    prompts = [asdict(prompt) for prompt in _prompts(c, of)]
    return write(
        corpus,
        duplicates,
        Outside(files) if files else None,
        of=of,
        prompts=prompts,
        backend=backend,
        memos=Path(c.cache_dir),
        # A larger context answers prompts that did not fit.
        **plain(c.generator, only=(*_WHAT_IS_ASKED, *HOW_IT_ANSWERS, "context")),
    )


def _prompts(c: Config, of: str) -> list[Prompt]:
    types = c.querytype.types if of == "train" else c.evaluation.heldout_types
    prompts = [Prompt.load(t) for t in dict.fromkeys(types) if t != "human"]
    names = [prompt.querytype for prompt in prompts]
    if taken := [name for name in names if name == "human" or names.count(name) > 1]:
        raise InputError(
            f"querytype.types={list(types)}: two types are called {taken[0]!r}; rename the prompt's file"
        )
    return prompts


def _outside(setting: str, path: str | None) -> Outside | None:
    """A file or folder that a setting names."""
    if path and not Path(path).exists():
        raise InputError(f"{setting}={path}: there is no such folder or file")
    return Outside(Path(path)) if path else None


# ---- texts


def tokens_of(part: Part, of: str, texts: Step[Any]) -> Step[Tokens]:
    """Token ids of the "passages", or of the queries of a split, "training" or "heldout"."""
    student = part.config.student
    passages = of == "passages"
    return tokens(
        texts,
        part.student,
        of=of,
        length=student.passage_length if passages else student.query_length,
        prefix=student.passage_prefix if passages else student.query_prefix,
        trust_remote_code=student.trust_remote_code,
    )


def embedded(part: Part, of: str, texts: Step[Any], weights: Folder[Path]) -> Step[np.ndarray]:
    """Embeddings by a student."""
    return embeddings(
        tokens_of(part, of, texts),
        weights,
        pooling=part.config.student.pooling,
        bf16=part.on.bf16,
        loader=plain(part.config.student),
        device=part.on.device,
        max_tokens=part.on.max_tokens,
        label=of,
    )


# ---- labels


@dataclass(frozen=True)
class Labelled:
    """The training queries' candidates with the teacher's scores, and what of them is trained on."""

    candidates: Step[CandidateList]
    scores: Step[CandidateList]
    groups: Step[Groups]


def label(part: Part) -> Labelled:
    """From training queries to groups."""
    c, on = part.config, part.on
    found = _mined(part)
    members, weights, averaged = teacher_of(c)
    scored = scores(
        found,
        weights,
        part.corpus,
        part.queries,
        *_of_students(part, members, "training", part.queries),
        bf16=on.bf16,
        device=on.device,
        max_tokens=on.max_tokens,
        memos=on.memos,
        averaged=averaged,
        scored_before=c.groups.scored_before,
        **members,
    )
    settings = plain(c.groups, "source_top_k")
    return Labelled(found, scored, groups(scored, found, part.queries, seed=c.seed, **settings))


def _mined(part: Part) -> Step[CandidateList]:
    c = part.config
    settings = plain(c.retriever) | plain(c.groups, only=["source_top_k", "list_size"])
    settings["device"] = part.on.device
    if not c.retriever.dense:
        return candidates(
            part.corpus, part.queries, part.duplicates, None, None, None, None, None, **settings
        )
    return candidates(
        part.corpus,
        part.queries,
        part.duplicates,
        tokens_of(part, "training", part.queries),
        tokens_of(part, "passages", part.corpus),
        part.student,
        embedded(part, "training", part.queries, part.student),
        embedded(part, "passages", part.corpus, part.student),
        pooling=c.student.pooling,
        bf16=part.on.bf16,
        **settings,
    )


def teacher_of(c: Config) -> tuple[dict[str, Any], dict[str, Outside], list[float] | None]:
    """The teacher, or the members of an ensemble, with their weights' files and their shares."""
    found = list(c.teacher.members) if "members" in c.teacher else [c.teacher]
    if len(found) > 1 and c.groups.scored_before is not None:
        raise InputError("groups.scored_before needs a single teacher: choose one with teacher=")
    members: dict[str, Any] = {}
    weights: dict[str, Outside] = {}
    for number, member in enumerate(found):
        if member == "bm25":
            members[f"teacher {number}"] = plain(c.retriever, only=["library", "k1", "b"])
        elif member == "student":
            members[f"teacher {number}"] = "student"
        else:
            teacher = _composed(member) if isinstance(member, str) else member
            weights[f"weights {number}"] = Outside(model_folder(teacher.path, teacher.revision))
            if adapter := _outside("teacher.adapter", teacher.get("adapter")):
                weights[f"adapter {number}"] = adapter
            settings = plain(teacher, "path", "revision", "adapter")
            members[f"teacher {number}"] = Settings(settings, plain(teacher, *_FILES))
    shares = c.teacher.get("weights")
    return members, weights, None if shares is None else list(shares)


def _composed(words: str) -> Any:
    try:
        return compose("config", overrides=split_overrides(words)).teacher
    except HydraException as error:
        raise InputError(f"teacher.members: {words!r}: {' '.join(str(error).split())}") from error


def _of_students(
    part: Part, members: Mapping[str, Any], of: str, queries: Step[Any]
) -> tuple[Step[np.ndarray] | None, Step[np.ndarray] | None]:
    """Embeddings of queries and passages, where the untuned student is a member of the ensemble."""
    if "student" not in members.values():
        return None, None
    return (
        embedded(part, of, queries, part.student),
        embedded(part, "passages", part.corpus, part.student),
    )


# ---- training


def distil(
    c: Config,
    parts: Mapping[str, Part],
    labelled: Mapping[str, Labelled],
    loss: DistillationLoss,
    log: Callable[[Mapping[str, float], int], None],
) -> Step[Path]:
    """The student that is tuned on all corpora together."""
    on, trainer = hardware(c), c.trainer
    of_queries = {name: tokens_of(part, "training", part.queries) for name, part in parts.items()}
    of_passages = {name: tokens_of(part, "passages", part.corpus) for name, part in parts.items()}
    if "" in parts:
        (part,), (groups_,) = parts.values(), [of.groups for of in labelled.values()]
        texts = part.corpus, part.queries
        queries, passages = of_queries[""], of_passages[""]
    else:
        groups_ = mixture(
            {name: of.groups for name, of in labelled.items()},
            {name: part.queries for name, part in parts.items()},
            {name: part.corpus for name, part in parts.items()},
        )
        queries, passages = mixture_tokens(of_queries), mixture_tokens(of_passages)
    student = plain(c.student)
    models: dict[str, Any] = {
        "student": Settings(student, plain(c.student, "path", "revision", "trust_remote_code"))
    }
    teacher_weights = None
    if c.groups.scored_before is not None:
        members, weights, _ = teacher_of(c)
        models["teacher"] = Settings(
            members["teacher 0"], {"bf16": on.bf16, "teacher 0": members["teacher 0"].keyed}
        )
        teacher_weights = {name.removesuffix(" 0"): folder for name, folder in weights.items()}
        teacher_weights["path"] = teacher_weights.pop("weights")
    later = teacher_weights is not None
    return train(
        groups_,
        passages,
        queries,
        next(iter(parts.values())).student,
        teacher_weights,
        texts[0] if later else None,
        texts[1] if later else None,
        loss=asdict(loss),
        trainer=plain(trainer, "chunk_tokens", "graph_tokens", "devices"),
        precision=c.precision,
        seed=c.seed,
        chunk_tokens=trainer.chunk_tokens,
        graph_tokens=trainer.graph_tokens,
        devices=trainer.devices,
        device=on.device,
        log=log,
        **models,
    )


# ---- evaluation


@dataclass(frozen=True)
class Tested:
    """Queries to test on: a split of the corpus, or a table of synthetic ones."""

    of: str
    queries: Step[Dataset] | None

    def texts(self, part: Part) -> Step[Any]:
        return self.queries or part.corpus


def tested_on(part: Part, labelled: Labelled, splits: Sequence[str]) -> Tested:
    """The queries of ``evaluation.split``.

    Args:
        splits: those that the corpus has.

    Raises:
        InputError: the corpus has no such split, or its queries are those trained on.
    """
    split = part.config.evaluation.split
    if split not in (SYNTHETIC_DEV, *splits):
        there = ", ".join([*sorted(splits), SYNTHETIC_DEV])
        raise InputError(f"evaluation.split={split}: this corpus has {there}; choose one of them")
    if split == "train" and "human" in part.config.querytype.types:
        raise InputError("evaluation.split=train with querytype=human would test on what is trained on")
    return Tested(split, dev_queries(part.queries, labelled.groups) if split == SYNTHETIC_DEV else None)


def bm25(part: Part, tested: Tested) -> Step[CandidateList]:
    return bm25_ranking(
        part.corpus,
        tested.queries,
        of=tested.of,
        k=DEPTH,
        drop_self_matches=part.config.data.drop_self_matches,
        **plain(part.config.retriever, only=["library", "k1", "b"]),
    )


def by_student(part: Part, tested: Tested, weights: Folder[Path]) -> Step[CandidateList]:
    """The ranking of a student, tuned or not."""
    return student_ranking(
        tokens_of(part, "passages", part.corpus),
        tokens_of(part, tested.of, tested.texts(part)),
        weights,
        part.corpus,
        tested.queries,
        embedded(part, tested.of, tested.texts(part), weights),
        embedded(part, "passages", part.corpus, weights),
        of=tested.of,
        k=DEPTH,
        bf16=part.on.bf16,
        pooling=part.config.student.pooling,
        drop_self_matches=part.config.data.drop_self_matches,
        device=part.on.device,
    )


def by_teacher(part: Part, tested: Tested, judged: np.ndarray) -> Step[CandidateList]:
    """The teacher's reranking of the untuned student's best passages.

    Args:
        judged: ``(n,)`` query rows.
    """
    members, weights, averaged = teacher_of(part.config)
    return teacher_ranking(
        part.corpus,
        tokens_of(part, "passages", part.corpus),
        tokens_of(part, tested.of, tested.texts(part)),
        part.student,
        tested.queries,
        weights,
        by_student(part, tested, part.student),
        *_of_students(part, members, tested.of, tested.texts(part)),
        of=tested.of,
        k=part.config.evaluation.headroom_k,
        queries=judged.tolist(),
        pooling=part.config.student.pooling,
        drop_self_matches=part.config.data.drop_self_matches,
        bf16=part.on.bf16,
        device=part.on.device,
        max_tokens=part.on.max_tokens,
        memos=part.on.memos,
        averaged=averaged,
        **members,
    )
