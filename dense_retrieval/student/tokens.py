"""Token ids of a table of texts, computed once and memory-mapped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.progress import Progress

from dense_retrieval.executor import HERE, Advance, Compute, Executor, even, in_shards, remove_shards
from dense_retrieval.hub import load_tokenizer, read_json, transformer_folder
from dense_retrieval.records import InputError, read_table
from dense_retrieval.stage import Counted, Counts, Folder, stage

if TYPE_CHECKING:
    from torch import Tensor

_TEXTS_A_SHARD = 10_000  # what a kill can cost


class Tokens:
    """N token sequences: ``ids (total,)`` int32, flat, and ``offsets (N + 1,)`` int64."""

    def __init__(self, ids: np.ndarray, offsets: np.ndarray, pad_id: int) -> None:
        self.ids = ids
        self.offsets = offsets
        self.pad_id = pad_id

    @classmethod
    def load(cls, folder: Path) -> Tokens:
        with np.load(folder / "index.npz") as index:
            offsets, pad_id = index["offsets"], int(index["pad_id"])
        return cls(np.memmap(folder / "ids.bin", dtype=np.int32, mode="r"), offsets, pad_id)

    @property
    def lengths(self) -> np.ndarray:
        """``(N,)`` tokens of each text, special tokens included."""
        return np.diff(self.offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> np.ndarray:
        return self.ids[self.offsets[row] : self.offsets[row + 1]]

    def select(self, rows: np.ndarray) -> Tokens:
        """Some rows, in memory."""
        lengths = self.offsets[rows + 1] - self.offsets[rows]
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        shift = np.repeat(self.offsets[rows] - offsets[:-1], lengths)
        return Tokens(self.ids[np.arange(offsets[-1]) + shift], offsets, self.pad_id)

    def batch(self, rows: np.ndarray) -> dict[str, Tensor]:
        """Right-padded ``input_ids`` and ``attention_mask`` ``(B, T)``, both int64, of some rows."""
        import torch

        chosen = self.select(rows)
        there = np.arange(chosen.lengths.max()) < chosen.lengths[:, None]
        ids = np.full(there.shape, self.pad_id, dtype=np.int64)
        ids[there] = chosen.ids
        mask = there.astype(np.int64)
        return {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}


@dataclass(frozen=True)
class _Tokenise:
    """From texts to the number of tokens of each, and after them all their ids, int32."""

    tokenizer: Any
    max_length: int

    def __call__(self, device: str) -> Compute:
        def lengths_and_ids(texts: list[str], advance: Advance) -> np.ndarray:
            # Of a fast tokenizer all cores work here; what is not asked for need not be made into Python's lists.
            encoded = self.tokenizer(
                texts,
                truncation=True,
                max_length=self.max_length,
                return_attention_mask=False,
                return_token_type_ids=False,
            )
            ids = [np.array(of_text, dtype=np.int32) for of_text in encoded["input_ids"]]
            advance(len(texts))
            return np.concatenate([np.array([len(i) for i in ids], dtype=np.int32), *ids])

        return lengths_and_ids


def tokenize(
    texts: Sequence[str], tokenizer, max_length: int, prefix: str, folder: Path, executor: Executor = HERE
) -> dict[str, int]:
    """Write the :class:`Tokens` of ``prefix + text``, cut at ``max_length`` tokens, into ``folder``.

    A second call on the same folder, after a kill, goes on where the first one stopped.

    Returns:
        Counts of texts and of tokens, special ones included.
    """

    def prefixed(rows: np.ndarray) -> list[str]:
        return [prefix + text for text in texts[int(rows[0]) : int(rows[-1]) + 1]]

    parts = [rows for rows in even(len(texts), _TEXTS_A_SHARD) if len(rows)]
    with Progress(transient=True) as progress:
        advance = partial(progress.advance, progress.add_task("tokens", total=len(texts)))
        where: dict[str, Any] = {"executor": executor, "device": None, "advance": advance}
        shards = in_shards(folder, parts, _Tokenise(tokenizer, max_length), shard=prefixed, **where)
    lengths = []
    with (folder / "ids.bin").open("wb") as stream:
        for rows, file in zip(parts, shards, strict=True):
            shard = np.load(file)
            lengths.append(shard[: len(rows)].copy())
            shard[len(rows) :].tofile(stream)
    offsets = np.cumsum(np.concatenate([[0], *lengths]), dtype=np.int64)
    np.savez(folder / "index.npz", offsets=offsets, pad_id=tokenizer.pad_token_id)
    remove_shards(folder)
    return {"texts": len(texts), "tokens": int(offsets[-1])}


def longest(positions: int | None, tokenizer: Any) -> int:
    """Tokens that a model can read: as many as its tokenizer says, and as it has positions."""
    return min(positions or tokenizer.model_max_length, tokenizer.model_max_length)


def joined(parts: Sequence[Tokens]) -> Tokens:
    """The tokens of several tables, one after the other, in memory."""
    return Tokens(np.concatenate([part.ids for part in parts]), _joined_offsets(parts), parts[0].pad_id)


def concatenate(parts: Sequence[Tokens], folder: Path) -> None:
    """Write the tokens of several tables, one after the other, into ``folder``."""
    with (folder / "ids.bin").open("wb") as stream:
        for part in parts:
            part.ids.tofile(stream)
    np.savez(folder / "index.npz", offsets=_joined_offsets(parts), pad_id=parts[0].pad_id)


def _joined_offsets(parts: Sequence[Tokens]) -> np.ndarray:
    starts = np.cumsum([0] + [part.offsets[-1] for part in parts[:-1]])
    return np.concatenate(
        [[0], *(part.offsets[1:] + start for part, start in zip(parts, starts, strict=True))]
    )


def _about(texts: Counted, of: str, length: int | None, **_: Any) -> dict[str, float]:
    """Texts, and tokens, at four characters a token."""
    n = texts[of]
    each = texts["characters"] / n / 4 + 2 if of == "passages" else 16
    return {"texts": n, "tokens": n * (each if length is None else np.minimum(each, length))}


@stage(Tokens.load, version=2, speed=("executor",), forecast=_about)
def tokens(
    folder: Path,
    texts: Folder[Any],
    tokenizer: Folder[Path],
    /,
    *,
    of: str,
    length: int | None,
    prefix: str,
    trust_remote_code: bool = False,
    executor: Executor = HERE,
) -> Counts:
    """Token ids of the "passages" or the "queries" of another stage.

    Args:
        length: tokens, prefix and special ones included; None is as long as the model can read.
    """
    named = f"student.path={tokenizer.path}"
    transformer = transformer_folder(tokenizer.path, named, "Pooling", "Normalize")
    positions = read_json(transformer / "config.json", named).get("max_position_embeddings")
    if length and positions and length > positions:
        raise InputError(
            f"{length} tokens are more than the {positions} positions of {named}; lower student.query_length, "
            "student.passage_length or evaluation.query_length"
        )
    used = load_tokenizer(transformer, named, trust_remote_code)
    table = read_table(texts.path / f"{of}.arrow")
    return tokenize(table["text"], used, length or longest(positions, used), prefix, folder, executor)


@stage(Tokens.load, version=2, forecast=lambda parts: {"texts": sum(part["texts"] for part in parts)})
def mixture_tokens(folder: Path, parts: Mapping[str, Folder[Tokens]], /) -> Counts:
    """The tokens of several corpora, one after the other."""
    concatenate([part.load() for part in parts.values()], folder)
    return {"texts": sum(len(part.load()) for part in parts.values())}
