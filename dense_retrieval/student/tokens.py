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
from dense_retrieval.hub import ENCODER, read_json, transformer_folder
from dense_retrieval.progress import unwatched
from dense_retrieval.records import InputError, read_table
from dense_retrieval.stage import Counted, Counts, Folder, stage
from dense_retrieval.student.tokenizer import student_tokenizer

if TYPE_CHECKING:
    from torch import Tensor

_TEXTS_A_SHARD = 10_000  # what a kill can cost
_SAMPLE = 10_000  # texts that the lengths are taken from
_WHOLE = 0.95  # share of the passages that passage_length=auto cuts nothing of


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
    with Progress(transient=True, disable=unwatched()) as progress:
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


def sampled_lengths(texts: Sequence[str], tokenizer: Any, prefix: str) -> np.ndarray:
    """Tokens of ``prefix + text``, special ones included, of a random sample of at most 10,000 texts."""
    rows = np.arange(len(texts))
    if len(rows) > _SAMPLE:
        rows = np.sort(np.random.default_rng(0).choice(rows, _SAMPLE, replace=False))
    lengths = []
    for some in np.array_split(rows, range(_TEXTS_A_SHARD, len(rows), _TEXTS_A_SHARD)):
        prefixed = [prefix + texts[int(row)] for row in some]
        if prefixed:
            encoded = tokenizer(
                prefixed, return_attention_mask=False, return_token_type_ids=False, verbose=False
            )
            lengths += [len(ids) for ids in encoded["input_ids"]]
    return np.array(lengths, dtype=np.int64)


def whole_for_most(lengths: np.ndarray, most: int) -> int:
    """The 95th percentile of some texts' tokens, which is the length of one of them; at most ``most``."""
    return min(most, int(np.quantile(lengths, _WHOLE, method="inverted_cdf"))) if len(lengths) else most


def shares_cut(lengths: np.ndarray, length: int) -> dict[str, float]:
    """Where texts are cut at ``length`` tokens: that, and the shares of the texts cut and of the tokens lost."""
    cut = float(np.mean(lengths > length)) if len(lengths) else 0.0
    lost = float(np.maximum(lengths - length, 0).sum() / max(1, lengths.sum()))
    return {"length": length, "cut": round(cut, 4), "lost": round(lost, 4)}


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


def _about(texts: Counted, of: str, length: int | str | None, **_: Any) -> dict[str, float]:
    """Texts, and tokens, at four characters a token; passage_length=auto cuts few of them."""
    n = texts[of]
    each = texts["characters"] / n / 4 + 2 if of == "passages" else 16
    total = n * (np.minimum(each, length) if isinstance(length, int) else each)
    return {"texts": n, "tokens": total, "bytes": 4 * total + 8 * n}


@stage(Tokens.load, version=2, speed=("executor",), forecast=_about)
def tokens(
    folder: Path,
    texts: Folder[Any],
    tokenizer: Folder[Path],
    /,
    *,
    of: str,
    length: int | str | None,
    prefix: str,
    trust_remote_code: bool = False,
    append_eos: bool = False,
    executor: Executor = HERE,
) -> Counts:
    """Token ids of the "passages" or the "queries" of another stage.

    Args:
        length: tokens, prefix and special ones included; None is as long as the model can read, "auto" as long
            as 95 of 100 texts, at most that.
        append_eos: each text ends with a special token, see :func:`~dense_retrieval.student.tokenizer.ended`.

    Of passages it also counts the ``length``, and by a sample of 10,000 the shares of the passages that are cut
    and of the tokens that are lost.
    """
    named = f"student.path={tokenizer.path}"
    transformer = transformer_folder(tokenizer.path, named, *ENCODER)
    positions = read_json(transformer / "config.json", named).get("max_position_embeddings")
    if isinstance(length, int) and positions and length > positions:
        raise InputError(
            f"{length} tokens are more than the {positions} positions of {named}; lower student.query_length, "
            "student.passage_length or evaluation.query_length"
        )
    used = student_tokenizer(transformer, named, trust_remote_code, append_eos)
    table = read_table(texts.path / f"{of}.arrow")
    all_texts, most = table["text"], longest(positions, used)
    if of != "passages":
        return tokenize(all_texts, used, most if length is None else int(length), prefix, folder, executor)
    whole = sampled_lengths(all_texts, used, prefix)
    found = whole_for_most(whole, most) if length == "auto" else most if length is None else int(length)
    return tokenize(all_texts, used, found, prefix, folder, executor) | shares_cut(whole, found)


@stage(Tokens.load, version=2, forecast=lambda parts: {"texts": sum(part["texts"] for part in parts)})
def mixture_tokens(folder: Path, parts: Mapping[str, Folder[Tokens]], /) -> Counts:
    """The tokens of several corpora, one after the other."""
    concatenate([part.load() for part in parts.values()], folder)
    return {"texts": sum(len(part.load()) for part in parts.values())}
