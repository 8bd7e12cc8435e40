"""A GGUF file, or a folder of OpenVINO's, in this process, by OpenVINO GenAI: many requests at once on a CPU."""

import os
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from dense_retrieval.queries.backends.sampling import Sampling
from dense_retrieval.queries.generate import Backend, Completion, Request
from dense_retrieval.records import InputError

_CACHE_GB = 2  # of keys and values: 70,000 tokens of a model with 1.5 billion parameters
_BLOCK = 32  # tokens: OpenVINO's cache on a CPU is shared by whole blocks


class OpenVINO(Backend):
    """Runs some dozens of requests at a time; the prefix that requests share is computed once.

    Answers depend on their batch by rounding. An interruption waits for the requests in work.

    Args:
        path: the GGUF file of a chat model, or a folder as ``optimum-cli export openvino`` writes it.
        context: tokens of prompt and answer together.
        threads: None is all cores of this process.
        sampling: the fields of :class:`~dense_retrieval.queries.backends.sampling.Sampling`.
    """

    at_once = 64

    def __init__(
        self, path: str, *, context: int = 2048, threads: int | None = None, **sampling: Any
    ) -> None:
        if not Path(path).exists():
            raise InputError(f"generator.path={path}: there is no such GGUF file or folder")
        self.path = path
        self.files = Path(path)
        self.sampling = Sampling(**sampling)
        self.room = context - self.sampling.max_tokens
        self.threads = threads or len(os.sched_getaffinity(0))

    @cached_property
    def _library(self) -> Any:
        try:
            import openvino_genai
        except ImportError as error:
            raise InputError("generator=openvino needs OpenVINO GenAI: pip install openvino-genai") from error
        return openvino_genai

    @cached_property
    def _model(self) -> Any:
        library = self._library
        scheduler = library.SchedulerConfig()
        scheduler.cache_size = _CACHE_GB
        scheduler.enable_prefix_caching = True
        scheduler.max_num_seqs = self.at_once
        try:
            return library.ContinuousBatchingPipeline(
                self.path, scheduler, "CPU", {"INFERENCE_NUM_THREADS": self.threads}
            )
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:300]
            raise InputError(f"generator.path={self.path}: OpenVINO cannot read it: {reason}") from error

    def complete(self, requests: Sequence[Request]) -> Iterator[tuple[int, Completion]]:
        """See :class:`~dense_retrieval.queries.generate.Backend`."""
        # Neighbours share a prefix. The first of them fills the cache; together they would all compute it.
        for start in range(0, len(requests), self.at_once):
            seen: dict[str, list[int]] = {}
            first, others = [], []
            for row, request in enumerate(requests[start : start + self.at_once], start):
                ids = self._ids(request.text)
                prefix = request.text[: request.shared]
                if len(ids) > self.room:
                    yield row, Completion("", "context", 0, 0)
                elif prefix in seen:
                    others.append((row, ids, len(ids) - _shared(ids, seen[prefix])))
                else:
                    seen[prefix] = ids
                    first.append((row, ids, len(ids)))
            for part in filter(None, (first, others)):
                yield from self._answers(part, requests)

    def _answers(
        self, part: Sequence[tuple[int, list[int], int]], requests: Sequence[Request]
    ) -> Iterator[tuple[int, Completion]]:
        import numpy as np
        import openvino

        library = self._library
        prompts = [openvino.Tensor(np.array([ids], dtype=np.int64)) for _, ids, _ in part]
        drawn = [self._drawn(requests[row].seed) for row, _, _ in part]
        results = self._model.generate(prompts, drawn)
        for (row, _, prefilled), result in zip(part, results, strict=True):  # in the order of the prompts
            ids = result.m_generation_ids[0]
            cut = result.finish_reasons[0] == library.GenerationFinishReason.LENGTH
            text = self._model.get_tokenizer().decode(ids, skip_special_tokens=True)
            yield row, Completion(text, "length" if cut else "stop", prefilled, len(ids))

    def _ids(self, text: str) -> list[int]:
        tokenizer = self._model.get_tokenizer()
        messages = [{"role": "user", "content": text}]
        prompt = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, extra_context={"enable_thinking": False}
        )
        # The template has written what a prompt begins with.
        return tokenizer.encode(prompt, add_special_tokens=False).input_ids.data[0].tolist()

    def _drawn(self, seed: int) -> Any:
        drawn = self._model.get_config()  # a copy, with the model's own end of an answer
        drawn.max_new_tokens = self.sampling.max_tokens
        drawn.do_sample = self.sampling.temperature > 0
        drawn.rng_seed = seed
        if drawn.do_sample:
            drawn.temperature, drawn.top_p = self.sampling.temperature, self.sampling.top_p
            drawn.top_k = 2**31  # all
        return drawn


def _shared(ids: Sequence[int], first: Sequence[int]) -> int:
    """Tokens that another prompt has left in the cache."""
    n = next(
        (n for n, (a, b) in enumerate(zip(ids, first, strict=False)) if a != b), min(len(ids), len(first))
    )
    return n // _BLOCK * _BLOCK
