"""python -m dense_retrieval.search MODEL_OR_RUN [OVERRIDE...]: type a query, see what three systems find.

Each passage that one of them finds is shown once, with its rank and score by BM25, the untuned and the tuned student.
A run, or its ``model/``, is searched with the run's settings, another model's folder with those of the overrides
(``data=fiqa student=bge_base``).
"""

from __future__ import annotations

import argparse
import json
import logging
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.utils import instantiate
from omegaconf.errors import OmegaConfBaseException
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from dense_retrieval import views
from dense_retrieval.candidates.dense import search
from dense_retrieval.checks import check
from dense_retrieval.config import CONF
from dense_retrieval.errors import in_one_line
from dense_retrieval.evaluation.table import TUNED, UNTUNED
from dense_retrieval.models import student_settings
from dense_retrieval.records import CandidateList, Corpus, InputError
from dense_retrieval.stage import Built, Folder, Outside, Step
from dense_retrieval.store import Store

if TYPE_CHECKING:
    from datasets import Dataset

    from dense_retrieval.student.bi_encoder import BiEncoder

log = logging.getLogger(__name__)

_CHARACTERS = 240  # of a passage, shown
# What searching depends on; a run's other overrides are not taken.
_SEARCHED = {"data", "student", "retriever", "evaluation", "experiment", "precision", "device", "cache_dir"}


@dataclass(frozen=True)
class Hit:
    """A passage that a system found."""

    score: float
    id: str
    title: str
    text: str


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m dense_retrieval.search",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, metavar="MODEL_OR_RUN")
    parser.add_argument("overrides", nargs="*", metavar="OVERRIDE", help="as for dense_retrieval.run")
    parser.add_argument("--top", type=int, default=5, help="passages a system (default: %(default)s)")
    given = parser.parse_intermixed_args()
    if given.top < 1:
        sys.exit(f"error: --top {given.top}: it is 1 or more")
    try:
        for query, found in results(given.folder, given.overrides, _typed(), given.top):
            Console().print(beside_each_other(query, found))
    except (InputError, HydraException, OmegaConfBaseException) as error:
        sys.exit(f"error: {in_one_line(error)}")


def _typed() -> Iterator[str]:
    while True:
        try:
            query = input("query: " if sys.stdin.isatty() else "")
        except (EOFError, KeyboardInterrupt):
            return
        if query.strip():
            yield query.strip()


def results(
    folder: Path, overrides: list[str], queries: Iterator[str], top: int
) -> Iterator[tuple[str, dict[str, list[Hit]]]]:
    """For each query as it comes, system -> its best passages.

    Raises:
        InputError: no such model or run; a mixture without ``data=`` of one corpus.
    """

    of = opened(folder, overrides)
    config, store, corpus = of.config, of.store, of.corpus
    weights = {UNTUNED: views.untuned(config), TUNED: of.model}
    steps = {name: views.embedded(config, corpus, "passages", of) for name, of in weights.items()}
    index = views.bm25(config, corpus)
    store.build(corpus, index, *steps.values())
    table, bm25 = store.load(corpus).passages, store.load(index)
    passages = {name: store.load(step) for name, step in steps.items()}
    students = {
        name: instantiate(student_settings(config), path=str(model.path)) for name, model in weights.items()
    }
    titled = config.data.text == "title_and_text"
    for query in queries:
        found = {"BM25": bm25.search([query], top)}
        for name, student in students.items():
            found[name] = search(_embed(student.cpu(), query), passages[name], top)
        yield query, {name: _best(of, table, titled) for name, of in found.items()}


def _weights(model: Path, store: Store) -> Folder[Path]:
    """Those of a training that this cache holds have their embeddings there too, under its key."""
    training = model.resolve().parent
    if training.parent != store.root.resolve():
        return Outside(model)
    return Built(model, f"{training.name}/{model.name}", lambda path: path)


@dataclass(frozen=True)
class Opened:
    """A tuned student, the settings it was tuned with, and the corpus that it searches."""

    folder: Path  # of the run, or of a model
    config: Any
    store: Store
    corpus: Step[Corpus]
    model: Folder[Path]


def opened(folder: Path, overrides: list[str]) -> Opened:
    """A run, or a model with the settings of the overrides.

    Raises:
        InputError: no such model or run; a mixture without ``data=`` of one corpus.
    """
    folder = _run_of(folder)
    model, overrides = _model_of(folder, overrides)
    with initialize_config_dir(CONF, version_base=None):
        config: Any = compose("config", overrides=overrides)
    check(config)
    if "members" in config.data:
        raise InputError("data=mixture: choose one of its corpora, data=NAME")
    store = Store(Path(config.cache_dir))
    return Opened(folder, config, store, views.corpus_of(config), _weights(model, store))


def _run_of(folder: Path) -> Path:
    """The run of which this is the ``model/``; else the folder itself."""
    run = folder.resolve().parent
    its_model = folder.resolve().name == "model" and (run / ".hydra" / "overrides.yaml").is_file()
    return run if its_model else folder


def _model_of(folder: Path, overrides: list[str]) -> tuple[Path, list[str]]:
    """The tuned student's folder, and the overrides: of a run its own, but for those given."""
    if not folder.is_dir():
        raise InputError(f"{folder}: there is no such folder")
    folder = _run_of(folder)
    own = folder / ".hydra" / "overrides.yaml"
    if (
        not own.is_file()
        and not (folder / "modules.json").is_file()
        and not (folder / "config.json").is_file()
    ):
        raise InputError(f"{folder} is no run and holds no model")
    if not own.is_file():
        return folder, overrides
    if not (folder / "model").is_dir():
        raise InputError(f"{folder} has no model: the run did not finish; start it again")
    replaced = {override.partition("=")[0] for override in overrides}
    kept: list[str] = [] if "scale" in replaced else _scale_of(folder)
    refused: list[str] = []
    for override in OverridesParser.create().parse_overrides(yaml.safe_load(own.read_text())):
        name = override.key_or_group  # with data=... given, data.path is of another corpus
        root = name.partition(".")[0]
        if root in _SEARCHED and not replaced & {name, root}:
            (kept if _is_harmless(override) else refused).append(str(override.input_line))
    if refused:
        log.warning("not taken from %s: %s; give it again if you trust the run", own, " ".join(refused))
    # The same weights, whose embeddings are in the cache already.
    metrics = [json.loads(file.read_text()) for file in folder.glob("metrics.json")]
    cached = [Path(of["artifacts"]["training"]) / "model" for of in metrics]
    return next((path for path in cached if path.is_dir()), folder / "model"), [*kept, *overrides]


def _scale_of(run: Path) -> list[str]:
    """What ``scale=auto`` chose where the run was; before there was such a choice, all runs were of a laptop's size."""
    config = run / "config.yaml"
    if not config.is_file():
        return []
    name = yaml.safe_load(config.read_text()).get("scale", {}).get("name")
    return [f"scale={name if name in ('gpu', 'paper') else 'laptop'}"]


def _is_harmless(override: Override) -> bool:
    """Whether an override that somebody else wrote can start no code and load no other file of settings."""
    name, value = override.key_or_group, override.value()
    words = name.split(".")
    code = any(word.startswith("_") or word == "trust_remote_code" for word in words)
    a_choice = len(words) == 1 and words[0] not in ("cache_dir", "device", "precision")
    elsewhere = a_choice and not re.fullmatch(r"[\w, '\[\]]+", str(value))  # no path of a file
    return override.package is None and not (code or elsewhere or "{" in str(override.input_line))


def _embed(student: BiEncoder, query: str) -> np.ndarray:
    """``(1, D)``"""
    import torch

    tokens = student.tokenizer(
        student.query_prefix + query, truncation=True, max_length=student.query_length, return_tensors="pt"
    )
    with torch.inference_mode():
        return student.eval()(tokens["input_ids"], tokens["attention_mask"]).numpy()


def _best(found: CandidateList, table: Dataset, titled: bool) -> list[Hit]:
    """With the title apart from the text, which begins with it if ``titled``."""
    hits = []
    for row, score in zip(found.passages[0], found.scores[0], strict=True):
        if row >= 0:
            passage = table[int(row)]
            text = passage["text"].removeprefix(passage["title"]).lstrip() if titled else passage["text"]
            hits.append(Hit(float(score), passage["id"], passage["title"], text))
    return hits


def beside_each_other(query: str, found: dict[str, list[Hit]]) -> Table:
    """A line a passage, the last system's best first; a column a system, with rank and score."""
    ranks = {name: {hit.id: rank for rank, hit in enumerate(of, 1)} for name, of in found.items()}
    hits = {hit.id: hit for of in found.values() for hit in of}
    nowhere = len(hits) + 1
    last, *others = [*ranks.values()][::-1]
    order = sorted(
        hits, key=lambda i: (last.get(i, nowhere), min((of.get(i, nowhere) for of in others), default=0))
    )
    table = Table(title=escape(query), box=box.SIMPLE_HEAD, pad_edge=False, show_lines=True)
    table.add_column("passage", ratio=1)
    for name in found:
        table.add_column(name.replace(" ", "\n"), justify="right", no_wrap=True)
    for i in order:
        cells = [
            f"{ranks[name][i]}  {of[ranks[name][i] - 1].score:.3f}" if i in ranks[name] else "-"
            for name, of in found.items()
        ]
        table.add_row(_shown(hits[i]), *cells)
    return table


def _shown(hit: Hit) -> Text:
    """``guide.md#3  Installing`` in one line, the beginning of the text in others."""
    cut = hit.text[:_CHARACTERS] + "…" * (len(hit.text) > _CHARACTERS)
    return Text.assemble((hit.id, "bold"), f"  {hit.title}" if hit.title else "", "\n", (cut, "dim"))


if __name__ == "__main__":
    main()
