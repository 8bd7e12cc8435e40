"""Embeddings of all texts of a table."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from hydra.utils import instantiate
from rich.progress import Progress

from dense_retrieval.batching import pack
from dense_retrieval.files import in_shards, remove_shards
from dense_retrieval.stage import Counts, Folder, stage
from dense_retrieval.student.engine import Forward, by_file, by_torch
from dense_retrieval.student.tokens import Tokens

if TYPE_CHECKING:
    from dense_retrieval.student.bi_encoder import BiEncoder

_TOKENS_A_SHARD = 20_000_000  # what a kill can cost


def encode(
    model: BiEncoder,
    tokens: Tokens,
    folder: Path,
    *,
    device: str = "cpu",
    bf16: bool = False,
    max_tokens: int = 4096,
    label: str = "encoding",
    forward: Forward | None = None,
    float16: bool = False,
) -> None:
    """Write ``folder/embeddings.npy`` ``(N, D)``: one embedding a text, of length 1.

    Texts are sorted by length, so that little is padding, and embedded in shards that survive a
    kill: a second call on the same folder goes on where the first one stopped.

    Args:
        bf16: compute under bfloat16 autocast.
        max_tokens: padded tokens a forward pass.
        forward: the model by another engine than torch.
        float16: written in float16, which takes half the room, instead of float32.
    """
    computed = forward or by_torch(model, device, bf16)
    lengths = tokens.lengths
    order = np.argsort(-lengths, kind="stable")
    shard_of = np.cumsum(lengths[order]) // _TOKENS_A_SHARD
    parts = np.split(order, np.flatnonzero(np.diff(shard_of)) + 1)
    with Progress(transient=True) as progress:
        bar = progress.add_task(label, total=int(lengths.sum()))

        def embed(rows: np.ndarray) -> np.ndarray:
            out = np.empty((len(rows), model.dimension), dtype=np.float32)
            batches = pack(lengths[rows], max_tokens)
            inputs = (tokens.batch(rows[batch]) for batch in batches)
            for batch, embedded in zip(batches, computed(inputs), strict=True):
                out[batch] = embedded
                progress.advance(bar, int(lengths[rows[batch]].sum()))
            return out

        shards = in_shards(folder, parts, embed)
    embeddings = np.lib.format.open_memmap(
        folder / "embeddings.npy",
        "w+",
        np.float16 if float16 else np.float32,
        (len(tokens), model.dimension),
    )
    for rows, shard in zip(parts, shards, strict=True):
        embeddings[rows] = shard
    embeddings.flush()
    remove_shards(folder)


def load_embeddings(folder: Path) -> np.ndarray:
    """``(N, D)`` float32 or, of many texts, float16, memory-mapped."""
    return np.load(folder / "embeddings.npy", mmap_mode="r")


@stage(
    load_embeddings,
    version=2,
    speed=("device", "max_tokens"),
    forecast=lambda tokens, **_: {"tokens": tokens["tokens"], "texts": tokens["texts"]},
)
def embeddings(
    folder: Path,
    tokens: Folder[Tokens],
    weights: Folder[Path],
    engine: Folder[Path] | None = None,
    /,
    *,
    student: dict[str, Any],
    bf16: bool,
    device: str,
    max_tokens: int,
    float16_from: int | None = 1_000_000,
) -> Counts:
    """An embedding of each text.

    Args:
        engine: the student as :func:`~dense_retrieval.student.export_engine.exported`; None is by torch.
        student: ``_target_`` and arguments of the :class:`BiEncoder`, but for its weights.
        float16_from: so many texts or more are kept in float16; None is never.
    """
    model = instantiate(student, path=str(weights.path))
    texts = tokens.load()
    forward = by_file(engine.path, bf16) if engine else None
    where: dict[str, Any] = {"device": device, "bf16": bf16, "max_tokens": max_tokens}
    float16 = float16_from is not None and len(texts) >= float16_from
    encode(model, texts, folder, forward=forward, label="embeddings", float16=float16, **where)
    return {"tokens": int(texts.offsets[-1]), "texts": len(texts)}
