"""Embeddings of all texts of a table."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from hydra.utils import instantiate
from rich.progress import Progress

from dense_retrieval.batching import halved, out_of_memory, pack
from dense_retrieval.executor import HERE, Advance, Compute, Executor, Load, in_shards, remove_shards
from dense_retrieval.hub import dimension
from dense_retrieval.progress import unwatched
from dense_retrieval.stage import Counted, Counts, Folder, stage
from dense_retrieval.student.engine import Forward, by_file, by_torch
from dense_retrieval.student.tokens import Tokens

if TYPE_CHECKING:
    from dense_retrieval.student.bi_encoder import BiEncoder

# What a kill can cost. Few enough that eight GPUs have about as much to do each, on a corpus of 50,000 passages, and so
# many that a GPU's last batch, which is not full, counts little.
_TOKENS_A_SHARD = 500_000


@dataclass(frozen=True)
class Embedder:
    """Embeds rows of a table, wherever it is loaded.

    Args:
        student: ``_target_`` and arguments of the :class:`BiEncoder`, but for its weights.
        engine: the student as :func:`~dense_retrieval.student.export_engine.exported`; None is by torch.
    """

    student: dict[str, Any]
    weights: Path
    tokens: Path
    engine: Path | None
    bf16: bool
    max_tokens: int

    @property
    def reads(self) -> list[Path]:
        return [path for path in (self.weights, self.tokens, self.engine) if path]

    def __call__(self, device: str) -> Compute:
        model = instantiate(self.student, path=str(self.weights))
        forward = by_file(self.engine, self.bf16) if self.engine else by_torch(model, device, self.bf16)
        return _rows(forward, Tokens.load(self.tokens), model.dimension, self.max_tokens)


def _rows(forward: Forward, tokens: Tokens, dimension: int, max_tokens: int) -> Compute:
    """From rows ``(n,)`` to their embeddings ``(n, D)``."""
    lengths = tokens.lengths

    def embed(rows: np.ndarray, advance: Advance) -> np.ndarray:
        nonlocal max_tokens
        out = np.empty((len(rows), dimension), dtype=np.float32)
        left = np.arange(len(rows))
        while len(left):
            batches = [left[batch] for batch in pack(lengths[rows[left]], max_tokens)]
            done = 0
            try:
                for embedded in forward(tokens.batch(rows[batch]) for batch in batches):
                    out[batches[done]] = embedded
                    advance(int(lengths[rows[batches[done]]].sum()))
                    done += 1
            except RuntimeError as error:
                if not out_of_memory(error):
                    raise
            # Outside of the handler, whose error holds the memory.
            left = np.concatenate([left[:0], *batches[done:]])
            if len(left):
                max_tokens = halved(max_tokens, int(lengths[rows[left]].max()))
        return out

    return embed


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
    """Write ``folder/embeddings.npy`` ``(N, D)``, by a model in this process; see :func:`encode_by`.

    Args:
        bf16: compute under bfloat16 autocast.
        max_tokens: padded tokens a forward pass.
        forward: the model by another engine than torch.
        float16: written in float16, which takes half the room, instead of float32.
    """

    def load(device: str) -> Compute:
        return _rows(forward or by_torch(model, device, bf16), tokens, model.dimension, max_tokens)

    encode_by(load, tokens, folder, device=device, label=label, float16=float16)


def encode_by(
    load: Load,
    tokens: Tokens,
    folder: Path,
    *,
    executor: Executor = HERE,
    device: str,
    label: str,
    float16: bool = False,
) -> None:
    """Write ``folder/embeddings.npy`` ``(N, D)``: one embedding a text, of length 1.

    Texts are sorted by length, so that little is padding, and embedded in shards that survive a
    kill: a second call on the same folder goes on where the first one stopped.

    Args:
        load: gives what embeds rows of the tokens, such as :class:`Embedder`.
        float16: written in float16, which takes half the room, instead of float32.
    """
    lengths = tokens.lengths
    order = np.argsort(-lengths, kind="stable")
    shard_of = np.cumsum(lengths[order]) // _TOKENS_A_SHARD
    parts = np.split(order, np.flatnonzero(np.diff(shard_of)) + 1)
    with Progress(transient=True, disable=unwatched()) as progress:
        bar = progress.add_task(label, total=int(lengths.sum()))
        advance = partial(progress.advance, bar)
        shards = in_shards(folder, parts, load, executor=executor, device=device, advance=advance)
    dimension = np.load(shards[0], mmap_mode="r").shape[1]
    embeddings = np.lib.format.open_memmap(
        folder / "embeddings.npy", "w+", np.float16 if float16 else np.float32, (len(tokens), dimension)
    )
    for rows, shard in zip(parts, shards, strict=True):
        embeddings[rows] = np.load(shard)
    embeddings.flush()
    remove_shards(folder)


def load_embeddings(folder: Path) -> np.ndarray:
    """``(N, D)`` float32 or, of many texts, float16, memory-mapped."""
    return np.load(folder / "embeddings.npy", mmap_mode="r")


def _sizes(tokens: Counted, weights: Counted, float16_from: int | None = None, **_: Any) -> dict[str, float]:
    """Texts and their tokens, and bytes."""
    n = tokens["texts"]
    each = 2 if float16_from is not None and n >= float16_from else 4
    return {"tokens": tokens["tokens"], "texts": n, "bytes": n * dimension(weights) * each}


@stage(
    load_embeddings,
    version=2,
    speed=("device", "max_tokens", "executor"),
    forecast=_sizes,
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
    executor: Executor = HERE,
    float16_from: int | None = 1_000_000,
) -> Counts:
    """An embedding of each text.

    Args:
        engine: the student as :func:`~dense_retrieval.student.export_engine.exported`; None is by torch.
        student: ``_target_`` and arguments of the :class:`BiEncoder`, but for its weights.
        float16_from: so many texts or more are kept in float16; None is never.
    """
    texts = tokens.load()
    load = Embedder(
        student,
        weights.path.absolute(),
        tokens.path.absolute(),
        engine.path.absolute() if engine else None,
        bf16=bf16,
        max_tokens=max_tokens,
    )
    where: dict[str, Any] = {"executor": executor, "device": device, "label": "embeddings"}
    encode_by(load, texts, folder, float16=float16_from is not None and len(texts) >= float16_from, **where)
    return {"tokens": int(texts.offsets[-1]), "texts": len(texts)}
