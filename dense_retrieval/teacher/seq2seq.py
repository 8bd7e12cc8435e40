"""Cross-encoder teachers that read a prompt and answer with a token; among them T5's kind."""

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoModelForSeq2SeqLM, PreTrainedModel

from dense_retrieval.batching import pad
from dense_retrieval.hub import load_config, load_model, load_tokenizer, model_folder, transformer_folder
from dense_retrieval.records import InputError
from dense_retrieval.teacher.head import Float32Linear
from dense_retrieval.teacher.score import score_batches


class PromptTeacher(nn.Module):
    """Scores (query, passage) pairs by a language model's next token after a prompt, frozen.

    The score is the logit of ``token``, or, with ``other_token``, log p(token) among the two.

    Attributes:
        model: a language model whose head computes these tokens' logits only.
        template: the prompt, with ``{query}`` and then ``{passage}`` in it.
        max_length: tokens of a prompt, special tokens included; the passage is what is cut.
        path: the folder or hub name that it was loaded from.
    """

    auto_class: Any  # of transformers
    architectures: tuple[str, ...]  # endings of its models' names

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer,
        *,
        template: str,
        token: str,
        other_token: str | None = None,
        max_length: int = 512,
        path: str = "",
    ) -> None:
        super().__init__()
        self.template = template
        self.max_length = max_length
        self.path = path
        self.tokenizer = tokenizer
        self.head, self.tail = split_template(template)
        names = {"token": token} | ({"other_token": other_token} if other_token else {})
        ids = [token_id(tokenizer, name, key, path) for key, name in names.items()]
        head = model.get_output_embeddings()
        bias = None if head.bias is None else head.bias[ids]
        model.set_output_embeddings(Float32Linear.of(head.weight[ids], bias))
        self.model = model.requires_grad_(False)
        self.eval()

    @classmethod
    def load(
        cls, path: str, *, revision: str | None = None, trust_remote_code: bool = False, **settings
    ) -> Self:
        """From a local folder or hub name, weights in float32.

        Args:
            revision: branch, tag or commit on the hub.
            trust_remote_code: run modelling code that comes with the weights.
            settings: the keyword arguments of the class.

        Raises:
            InputError: no such model, another kind of model, no tokenizer, a token that it does not have.
        """
        model, tokenizer = load_language_model(
            path, revision, trust_remote_code, cls.auto_class, cls.architectures
        )
        return cls(model, tokenizer, path=path, **settings)

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        """Logits ``(B, 1 or 2)`` of the tokens after prompts ``(B, T)``, padded on either side."""
        raise NotImplementedError

    def tokenize(self, queries: Sequence[str], passages: Sequence[str]) -> list[np.ndarray]:
        """Token ids of each prompt, at most ``max_length``.

        Raises:
            InputError: a query so long that there is no room for a passage.
        """
        heads = [self.head.replace("{query}", query) for query in queries]
        texts = [head + passage for head, passage in zip(heads, passages, strict=True)]
        tail = self.tail_ids()
        room = self.max_length - len(tail)
        prompts = []
        for query, head, ids in zip(queries, heads, self._ids(texts), strict=True):
            if len(ids) > room and len(self._ids([head])[0]) >= room:
                raise InputError(
                    f"teacher.max_length={self.max_length} tokens leave no room for a passage after the query "
                    f"{query[:60]!r}; raise it"
                )
            prompts.append(np.array(ids[:room] + tail))
        return prompts

    def tail_ids(self) -> list[int]:
        """The tokens of the template after the passage."""
        return self._ids([self.tail])[0]

    def _ids(self, texts: list[str]) -> list[list[int]]:
        return self.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]

    def score(self, queries: Sequence[str], passages: Sequence[str], max_tokens: int = 4096) -> np.ndarray:
        """Scores ``(N,)`` float32 of N pairs, computed in batches of ``max_tokens`` padded tokens."""
        prompts = self.tokenize(queries, passages)
        device = next(self.parameters()).device

        def forward(rows: np.ndarray) -> Tensor:
            # Any token pads, since it is masked.
            inputs = {name: ids.to(device) for name, ids in pad([prompts[row] for row in rows], 0).items()}
            return answer_scores(self(inputs))

        return score_batches(np.array([len(ids) for ids in prompts]), max_tokens, forward)


class Seq2SeqTeacher(PromptTeacher):
    """An encoder-decoder that reads the pair and whose first decoded token is the answer.

    RankT5 (arXiv 2210.10634): the logit of ``<extra_id_10>`` after ``Query: {query} Document: {passage}``.
    monoT5 (arXiv 2003.06713): log p(``▁true``) among true and false, after
    ``Query: {query} Document: {passage} Relevant:``.
    """

    auto_class = AutoModelForSeq2SeqLM
    architectures = ("ForConditionalGeneration", "LMHeadModel")

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        config = self.model.generation_config
        start = config.decoder_start_token_id if config else None
        if start is None:
            start = self.model.config.pad_token_id  # what T5 starts with
        first = torch.full_like(inputs["input_ids"][:, :1], start)
        return self.model(**inputs, decoder_input_ids=first, use_cache=False).logits[:, 0]

    def tail_ids(self) -> list[int]:
        return [*super().tail_ids(), self.tokenizer.eos_token_id]


def answer_scores(logits: Tensor) -> Tensor:
    """Scores ``(B,)`` of logits ``(B, 1)``: themselves; of ``(B, 2)``: the first's log-softmax."""
    return (logits.log_softmax(-1) if logits.shape[1] == 2 else logits)[:, 0]


def split_template(template: str) -> tuple[str, str]:
    """What stands before and after ``{passage}``.

    Raises:
        InputError: not one ``{query}`` and after it one ``{passage}``.
    """
    head, _, tail = template.partition("{passage}")
    if template.count("{passage}") != 1 or template.count("{query}") != 1 or "{query}" in tail:
        raise InputError(
            f"teacher.template={template[:200]!r} needs one {{query}} and after it one {{passage}}"
        )
    return head, tail


def token_id(tokenizer, token: str, key: str, path: str) -> int:
    """Raises InputError where the tokenizer of ``path`` has no such token."""
    number = tokenizer.get_vocab().get(token)
    if number is None:
        raise InputError(
            f"teacher.path={path}: its tokenizer has no token {token!r}; set teacher.{key} to the token that "
            "it answers with, or choose another teacher="
        )
    return number


def load_language_model(
    path: str, revision: str | None, trust_remote_code: bool, auto_class: Any, architectures: tuple[str, ...]
):
    """A language model of transformers and its tokenizer, weights in float32.

    Args:
        architectures: endings of the names of suitable model classes.

    Raises:
        InputError: no such model, one of another kind, or one that lacks weights.
    """
    named = f"teacher.path={path}"
    folder = transformer_folder(model_folder(path, revision), named, "LogitScore")
    saved = load_config(folder, named, trust_remote_code).architectures or []
    if saved and not saved[0].endswith(architectures):
        raise InputError(f"{named} is a {saved[0]}; choose the teacher= that is made for it")
    model = load_model(auto_class, folder, named, trust_remote_code=trust_remote_code)
    return model, load_tokenizer(folder, named, trust_remote_code)
