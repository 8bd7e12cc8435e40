"""The stage in which a language model writes queries."""

import gc
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from hydra.utils import instantiate

from dense_retrieval.memo import Memo, memo_path
from dense_retrieval.queries.draw import passages as draw_passages
from dense_retrieval.queries.files import load_raw
from dense_retrieval.queries.generate import generate, requests
from dense_retrieval.queries.prompts import Prompt
from dense_retrieval.records import RAW_QUERIES, Corpus, write_table
from dense_retrieval.stage import Counts, Folder, stage

# Of a backend's settings those that change an answer: an answer is kept by these.
HOW_IT_ANSWERS = ("_target_", "model", "temperature", "top_p", "max_tokens", "dtype", "extra_body")


@stage(load_raw, name="raw_queries", speed=("backend", "memos"))
def write(
    folder: Path,
    corpus: Folder[Corpus],
    duplicates: Folder[np.ndarray],
    model: Folder[Path] | None,
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
    **answering: Any,
) -> Counts:
    """One query of each type for each passage, as the language model wrote them.

    Args:
        model: the weights, where they are files; a server's model is known by its name only.
        of: passages to "train" on, or the "heldout" ones.
        prompts: :class:`Prompt` as dictionaries.
        passages: to train on, None is all.
        passage_characters: longer passages are cut.
        passage_first, seed: see :func:`requests`.
        backend: ``_target_`` and arguments of the :class:`Backend`.
        memos: folder of the answers that are there already.
        answering: those of the backend's arguments that change an answer.
    """
    loaded = corpus.load()
    texts = loaded.passages["text"]
    asked = [
        Prompt(p["querytype"], tuple(p["paragraphs"]), tuple(p["examples"]), p["shots"]) for p in prompts
    ]
    if of == "train":
        untrained = np.union1d(loaded.heldout, duplicates.load())
        rows = draw_passages(texts, untrained, passages, seed)
    else:
        rows = np.array([row for row in loaded.heldout if texts[int(row)].strip()], dtype=np.int64)
    shown = [texts[int(row)][:passage_characters].strip() for row in rows]
    made_by = {name: value for name, value in answering.items() if name in HOW_IT_ANSWERS}
    made_by |= {"model": model.key} if model else {}
    with Memo(memo_path(memos, "completions", made_by)) as memo:
        answers = generate(instantiate(backend), memo, requests(shown, asked, passage_first, seed))
    gc.collect()  # the language model's memory is needed
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    ids = loaded.passages["id"]
    columns = {
        "id": [f"{ids[int(row)]}-{prompt.querytype}" for row in rows for prompt in asked],
        "text": [answer.text for answer in answers],
        "querytype": [prompt.querytype for _ in rows for prompt in asked],
        "source": [int(row) for row in rows for _ in asked],
        "finish": [answer.finish for answer in answers],
    }
    raw = Dataset.from_dict(columns, RAW_QUERIES)
    write_table(raw, folder / "raw.parquet")
    return {"queries": len(raw)}
