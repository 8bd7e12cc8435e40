"""A GGUF file in this process, by llama.cpp."""

import atexit
import os
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from dense_retrieval.queries.backends.sampling import Sampling
from dense_retrieval.queries.generate import Completion, Request
from dense_retrieval.records import InputError


class LlamaCpp:
    """Runs one request after another; the tokens that neighbours share are computed once.

    Args:
        path: the GGUF file of a chat model.
        context: tokens of prompt and answer together.
        threads: None is all cores of this process.
        sampling: the fields of :class:`~dense_retrieval.queries.backends.sampling.Sampling`.
    """

    at_once = 1

    def __init__(
        self,
        path: str,
        *,
        context: int = 2048,
        threads: int | None = None,
        **sampling: Any,
    ) -> None:
        if not Path(path).is_file():
            raise InputError(f"generator.path={path}: there is no such GGUF file")
        self.path = path
        self.files = Path(path)
        self.sampling = Sampling(**sampling)
        self.context = context
        self.threads = threads or len(os.sched_getaffinity(0))

    @cached_property
    def _library(self) -> Any:
        try:
            import llama_cpp
        except ImportError as error:
            raise InputError(
                "generator=llama_cpp needs llama-cpp-python: pip install llama-cpp-python"
            ) from error
        return llama_cpp

    @cached_property
    def _model(self) -> Any:
        library = self._library
        try:
            model = library.Llama(
                self.path,
                n_ctx=self.context,
                n_threads=self.threads,
                n_threads_batch=self.threads,
                n_gpu_layers=-1,  # all, where llama.cpp was built for a GPU
                verbose=False,
            )
        except (ValueError, RuntimeError) as error:
            raise InputError(f"generator.path={self.path}: llama.cpp cannot read it: {error}") from error
        atexit.register(model.close)  # its own clean-up comes too late in a process that ends
        return model

    @cached_property
    def _formatter(self) -> Any:
        template = self._model.metadata.get("tokenizer.chat_template")
        if template is None:
            raise InputError(f"generator.path={self.path} has no chat template; take an instruct model")
        text = lambda token: self._model.detokenize([token], special=True).decode()  # noqa: E731
        eos, bos = self._model.token_eos(), self._model.token_bos()
        return self._library.llama_chat_format.Jinja2ChatFormatter(
            template, text(eos) if eos >= 0 else "", text(bos) if bos >= 0 else ""
        )

    def complete(self, requests: Sequence[Request]) -> Iterator[tuple[int, Completion]]:
        """See :class:`~dense_retrieval.queries.generate.Backend`."""
        # Neighbours share a prefix: the requests of a passage, or with instructions first of a type.
        first_with: dict[str, int] = {}
        for position, request in enumerate(requests):
            first_with.setdefault(request.text[: request.shared], position)
        order = sorted(range(len(requests)), key=lambda i: first_with[requests[i].text[: requests[i].shared]])
        cached: list[int] = []
        for position in order:
            prefix, rest = self._tokens(requests[position])
            if len(prefix) + len(rest) + self.sampling.max_tokens > self.context:
                yield position, Completion("", "context", 0, 0)
                continue
            new = 0
            if prefix != cached:
                # By itself, so that what the cache holds does not depend on which request came first.
                self._model.reset()
                self._model.eval(prefix)
                cached, new = prefix, len(prefix)
            yield position, self._answer(len(prefix), rest, requests[position].seed, new + len(rest))

    def _tokens(self, request: Request) -> tuple[list[int], list[int]]:
        messages = [{"role": "user", "content": request.text}]
        prompt = self._formatter(messages=messages, enable_thinking=False).prompt
        cut = prompt.index(request.text[: request.shared]) + request.shared
        prefix, rest = prompt[:cut].encode(), prompt[cut:].encode()
        # The template has written what a prompt begins with.
        first, second = (self._model.tokenize(part, add_bos=False, special=True) for part in (prefix, rest))
        return first, second

    def _answer(self, start: int, rest: list[int], seed: int, prefilled: int) -> Completion:
        model = self._model
        model.n_tokens = start  # what stands behind it in the cache is forgotten
        model.set_seed(seed)
        tokens: list[int] = []
        finish, drawn = "length", self.sampling
        for token in model.generate(
            rest, reset=False, temp=drawn.temperature, top_p=drawn.top_p, top_k=0, min_p=0.0
        ):
            if self._library.llama_token_is_eog(model._model.vocab, token):
                finish = "stop"
                break
            tokens.append(token)
            if len(tokens) == drawn.max_tokens:
                break
        text = model.detokenize(tokens).decode("utf-8", "ignore")
        return Completion(text, finish, prefilled, len(tokens))
