"""The stage in which a language model writes queries."""

import gc
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dense_retrieval.executor import HERE, Executor
from dense_retrieval.memo import Memo, memo_path, move
from dense_retrieval.queries.draw import passages as draw_passages
from dense_retrieval.queries.files import load_raw
from dense_retrieval.queries.generate import generate, requests
from dense_retrieval.queries.prompts import Prompt
from dense_retrieval.queries.split import dealt_out
from dense_retrieval.records import RAW_QUERIES, Asked, Corpus, table, write_table
from dense_retrieval.stage import Counted, Counts, Folder, stage

# Of a backend's settings those that change an answer: an answer is kept by these.
HOW_IT_ANSWERS = ("_target_", "model", "temperature", "top_p", "max_tokens", "dtype", "extra_body")


def answers_path(memos: Path, backend: Mapping[str, Any], model: Folder[Path] | None) -> Path:
    """Where the answers of a language model are kept.

    Those of a model with ``dtype=auto`` were once kept under that word, whatever it stood for: who asks first
    with a number format takes them over, so that none is written twice.
    """
    made_by = {name: backend[name] for name in HOW_IT_ANSWERS if name in backend}
    made_by |= {"model": model.key} if model else {}
    path = memo_path(memos, "completions", made_by)
    unresolved = memo_path(memos, "completions", made_by | {"dtype": "auto"})
    if "dtype" in made_by and not path.exists() and unresolved.exists():
        move(unresolved, path)
    return path


def _asked(
    corpus: Counted,
    heldout: Counted,
    chosen: Counted | None,
    of: str,
    prompts: list[dict[str, Any]],
    passages: int | None,
    passage_characters: int,
    backend: dict[str, Any],
    **_: Any,
) -> dict[str, float]:
    """Prompts, and tokens read and written, at four characters a token."""
    there = corpus["passages"] - heldout["passages"]
    rows = (
        heldout["passages"] if of == "heldout" else there if passages is None else np.minimum(passages, there)
    )
    asked = rows * len(prompts) if chosen is None else chosen["new"]
    instruction = sum(len("".join(p["paragraphs"])) + p["shots"] * 80 for p in prompts) / max(1, len(prompts))
    characters = np.minimum(passage_characters, corpus["characters"] / corpus["passages"]) + instruction
    tokens = asked * (characters / 4 + backend.get("max_tokens", 50))
    queries = asked if chosen is None else chosen["queries"]
    return {"written": asked, "queries": queries, "tokens": tokens}


HOW_FAST = (  # of the settings of a stage that asks a language model
    "memos",
    "device",
    "threads",
    "concurrency",
    "retries",
    "timeout_s",
    "api_key_variable",
    "max_total_tokens",
    "max_tokens_a_batch",
    "gpus",
    "gpu_memory",
    "executor",
)


@stage(load_raw, name="raw_queries", version=2, speed=HOW_FAST, forecast=_asked)
def write(
    folder: Path,
    corpus: Folder[Corpus],
    heldout: Folder[np.ndarray],
    duplicates: Folder[np.ndarray],
    model: Folder[Path] | None,
    chosen: Folder[Asked] | None = None,
    /,
    *,
    of: str,
    prompts: list[dict[str, Any]],
    passages: int | None,
    passage_characters: int,
    passage_first: bool,
    seed: int,
    backend: dict[str, Any],
    memos: Path,
    executor: Executor = HERE,
) -> Counts:
    """One query of each type for each passage, as the language model wrote them.

    Args:
        model: the weights, where they are files; a server's model is known by its name only.
        chosen: the passages to train on, where a budget is spent; else they are drawn.
        of: passages to "train" on, or the "heldout" ones.
        prompts: of each type :attr:`Prompt.asked`.
        passages: to train on, None is all.
        passage_characters: longer passages are cut.
        passage_first, seed: see :func:`requests`.
        backend: ``_target_`` and arguments of the :class:`Backend`.
        memos: folder of the answers that are there already.
    """
    import torch

    loaded = corpus.load()
    texts = loaded.passages["text"]
    asked = [
        Prompt(p["querytype"], tuple(p["paragraphs"]), tuple(p["examples"]), p["shots"]) for p in prompts
    ]
    if chosen:
        rows = chosen.load().rows
    elif of == "train":
        untrained = np.union1d(heldout.load(), duplicates.load())
        rows = draw_passages(texts, untrained, passages, seed)
    else:
        rows = np.array([row for row in heldout.load() if texts[int(row)].strip()], dtype=np.int64)
    shown = [texts[int(row)][:passage_characters].strip() for row in rows]
    with Memo(answers_path(memos, backend, model)) as memo, dealt_out(backend, model, executor) as writer:
        answers = generate(writer, memo, requests(shown, asked, passage_first, seed))
    gc.collect()  # the language model's memory is needed
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    ids = loaded.passages["id"]
    columns: dict[str, list] = {
        "id": [f"{ids[int(row)]}-{prompt.querytype}" for row in rows for prompt in asked],
        "text": [answer.text for answer in answers],
        "querytype": [prompt.querytype for _ in rows for prompt in asked],
        "source": [int(row) for row in rows for _ in asked],
        "finish": [answer.finish for answer in answers],
    }
    raw = table(columns, RAW_QUERIES)
    write_table(raw, folder / "raw.arrow")
    return {"queries": len(raw)}
