"""The teacher bge-reranker-v2.5-gemma2-lightweight: Gemma 2, left early, its passages compressed.

The code that comes with the weights needs a transformers before 4.46; this is the same computation
on transformers' own Gemma 2 layers, so that no code is downloaded.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import Gemma2Config, Gemma2Model

from dense_retrieval.batching import pad
from dense_retrieval.hub import load_model, load_tokenizer, model_folder, read_json
from dense_retrieval.records import InputError
from dense_retrieval.teacher.head import Float32Linear
from dense_retrieval.teacher.score import score_batches
from dense_retrieval.teacher.seq2seq import split_template

# One logit after each layer from start_layer on; with one layer asked for, the published code takes
# the first head, whichever layer that is.
_HEAD = "lm_head.0.linear_head.weight"


class LightweightTeacher(nn.Module):
    """Scores (query, passage) pairs by a linear head on a decoder's last token, frozen.

    Computation stops after ``cutoff_layer`` layers. Before each of ``compress_layers`` every
    ``compress_ratio`` neighbouring passage tokens become one, their mean.

    Attributes:
        template: the prompt, with ``{query}``, a line break, and ``{passage}`` in it.
        max_length: tokens of a prompt, special tokens included; the passage is what is cut.
        path: the folder or hub name that it was loaded from.
    """

    def __init__(
        self,
        gemma: Gemma2Model,
        head: nn.Linear,
        tokenizer,
        *,
        template: str,
        compress_layers: Sequence[int] = (24, 40),
        compress_ratio: int = 2,
        softcap: float | None = None,
        max_length: int = 512,
        path: str = "",
    ) -> None:
        super().__init__()
        before, after = split_template(template)
        # The passage begins on a line of its own: what is before it is the query's and stays as it is.
        self.query_part, _, self.passage_part = before.rpartition("\n")
        if "{query}" not in self.query_part:
            raise InputError("teacher.template needs a line break between {query} and {passage}")
        if compress_ratio < 1:
            raise InputError(f"teacher.compress_ratio={compress_ratio} must be 1 (none) or more")
        self.gemma, self.head = gemma.requires_grad_(False), head.requires_grad_(False)
        self.tokenizer = tokenizer
        self.template = template
        self.tail = self._ids([after])[0]
        self.compress_layers = frozenset(compress_layers) - {0}
        self.compress_ratio = compress_ratio
        self.softcap = softcap
        self.max_length = max_length
        self.path = path
        self.eval()

    @classmethod
    def load(
        cls, path: str, *, revision: str | None = None, cutoff_layer: int = 28, **settings
    ) -> "LightweightTeacher":
        """From a local folder or hub name, weights in float32, of the first ``cutoff_layer`` layers only.

        Args:
            settings: the keyword arguments of the class.

        Raises:
            InputError: no such model, another kind of model, no tokenizer, no head after this layer.
        """
        folder = model_folder(path, revision)
        named = f"teacher.path={path}"
        raw = read_json(folder / "config.json", named)
        if raw.get("model_type") != "cost_wise_gemma" or not raw.get("layer_wise"):
            raise InputError(
                f"{named} is a {raw.get('model_type')}, not a layer-wise cost_wise_gemma; "
                "choose the teacher= that is made for it"
            )
        first, last, step = raw["start_layer"], raw["num_hidden_layers"], raw["layer_sep"]
        if cutoff_layer not in range(first, last + 1, step):
            raise InputError(
                f"teacher.cutoff_layer={cutoff_layer}: {path} has heads after layers {first} to {last}, "
                f"every {step}; choose one of them"
            )
        gemma = _load_layers(folder, raw, cutoff_layer, named)
        head = Float32Linear.of(_load_tensor(folder, _HEAD, named).float(), None)
        softcap = raw.get("final_logit_softcapping")
        return cls(gemma, head, load_tokenizer(folder, named), softcap=softcap, path=path, **settings)

    def forward(self, ids: Tensor, mask: Tensor, query_lengths: Tensor) -> Tensor:
        """Scores ``(B,)`` float32 of right-padded prompts ``(B, T)``.

        Args:
            query_lengths: ``(B,)`` tokens before each passage.
        """
        hidden = self.gemma.embed_tokens(ids)
        for number, layer in enumerate(self.gemma.layers):
            if number in self.compress_layers:
                hidden, mask = compress(hidden, mask, query_lengths, len(self.tail), self.compress_ratio)
            positions = torch.arange(hidden.shape[1], device=hidden.device)[None]
            visible = mask[:, None, None].bool() & (positions <= positions.mT)
            bias = torch.zeros_like(visible, dtype=hidden.dtype)
            hidden = layer(
                hidden,
                position_embeddings=self.gemma.rotary_emb(hidden, positions),
                attention_mask=bias.masked_fill(~visible, torch.finfo(hidden.dtype).min),
                position_ids=positions,
            )
        last = hidden[torch.arange(len(hidden), device=hidden.device), mask.sum(1) - 1]
        logits = self.head(self.gemma.norm(last)).squeeze(-1)
        return logits if self.softcap is None else self.softcap * (logits / self.softcap).tanh()

    def tokenize(
        self, queries: Sequence[str], passages: Sequence[str]
    ) -> tuple[list[np.ndarray], np.ndarray]:
        """Token ids of each prompt, at most ``max_length``, and the tokens ``(N,)`` before its passage.

        Raises:
            InputError: a query so long that there is no room for a passage.
        """
        starts = self._ids([self.query_part.replace("{query}", query) + "\n" for query in queries])
        rests = self._ids([self.passage_part + passage for passage in passages])
        prompts = []
        for query, start, rest in zip(queries, starts, rests, strict=True):
            room = self.max_length - len(start) - len(self.tail)
            if room < 1:
                raise InputError(
                    f"teacher.max_length={self.max_length} tokens leave no room for a passage after the query "
                    f"{query[:60]!r}; raise it"
                )
            prompts.append(np.array(start + rest[:room] + self.tail))
        return prompts, np.array([len(start) for start in starts])

    def _ids(self, texts: list[str]) -> list[list[int]]:
        return self.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]

    def score(self, queries: Sequence[str], passages: Sequence[str], max_tokens: int = 4096) -> np.ndarray:
        """Scores ``(N,)`` float32 of N pairs, computed in batches of ``max_tokens`` padded tokens."""
        prompts, query_lengths = self.tokenize(queries, passages)
        device = self.head.weight.device

        def forward(rows: np.ndarray) -> Tensor:
            ids, mask = (t.to(device) for t in pad([prompts[row] for row in rows], 0).values())
            return self(ids, mask, torch.from_numpy(query_lengths[rows]).to(device))

        return score_batches(np.array([len(ids) for ids in prompts]), max_tokens, forward)


def compress(
    hidden: Tensor, mask: Tensor, query_lengths: Tensor, tail_length: int, ratio: int
) -> tuple[Tensor, Tensor]:
    """The mean of every ``ratio`` neighbouring passage tokens in their place.

    Args:
        hidden: ``(B, T, D)``: the query's tokens, the passage's, the last ``tail_length``, padding.
        mask: ``(B, T)``, 0 = padding.
        query_lengths: ``(B,)`` tokens before each passage.

    Returns:
        ``(B, T', D)`` and its mask ``(B, T')``.
    """
    position = torch.arange(hidden.shape[1], device=hidden.device)[None]
    begin = query_lengths[:, None]
    end = mask.sum(1, keepdim=True) - tail_length
    new_end = begin + (end - begin + ratio - 1) // ratio
    passage = begin + (position - begin) // ratio
    target = torch.where(position < begin, position, passage)
    target = torch.where(position < end, target, position - end + new_end)
    length = new_end + tail_length
    width = int(length.max())
    target = target.clamp(max=width - 1)  # padding, which adds nothing
    weight = mask.to(hidden.dtype)
    counts = weight.new_zeros(len(hidden), width).scatter_add(1, target, weight)
    sums = hidden.new_zeros(len(hidden), width, hidden.shape[2])
    sums = sums.scatter_add(1, target[..., None].expand_as(hidden), hidden * weight[..., None])
    new_mask = (torch.arange(width, device=hidden.device)[None] < length).to(mask.dtype)
    return sums / counts.clamp(min=1)[..., None], new_mask


def _load_layers(folder: Path, raw: dict, n_layers: int, named: str) -> Gemma2Model:
    own = {"auto_map", "architectures", "model_type", "layer_types", "dtype", "torch_dtype"}
    settings = {name: value for name, value in raw.items() if name not in own}
    # The published code ran without the attention's soft cap (PyTorch's own attention has none).
    settings |= {"num_hidden_layers": n_layers, "attn_logit_softcapping": None}
    config = Gemma2Config(**settings)
    return load_model(Gemma2Model, folder, named, config=config, attn_implementation="eager")


def _load_tensor(folder: Path, name: str, named: str) -> Tensor:
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            if name in tensors.keys():  # noqa: SIM118 - no mapping
                return tensors.get_tensor(name)
    raise InputError(f"{named} lacks the weights {name}; download it again")
