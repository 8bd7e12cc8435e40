"""The student: one transformer that embeds queries and passages."""

import json
import logging
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedModel

from dense_retrieval.hub import model_folder
from dense_retrieval.records import InputError

log = logging.getLogger(__name__)


class BiEncoder(nn.Module):
    """A transformer, pooling over its last hidden states, and L2 normalisation.

    Attributes:
        pooling: ``"cls"`` (the first token) or ``"mean"`` (over the tokens of the text).
        query_prefix, passage_prefix: put before every query and passage.
        query_length, passage_length: limits in tokens, prefix and special tokens included.
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
        passage_length: int = 512,
        path: str = "",
    ) -> None:
        super().__init__()
        if pooling not in ("cls", "mean"):
            raise InputError(f"student.pooling={pooling!r} is unknown; use cls or mean")
        limit = getattr(transformer.config, "max_position_embeddings", None)
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
        trust_remote_code: bool = False,
        **settings,
    ) -> "BiEncoder":
        """From a local folder or hub name, in plain transformers' or sentence-transformers' layout.

        Args:
            dropout: probability at every dropout of the transformer; 0 in the paper.
            trust_remote_code: run modelling code that comes with the weights.
            settings: the keyword arguments of :class:`BiEncoder`.

        Raises:
            InputError: no such model, no safetensors weights, no tokenizer, unknown architecture.
        """
        whole = model_folder(path, revision)
        declared = _declared_pooling(whole)
        if declared and declared != settings.get("pooling"):
            log.warning(
                "student.pooling=%s, but %s/1_Pooling says %s", settings.get("pooling"), path, declared
            )
        folder = transformer_folder(whole)
        try:
            config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
            for key in vars(config):
                if key.endswith(("dropout", "dropout_prob")) and isinstance(getattr(config, key), float):
                    setattr(config, key, dropout)
            transformer = AutoModel.from_pretrained(
                folder,
                config=config,
                dtype=torch.float32,
                use_safetensors=True,
                trust_remote_code=trust_remote_code,
            )
        except (OSError, ValueError) as error:
            raise InputError(f"student {path}: {str(error).strip().partition(chr(10))[0]}") from error
        return cls(transformer, load_tokenizer(folder, trust_remote_code), path=path, **settings)

    @property
    def dimension(self) -> int:
        return self.transformer.config.hidden_size

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Embeddings ``(B, D)``, float32, of length 1, for right-padded tokens ``(B, T)``."""
        hidden = self.transformer(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        if self.pooling == "cls":
            pooled = hidden[:, 0].float()
        else:
            weights = attention_mask.unsqueeze(-1).float()
            pooled = (hidden.float() * weights).sum(1) / weights.sum(1)
        return nn.functional.normalize(pooled, dim=-1)


def _declared_pooling(folder: Path) -> str | None:
    """What a sentence-transformers folder says; None if it says nothing."""
    file = folder / "1_Pooling" / "config.json"
    config = json.loads(file.read_text()) if file.is_file() else {}
    names = {"pooling_mode_cls_token": "cls", "pooling_mode_mean_tokens": "mean"}
    return config.get("pooling_mode") or next((name for key, name in names.items() if config.get(key)), None)


def transformer_folder(folder: Path) -> Path:
    """Where the transformer lies in a sentence-transformers folder; else the folder itself."""
    modules = folder / "modules.json"
    return folder / json.loads(modules.read_text())[0]["path"] if modules.is_file() else folder


def load_tokenizer(folder: Path, trust_remote_code: bool = False):
    """Raises InputError where the folder has no (usable) tokenizer."""
    names = ("tokenizer.json", "vocab.txt", "spiece.model", "sentencepiece.bpe.model", "tokenizer.model")
    if not any((folder / name).is_file() for name in names):
        raise InputError(
            f"model folder {folder} has no tokenizer (tokenizer.json or vocab.txt); "
            "save the tokenizer beside the weights with save_pretrained()"
        )
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"tokenizer of {folder}: {str(error).strip().partition(chr(10))[0]}") from error
