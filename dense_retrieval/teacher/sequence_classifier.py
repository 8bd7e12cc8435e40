"""A cross-encoder teacher that is a sequence classifier with one output."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from peft import PeftModel
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from dense_retrieval.hub import load_model, load_tokenizer, model_folder, transformer_folder
from dense_retrieval.records import InputError
from dense_retrieval.teacher.head import Float32Linear
from dense_retrieval.teacher.score import score_batches

_ADAPTER = "adapter_model.safetensors"


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
        self.classifier = _with_float32_head(classifier).requires_grad_(False)
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
            InputError: no such model, no tokenizer, more than one output, weights that neither the model nor
                the adapter has.
        """
        named = f"teacher.path={path}" + (f" with teacher.adapter={adapter}" if adapter else "")
        new = _adapted_weights(adapter) if adapter else ()
        one = {"num_labels": 1} if adapter else {}
        classifier, tokenizer = load_classifier(
            path, named, revision=revision, trust_remote_code=trust_remote_code, new=new, **one
        )
        if adapter:
            classifier = _merged(classifier, adapter)
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

    def score(self, queries: Sequence[str], passages: Sequence[str], max_tokens: int = 4096) -> np.ndarray:
        """Scores ``(N,)`` float32 of N pairs, computed in batches of ``max_tokens`` padded tokens."""
        encodings = self.tokenize(queries, passages)
        lengths = np.array([len(encoding["input_ids"]) for encoding in encodings])
        return score_batches(
            lengths, max_tokens, lambda rows: self(self.pad([encodings[row] for row in rows]))
        )


def load_classifier(
    path: str,
    named: str,
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
    new: tuple[str, ...] = (),
    **settings,
):
    """A sequence classifier of transformers and its tokenizer, weights in float32.

    Args:
        named, new, settings: as of :func:`~dense_retrieval.hub.load_model`.
    """
    # Of a bi-encoder, which an adapter turns into a teacher, the transformer alone is read.
    folder = transformer_folder(model_folder(path, revision), named, "Pooling", "Normalize")
    classifier = load_model(
        AutoModelForSequenceClassification,
        folder,
        named,
        new=new,
        trust_remote_code=trust_remote_code,
        **settings,
    )
    return classifier, load_tokenizer(folder, named, trust_remote_code)


def _adapted_weights(adapter: str) -> tuple[str, ...]:
    """The weights that an adapter holds whole, by their names in the model: a new head's.

    Raises:
        InputError: it holds no safetensors; a pickle can run code when it is opened.
    """
    file = Path(adapter) / _ADAPTER
    if not file.is_file():
        raise InputError(
            f"teacher.adapter={adapter} has no {_ADAPTER}; save the adapter with save_pretrained() of PEFT"
        )
    with _adapter_errors(adapter), safe_open(file, framework="pt") as tensors:
        return tuple(name.removeprefix("base_model.model.") for name in tensors.keys())  # noqa: SIM118


def _merged(classifier: PreTrainedModel, adapter: str) -> PreTrainedModel:
    with _adapter_errors(adapter), warnings.catch_warnings():
        warnings.filterwarnings("error", ".*Found missing adapter keys")
        return PeftModel.from_pretrained(classifier, adapter).merge_and_unload()


@contextmanager
def _adapter_errors(adapter: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, RuntimeError, SafetensorError, UserWarning) as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(
            f"teacher.adapter={adapter} cannot be loaded: {reason}; give the adapter that was made for teacher.path"
        ) from error


def _with_float32_head(classifier: PreTrainedModel) -> PreTrainedModel:
    """With its last layer in float32 also under autocast, whatever the architecture calls it."""
    heads = [
        (name, layer)
        for name, layer in classifier.named_modules()
        if isinstance(layer, nn.Linear) and layer.out_features == classifier.config.num_labels
    ]
    if heads:
        name, head = heads[-1]
        classifier.set_submodule(name, Float32Linear.of(head.weight, head.bias))
    return classifier
