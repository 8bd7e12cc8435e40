"""The student: one transformer that embeds queries and passages."""

import inspect
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel

from dense_retrieval import sentence_folder
from dense_retrieval.hub import ENCODER, load_config, load_model, model_folder, transformer_folder
from dense_retrieval.matmul import fastest_matmul
from dense_retrieval.records import InputError
from dense_retrieval.student.tokenizer import ends_texts, student_tokenizer
from dense_retrieval.student.tokens import longest

DTYPES = ("float32", "bfloat16")


class BiEncoder(nn.Module):
    """A transformer, pooling over its last hidden states, perhaps linear layers, and L2 normalisation.

    Attributes:
        pooling: ``"cls"`` (the first token), ``"mean"`` (over the tokens of the text) or ``"lasttoken"`` (of the
            text, for decoders).
        dense: linear layers after the pooling, each with its activation; mostly none.
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
        dense: Iterable[nn.Module] = (),
    ) -> None:
        super().__init__()
        if pooling not in sentence_folder.POOLINGS:
            raise InputError(
                f"student.pooling={pooling!r} is unknown; use cls or mean, or lasttoken of decoders"
            )
        limit = getattr(transformer.config, "max_position_embeddings", None)
        if passage_length is None:
            passage_length = longest(limit, tokenizer)
        if limit and max(query_length, passage_length) > limit:
            raise InputError(
                f"student.passage_length={max(query_length, passage_length)} is more than the "
                f"{limit} positions of {path}; lower it"
            )
        self.transformer = transformer
        self.dense = nn.Sequential(*dense)
        accepted = inspect.signature(transformer.forward).parameters
        # Of what a decoder would keep for the next token nothing is used.
        self._settings = {"use_cache": False} if "use_cache" in accepted else {}
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
        append_eos: bool | None = None,
        dtype: str = "float32",
        **settings,
    ) -> "BiEncoder":
        """From a local folder or hub name, in plain transformers' or sentence-transformers' layout.

        Args:
            dropout: probability at every dropout of the transformer; 0 in the paper.
            attention: transformers' name of an implementation; ``flash_attention_2`` computes no padding.
            trust_remote_code: run modelling code that comes with the weights.
            append_eos: each text ends with a special token, see :func:`~dense_retrieval.student.tokenizer.ended`;
                None is with lasttoken pooling.
            dtype: of the transformer's weights, ``"float32"`` or ``"bfloat16"``.
            settings: the keyword arguments of :class:`BiEncoder`.

        Raises:
            InputError: no such model, no safetensors weights or others than its config.json asks for, no
                tokenizer, unknown architecture; a sentence-transformers folder that computes more.
        """
        named = f"student.path={path}"
        whole = model_folder(path, revision)
        folder = transformer_folder(whole, named, *ENCODER)
        if dtype not in DTYPES:
            raise InputError(f"student.dtype={dtype} is unknown; use {' or '.join(DTYPES)}")
        pooling = settings.get("pooling", "")
        prefixes = (settings.get(name, "") for name in ("query_prefix", "passage_prefix"))
        sentence_folder.check(whole, named, pooling, *prefixes)
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
            dtype=dtype,
            **({"attn_implementation": attention} if attention else {}),
        )
        tokenizer = student_tokenizer(folder, named, trust_remote_code, ends_texts(append_eos, pooling))
        dense = sentence_folder.dense_layers(whole, named)
        return cls(transformer, tokenizer, path=path, dense=dense, **settings)

    @property
    def dimension(self) -> int:
        last: Any = self.dense[-1] if len(self.dense) else None
        return last[0].out_features if last else self.transformer.config.hidden_size

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Embeddings ``(B, D)``, float32, of length 1, for tokens ``(B, T)``, right-padded; with lasttoken pooling
        on either side."""
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
        if self.pooling == "lasttoken":
            inputs["position_ids"] = (attention_mask.cumsum(1) - 1).clamp(min=0)
        with fastest_matmul():
            hidden = self.transformer(**inputs, **self._settings).last_hidden_state
        if self.pooling == "cls":
            pooled = hidden[:, 0].float()
        elif self.pooling == "lasttoken":
            places = torch.arange(input_ids.shape[1], device=input_ids.device)
            last = (attention_mask * places).amax(1)
            pooled = hidden[torch.arange(len(last), device=last.device), last].float()
        else:
            weights = attention_mask.unsqueeze(-1).float()
            pooled = (hidden.float() * weights).sum(1) / weights.sum(1)
        return nn.functional.normalize(self.dense(pooled).float(), dim=-1)

    def recompute_activations(self, compiled: bool = False) -> None:
        """Keep one activation a layer for the backward pass, which computes the others again.

        Args:
            compiled: the student will be, with torch.compile.

        Raises:
            InputError: the architecture has no such layers.
        """
        try:
            settings: dict[str, Any] = {"use_reentrant": False}
            if not compiled:  # what is compiled multiplies by torch's own functions
                settings["context_fn"] = _in_the_backward_pass
            self.transformer.gradient_checkpointing_enable(settings)
        except ValueError as error:
            raise InputError(
                f"student.path={self.path} cannot do student.gradient_checkpointing=true; leave it out"
            ) from error


def _in_the_backward_pass() -> tuple[AbstractContextManager, AbstractContextManager]:
    """Around what is computed, nothing more; around what is computed again, what was around it before."""
    return nullcontext(), fastest_matmul()
