"""A model of the Hugging Face hub in this process, by transformers."""

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)

from dense_retrieval.batching import pack
from dense_retrieval.hub import load_config, load_model, load_tokenizer, model_folder
from dense_retrieval.queries.backends.sampling import Sampling
from dense_retrieval.queries.generate import Backend, Completion, Request
from dense_retrieval.records import InputError

# of a checkpoint's generation config: the tokens that begin and end an answer, not how it samples
_TOKENS = ("bos_token_id", "decoder_start_token_id", "forced_bos_token_id", "forced_eos_token_id")


class Transformers(Backend):
    """Runs batches of requests of about the same length.

    A chat model gets the request as the user's message, in its own chat template and without thinking;
    any other causal model, and every encoder-decoder, gets it as it is.

    An answer depends on its request's text and seed, and not on the batch: each row draws from a
    generator of its own. What is left is rounding: logits differ by about 1e-6 of their size with the
    batch's shape in float32, by 1e-2 in bfloat16, so that there a token may now and then differ.

    Args:
        path: folder or hub name.
        revision: branch, tag or commit on the hub.
        context: tokens of prompt and answer together, of an encoder-decoder those of the prompt; None is
            what the model was made for.
        max_tokens_a_batch: padded tokens, answers included; changes speed only.
        device: cpu, cuda, or auto: cuda where there is one.
        dtype: float32, bfloat16, float16, or auto: bfloat16 on cuda, else float32.
        trust_remote_code: run modelling code that comes with the weights.
        sampling: the fields of :class:`~dense_retrieval.queries.backends.sampling.Sampling`.
    """

    at_once = 32

    def __init__(
        self,
        path: str,
        *,
        revision: str | None = None,
        context: int | None = None,
        max_tokens_a_batch: int = 16_384,
        device: str = "auto",
        dtype: str = "auto",
        trust_remote_code: bool = False,
        **sampling: Any,
    ) -> None:
        cuda = torch.cuda.is_available()
        self.device = ("cuda" if cuda else "cpu") if device == "auto" else device
        if dtype == "auto":
            dtype = "bfloat16" if self.device.startswith("cuda") else "float32"
        if dtype not in ("float32", "bfloat16", "float16"):
            raise InputError(f"generator.dtype={dtype}: must be auto, float32, bfloat16 or float16")
        self.dtype = getattr(torch, dtype)
        self.path = path
        self.revision = revision
        self.sampling = Sampling(**sampling)
        self.context = context
        self.max_tokens_a_batch = max_tokens_a_batch
        self.trust_remote_code = trust_remote_code

    @cached_property
    def files(self) -> Path:
        """The model's folder; downloaded if it must be."""
        return model_folder(self.path, self.revision, "generator=files or querytype=human")

    @cached_property
    def _tokenizer(self) -> Any:
        return load_tokenizer(self.files, f"generator.path={self.path}", self.trust_remote_code)

    @cached_property
    def _config(self) -> Any:
        return load_config(self.files, f"generator.path={self.path}", self.trust_remote_code)

    @cached_property
    def _model(self) -> Any:
        named, trust, config = f"generator.path={self.path}", self.trust_remote_code, self._config
        auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
        model = load_model(auto, self.files, named, trust_remote_code=trust, dtype=self.dtype)
        tokenizer, own = self._tokenizer, model.generation_config
        listed = own.eos_token_id if isinstance(own.eos_token_id, list) else [own.eos_token_id]
        ends = sorted({token for token in (*listed, tokenizer.eos_token_id) if token is not None})
        pad = next((t for t in (tokenizer.pad_token_id, own.pad_token_id, *ends) if t is not None), 0)
        model.generation_config = GenerationConfig(
            do_sample=False,
            max_new_tokens=self.sampling.max_tokens,
            eos_token_id=ends or None,
            pad_token_id=pad,
            **{name: getattr(own, name) for name in _TOKENS},
        )
        return model.to(self.device).eval()

    @cached_property
    def _room(self) -> float:
        """Tokens that a prompt may have."""
        config = self._model.config
        made_for = getattr(config.get_text_config(), "max_position_embeddings", None)
        context = self.context or made_for or self._tokenizer.model_max_length  # T5 has no last position
        if made_for and context > made_for:
            raise InputError(
                f"generator.context={context}: {self.path} was made for {made_for} tokens at most"
            )
        return context if config.is_encoder_decoder else context - self.sampling.max_tokens

    def complete(self, requests: Sequence[Request]) -> Iterator[tuple[int, Completion]]:
        """See :class:`~dense_retrieval.queries.generate.Backend`."""
        prompts = self._prompts(requests)
        lengths = np.array([len(prompt) for prompt in prompts], dtype=np.int64)
        for position in np.flatnonzero(lengths > self._room):
            yield int(position), Completion("", "context", 0, 0)
        fitting = np.flatnonzero(lengths <= self._room)
        for batch in pack(lengths[fitting] + self.sampling.max_tokens, self.max_tokens_a_batch):
            rows = fitting[batch].tolist()
            answers = self._answers([prompts[row] for row in rows], [requests[row].seed for row in rows])
            yield from zip(rows, answers, strict=True)

    def batches(self, requests: Sequence[Request]) -> list[np.ndarray]:
        """Positions of the requests that :meth:`complete` takes together, if all fit; without loading the model."""
        lengths = np.array([len(prompt) for prompt in self._prompts(requests)], dtype=np.int64)
        return pack(lengths + self.sampling.max_tokens, self.max_tokens_a_batch)

    def _prompts(self, requests: Sequence[Request]) -> list[list[int]]:
        chat = not self._config.is_encoder_decoder
        return [prompt_ids(self._tokenizer, request.text, chat) for request in requests]

    @torch.inference_mode()
    def _answers(self, prompts: list[list[int]], seeds: list[int]) -> list[Completion]:
        config = self._model.generation_config
        width = max(map(len, prompts))
        ids = torch.full((len(prompts), width), config.pad_token_id)
        mask = torch.zeros_like(ids)
        causal = not self._model.config.is_encoder_decoder
        for row, prompt in enumerate(prompts):
            # A causal model goes on from the last column, so its prompts end there.
            columns = slice(width - len(prompt), None) if causal else slice(len(prompt))
            ids[row, columns] = torch.tensor(prompt)
            mask[row, columns] = 1
        try:
            written = self._model.generate(
                input_ids=ids.to(self.device),
                attention_mask=mask.to(self.device),
                logits_processor=self._draw(seeds),
            )
        except torch.OutOfMemoryError as error:
            raise InputError(
                f"generator.max_tokens_a_batch={self.max_tokens_a_batch}: too much for the memory of "
                f"{self.device}; lower it"
            ) from error
        answers = written[:, width if causal else 1 :].tolist()
        return [
            self._completion(answer, len(prompt)) for answer, prompt in zip(answers, prompts, strict=True)
        ]

    def _draw(self, seeds: list[int]) -> LogitsProcessorList:
        temperature, top_p = self.sampling.temperature, self.sampling.top_p
        if temperature == 0:
            return LogitsProcessorList()
        cut = [TopPLogitsWarper(top_p)] if top_p < 1 else []
        noise = GumbelNoise(seeds, self.device)
        return LogitsProcessorList([TemperatureLogitsWarper(float(temperature)), *cut, noise])

    def _completion(self, tokens: list[int], prefilled: int) -> Completion:
        ends = self._model.generation_config.eos_token_id or []
        end = next((i for i, token in enumerate(tokens) if token in ends), None)
        text = self._tokenizer.decode(tokens[:end], skip_special_tokens=True)
        return Completion(text, "length" if end is None else "stop", prefilled, len(tokens[:end]))


class GumbelNoise(LogitsProcessor):
    """Makes greedy search sample: the argmax of ``logits + noise`` is distributed as softmax(logits).

    Args:
        seeds: one a row; the row's noise, step after step, depends on its seed alone.
    """

    def __init__(self, seeds: Sequence[int], device: str) -> None:
        self.generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Args: scores ``(B, V)``, float32."""
        noise = torch.empty_like(scores)
        for row, generator in zip(noise, self.generators, strict=True):
            row.exponential_(generator=generator)
        # -log of an exponential variable is a Gumbel one; 0 would be infinite
        return scores - noise.clamp_(min=torch.finfo(noise.dtype).tiny).log_()


def prompt_ids(tokenizer: Any, text: str, chat: bool = True) -> list[int]:
    """The tokens of a prompt: with ``chat``, in the tokenizer's chat template where it has one."""
    if not (chat and tokenizer.chat_template):
        return tokenizer(text, verbose=False)["input_ids"]
    message = [{"role": "user", "content": text}]
    # Templates that know no thinking pay no heed to enable_thinking; the template has all special tokens.
    prompt = tokenizer.apply_chat_template(
        message, tokenize=False, add_generation_prompt=True, enable_thinking=False
    )
    return tokenizer(prompt, add_special_tokens=False, verbose=False)["input_ids"]
