"""The student: one transformer that embeds queries and passages."""

import logging
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel

from dense_retrieval.hub import (
    load_config,
    load_model,
    load_tokenizer,
    model_folder,
    read_json,
    sentence_modules,
    transformer_folder,
)
from dense_retrieval.matmul import fastest_matmul
from dense_retrieval.records import InputError
from dense_retrieval.student.tokens import longest

log = logging.getLogger(__name__)

_OLD_NAMES = {"cls_token": "cls", "mean_tokens": "mean"}


class BiEncoder(nn.Module):
    """A transformer, pooling over its last hidden states, and L2 normalisation.

    Attributes:
        pooling: ``"cls"`` (the first token) or ``"mean"`` (over the tokens of the text).
        query_prefix, passage_prefix: put before every query and passage.
        query_length, passage_length: limits in tokens, prefix and special tokens included; a ``passage_length``
            of None becomes what the student can read.
        path: the folder or hub name that it was loaded from.
    """

    def __init__(
        self,
        transformer: PreTrainedModel,
        tokenizer,
        *,
        pooling: str,
        query_prefix: str = "",
        passage_prefix: str = "",
        query_length: int = 64,
        passage_length: int | None = 512,
        path: str = "",
    ) -> None:
        super().__init__()
        if pooling not in ("cls", "mean"):
            raise InputError(f"student.pooling={pooling!r} is unknown; use cls or mean")
        limit = getattr(transformer.config, "max_position_embeddings", None)
        if passage_length is None:
            passage_length = longest(limit, tokenizer)
        if limit and max(query_length, passage_length) > limit:
            raise InputError(
                f"student.passage_length={max(query_length, passage_length)} is more than the "
                f"{limit} positions of {path}; lower it"
            )
        self.transformer = transformer
        self.tokenizer = tokenizer
        self.pooling = pooling
        self.query_prefix = query_prefix
        self.passage_prefix = passage_prefix
        self.query_length = query_length
        self.passage_length = passage_length
        self.path = path

    @classmethod
    def load(
        cls,
        path: str,
        *,
        revision: str | None = None,
        dropout: float = 0.0,
        attention: str | None = None,
        trust_remote_code: bool = False,
        **settings,
    ) -> "BiEncoder":
        """From a local folder or hub name, in plain transformers' or sentence-transformers' layout.

        Args:
            dropout: probability at every dropout of the transformer; 0 in the paper.
            attention: transformers' name of an implementation; ``flash_attention_2`` computes no padding.
            trust_remote_code: run modelling code that comes with the weights.
            settings: the keyword arguments of :class:`BiEncoder`.

        Raises:
            InputError: no such model, no safetensors weights or others than its config.json asks for, no
                tokenizer, unknown architecture; a sentence-transformers folder that computes more.
        """
        named = f"student.path={path}"
        whole = model_folder(path, revision)
        folder = transformer_folder(whole, named, "Pooling", "Normalize")
        declared = _declared_pooling(whole, named)
        if declared and declared != settings.get("pooling"):
            log.warning(
                "student.pooling=%s, but %s/1_Pooling says %s", settings.get("pooling"), path, declared
            )
        config = load_config(folder, named, trust_remote_code)
        for key in vars(config):
            if key.endswith(("dropout", "dropout_prob")) and isinstance(getattr(config, key), float):
                setattr(config, key, dropout)
        transformer = load_model(
            AutoModel,
            folder,
            named,
            new=("pooler.",),  # comes after the hidden states that are pooled here
            trust_remote_code=trust_remote_code,
            config=config,
            **({"attn_implementation": attention} if attention else {}),
        )
        return cls(transformer, load_tokenizer(folder, named, trust_remote_code), path=path, **settings)

    @property
    def dimension(self) -> int:
        return self.transformer.config.hidden_size

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Embeddings ``(B, D)``, float32, of length 1, for right-padded tokens ``(B, T)``."""
        with fastest_matmul():
            hidden = self.transformer(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        if self.pooling == "cls":
            pooled = hidden[:, 0].float()
        else:
            weights = attention_mask.unsqueeze(-1).float()
            pooled = (hidden.float() * weights).sum(1) / weights.sum(1)
        return nn.functional.normalize(pooled, dim=-1)


def _declared_pooling(folder: Path, named: str) -> str | None:
    """What a sentence-transformers folder says; None if it says nothing.

    Raises:
        InputError: another pooling than by cls or mean, or several.
    """
    files = [part / "config.json" for name, part in sentence_modules(folder, named) if name == "Pooling"]
    configs = [read_json(file, named) for file in files]
    modes = [mode for config in configs for mode in _pooling_modes(config)]
    without_prompt = any(config.get("include_prompt") is False for config in configs)
    if len(modes) > 1 or not {*modes} <= {"cls", "mean"} or without_prompt:
        said = " and ".join(modes) + " without the prompt" * without_prompt
        raise InputError(
            f"{named}: {files[0]} pools by {said}; only cls or mean over all tokens is known here: "
            "choose another student="
        )
    return modes[0] if modes else None


def _pooling_modes(config: dict[str, Any]) -> list[str]:
    """Of sentence-transformers' Pooling, as it writes them now (``pooling_mode``) or wrote them before 5.4."""
    modes = config.get("pooling_mode") or [
        _OLD_NAMES.get(name.removeprefix("pooling_mode_"), name.removeprefix("pooling_mode_"))
        for name, value in config.items()
        if name.startswith("pooling_mode_") and value
    ]
    return [modes] if isinstance(modes, str) else modes or ["mean"]
