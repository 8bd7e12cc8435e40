"""A cross-encoder teacher that is a sequence classifier with one output."""

from collections.abc import Sequence

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from dense_retrieval.batching import pack
from dense_retrieval.hub import model_folder
from dense_retrieval.records import InputError
from dense_retrieval.student.bi_encoder import load_tokenizer, transformer_folder


class SequenceClassifier(nn.Module):
    """Scores (query, passage) pairs by the single logit of a sequence classifier, frozen.

    Attributes:
        max_length: tokens of a pair, special tokens included; the passage is what is cut.
    """

    def __init__(self, classifier: PreTrainedModel, tokenizer, max_length: int, path: str = "") -> None:
        super().__init__()
        if classifier.config.num_labels != 1:
            raise InputError(
                f"teacher {path} has {classifier.config.num_labels} outputs; a cross-encoder with one is needed"
            )
        self.classifier = classifier.requires_grad_(False)
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.path = path
        self.eval()

    @classmethod
    def load(
        cls,
        path: str,
        *,
        revision: str | None = None,
        adapter: str | None = None,
        max_length: int = 512,
        trust_remote_code: bool = False,
    ) -> "SequenceClassifier":
        """From a local folder or hub name.

        Args:
            adapter: folder of a LoRA adapter (PEFT) that turns ``path`` into a cross-encoder.

        Raises:
            InputError: no such model, no tokenizer, more than one output.
        """
        classifier, tokenizer = load_classifier(
            path, revision, trust_remote_code, **({"num_labels": 1} if adapter else {})
        )
        if adapter:
            try:
                classifier = PeftModel.from_pretrained(classifier, adapter).merge_and_unload()
            except (OSError, ValueError) as error:
                raise InputError(
                    f"teacher.adapter={adapter}: {str(error).strip().splitlines()[0]}"
                ) from error
        return cls(classifier, tokenizer, max_length, path)

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        """Logits ``(B,)`` of tokenised pairs ``(B, T)``."""
        return self.classifier(**inputs).logits.squeeze(-1).float()

    def tokenize(self, queries: Sequence[str], passages: Sequence[str]) -> list[dict[str, list[int]]]:
        """One encoding a pair, unpadded.

        Raises:
            InputError: a query so long that there is no room for a passage.
        """
        try:
            pairs = self.tokenizer(
                list(queries), list(passages), truncation="only_second", max_length=self.max_length
            )
        except Exception as error:  # of this class, by the tokenizers library
            if "Truncation error" not in str(error):
                raise
            raise InputError(
                f"teacher.max_length={self.max_length} tokens leave no room for a passage after the query "
                f"{max(queries, key=len)[:60]!r}; raise it, or cut the queries with data.query_characters"
            ) from error
        return [dict(zip(pairs, values, strict=True)) for values in zip(*pairs.values(), strict=True)]

    def pad(self, encodings: list[dict[str, list[int]]]) -> dict[str, Tensor]:
        device = next(self.parameters()).device
        return self.tokenizer.pad(encodings, return_tensors="pt").to(device)

    @torch.inference_mode()
    def score(self, queries: Sequence[str], passages: Sequence[str], max_tokens: int = 4096) -> np.ndarray:
        """Scores ``(N,)`` float32 of N pairs, computed in batches of ``max_tokens`` padded tokens."""
        encodings = self.tokenize(queries, passages)
        scores = np.empty(len(encodings), dtype=np.float32)
        for rows in pack(np.array([len(e["input_ids"]) for e in encodings]), max_tokens):
            scores[rows] = self(self.pad([encodings[row] for row in rows])).cpu().numpy()
        return scores


def load_classifier(path: str, revision: str | None, trust_remote_code: bool, **config):
    """A sequence classifier of transformers and its tokenizer, weights in float32."""
    folder = transformer_folder(model_folder(path, revision))
    try:
        classifier = AutoModelForSequenceClassification.from_pretrained(
            folder,
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=trust_remote_code,
            **config,
        )
    except (OSError, ValueError) as error:
        raise InputError(f"teacher {path}: {str(error).strip().splitlines()[0]}") from error
    return classifier, load_tokenizer(folder, trust_remote_code)
