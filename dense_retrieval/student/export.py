"""The student as a sentence-transformers folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dense_retrieval.student.tokens import longest

if TYPE_CHECKING:
    from dense_retrieval.student.bi_encoder import BiEncoder


def export(student: BiEncoder, folder: Path, card: str, matryoshka: Sequence[int] = ()) -> None:
    """Write a folder that ``SentenceTransformer(folder)`` opens and that gives our embeddings.

    Pooling, normalisation and length limits travel inside, queries being read as far as the student can; the
    prefixes as the prompts "query" and "document", which ``encode_query`` and ``encode_document`` use.

    Args:
        card: Markdown for the folder's README.md.
        matryoshka: dimensions to which embeddings may be cut, which vLLM reads in ``config.json``. In
            sentence-transformers ``truncate_dim``, here that of whole embeddings, cuts them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if matryoshka:
        student.transformer.config.matryoshka_dimensions = list(matryoshka)
    student.transformer.save_pretrained(folder)
    student.tokenizer.save_pretrained(folder)
    after = ["Pooling", *("Dense" for _ in student.dense), "Normalize"]
    modules = ["models.Transformer", *(f"models.{name}" for name in after)]
    paths = ["", *(f"{number}_{name}" for number, name in enumerate(after, 1))]
    _write(
        folder / "modules.json",
        [
            {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.{module}"}
            for i, (module, path) in enumerate(zip(modules, paths, strict=True))
        ],
    )
    _write(
        folder / "1_Pooling" / "config.json",
        {
            "word_embedding_dimension": student.transformer.config.hidden_size,
            "pooling_mode_cls_token": student.pooling == "cls",
            "pooling_mode_mean_tokens": student.pooling == "mean",
            "pooling_mode_lasttoken": student.pooling == "lasttoken",
        },
    )
    for number, layer in enumerate(student.dense, 2):
        _write_dense(folder / f"{number}_Dense", layer)
    (folder / paths[-1]).mkdir(exist_ok=True)
    positions = getattr(student.transformer.config, "max_position_embeddings", None)
    write_lengths(folder, longest(positions, student.tokenizer), student.passage_length)
    _write(
        folder / "config_sentence_transformers.json",
        {
            "prompts": {"query": student.query_prefix, "document": student.passage_prefix},
            "default_prompt_name": None,
            "similarity_fn_name": "cosine",
        }
        | ({"truncate_dim": student.dimension} if matryoshka else {}),
    )
    (folder / "README.md").write_text(card)


def _write_dense(folder: Path, layer: Any) -> None:
    from safetensors.torch import save_file

    linear, activation = layer
    kind = type(activation)
    config = {
        "in_features": linear.in_features,
        "out_features": linear.out_features,
        "bias": linear.bias is not None,
        "activation_function": f"{kind.__module__}.{kind.__name__}",
    }
    _write(folder / "config.json", config)
    weights = {f"linear.{name}": of.contiguous() for name, of in linear.state_dict().items()}
    save_file(weights, folder / "model.safetensors")


def write_lengths(folder: Path, queries: int, passages: int) -> None:
    """The tokens at which queries and passages are cut; sentence-transformers before 6 knows but one limit."""
    lengths = {"query_length": queries, "document_length": passages} if queries != passages else {}
    _write(folder / "sentence_bert_config.json", {"max_seq_length": passages} | lengths)


def _write(path: Path, content: object) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content, indent=2))
