"""Token ids of a table of texts, computed once and memory-mapped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dense_retrieval.batching import pad
from dense_retrieval.hub import load_tokenizer, read_json, transformer_folder
from dense_retrieval.records import InputError, read_table
from dense_retrieval.stage import Counted, Counts, Folder, stage

if TYPE_CHECKING:
    from torch import Tensor

_TEXTS_AT_ONCE = 10_000


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

    def batch(self, rows: Sequence[int] | np.ndarray) -> dict[str, Tensor]:
        """Right-padded ``input_ids`` and ``attention_mask`` ``(B, T)`` of some rows."""
        return self.pad([self[row] for row in rows])

    def pad(self, sequences: Sequence[np.ndarray]) -> dict[str, Tensor]:
        return pad(sequences, self.pad_id)


def tokenize(texts: Sequence[str], tokenizer, max_length: int, prefix: str, folder: Path) -> dict[str, int]:
    """Write the :class:`Tokens` of ``prefix + text``, cut at ``max_length`` tokens, into ``folder``.

    Returns:
        Counts of texts and of tokens, special ones included.
    """
    lengths = []
    with (folder / "ids.bin").open("wb") as stream:
        for start in range(0, len(texts), _TEXTS_AT_ONCE):
            prefixed = [prefix + text for text in texts[start : start + _TEXTS_AT_ONCE]]
            ids = tokenizer(prefixed, truncation=True, max_length=max_length)["input_ids"]
            lengths += [len(i) for i in ids]
            np.concatenate([np.array(i, dtype=np.int32) for i in ids]).tofile(stream)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    np.savez(folder / "index.npz", offsets=offsets, pad_id=tokenizer.pad_token_id)
    return {"texts": len(texts), "tokens": int(offsets[-1])}


def longest(positions: int | None, tokenizer: Any) -> int:
    """Tokens that a model can read: as many as its tokenizer says, and as it has positions."""
    return min(positions or tokenizer.model_max_length, tokenizer.model_max_length)


def concatenate(parts: Sequence[Tokens], folder: Path) -> None:
    """Write the tokens of several tables, one after the other, into ``folder``."""
    starts = np.cumsum([0] + [part.offsets[-1] for part in parts[:-1]])
    offsets = [part.offsets[1:] + start for part, start in zip(parts, starts, strict=True)]
    with (folder / "ids.bin").open("wb") as stream:
        for part in parts:
            part.ids.tofile(stream)
    np.savez(folder / "index.npz", offsets=np.concatenate([[0], *offsets]), pad_id=parts[0].pad_id)


def _about(texts: Counted, of: str, length: int | None, **_: Any) -> dict[str, float]:
    """Texts, and tokens, at four characters a token."""
    n = texts[of]
    each = texts["characters"] / n / 4 + 2 if of == "passages" else 16
    return {"texts": n, "tokens": n * (each if length is None else np.minimum(each, length))}


@stage(Tokens.load, version=2, forecast=_about)
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
    return tokenize(table["text"], used, length or longest(positions, used), prefix, folder)


@stage(Tokens.load, version=2, forecast=lambda parts: {"texts": sum(part["texts"] for part in parts)})
def mixture_tokens(folder: Path, parts: Mapping[str, Folder[Tokens]], /) -> Counts:
    """The tokens of several corpora, one after the other."""
    concatenate([part.load() for part in parts.values()], folder)
    return {"texts": sum(len(part.load()) for part in parts.values())}
