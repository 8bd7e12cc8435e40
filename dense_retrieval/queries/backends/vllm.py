"""A model of the Hugging Face hub in this process, by vLLM, on a GPU."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

from dense_retrieval.hub import load_tokenizer, model_folder
from dense_retrieval.queries.backends.sampling import Sampling
from dense_retrieval.queries.backends.transformers import prompt_ids
from dense_retrieval.queries.generate import Backend, Completion, Request
from dense_retrieval.records import InputError


class VLLM(Backend):
    """Runs some hundred requests at a time; the prefix that requests share is computed once.

    Prompts are made as :class:`~dense_retrieval.queries.backends.transformers.Transformers` makes them.
    Answers depend on their batch by rounding, unless VLLM_BATCH_INVARIANT=1 is in the environment.

    Args:
        path: folder or hub name of a causal model.
        revision: branch, tag or commit on the hub.
        context: tokens of prompt and answer together; more take more memory.
        dtype: float32, bfloat16, float16, or auto: the checkpoint's.
        gpus: that share the model.
        gpu_memory: fraction of a GPU's memory that vLLM may take.
        trust_remote_code: run modelling code that comes with the weights.
        sampling: the fields of :class:`~dense_retrieval.queries.backends.sampling.Sampling`.
    """

    at_once = 256

    def __init__(
        self,
        path: str,
        *,
        revision: str | None = None,
        context: int = 4096,
        dtype: str = "auto",
        gpus: int = 1,
        gpu_memory: float = 0.9,
        trust_remote_code: bool = False,
        **sampling: Any,
    ) -> None:
        self.path = path
        self.revision = revision
        self.sampling = Sampling(**sampling)
        self.room = context - self.sampling.max_tokens
        self.trust_remote_code = trust_remote_code
        self.engine = {
            "max_model_len": context,
            "dtype": dtype,
            "tensor_parallel_size": gpus,
            "gpu_memory_utilization": gpu_memory,
            "trust_remote_code": trust_remote_code,
            "enable_prefix_caching": True,
        }

    @cached_property
    def files(self) -> Path:
        """The model's folder; downloaded if it must be."""
        return model_folder(self.path, self.revision, "generator=files or querytype=human")

    @cached_property
    def _library(self) -> Any:
        try:
            import vllm
        except ImportError as error:
            raise InputError(f"generator=vllm needs vLLM: pip install vllm ({error})") from error
        return vllm

    @cached_property
    def _model(self) -> Any:
        try:
            return self._library.LLM(model=str(self.files), **self.engine)
        except (ValueError, RuntimeError, OSError) as error:
            reason = " ".join(str(error).split())[:300]
            raise InputError(f"generator.path={self.path}: vLLM cannot run it: {reason}") from error

    @cached_property
    def _tokenizer(self) -> Any:
        return load_tokenizer(self.files, f"generator.path={self.path}", self.trust_remote_code)

    def complete(self, requests: Sequence[Request]) -> Iterator[tuple[int, Completion]]:
        """See :class:`~dense_retrieval.queries.generate.Backend`."""
        library, model = self._library, self._model
        for start in range(0, len(requests), self.at_once):
            prompts, params, rows = [], [], []
            for row, request in enumerate(requests[start : start + self.at_once], start):
                ids = prompt_ids(self._tokenizer, request.text)
                if len(ids) > self.room:  # vLLM would refuse them all
                    yield row, Completion("", "context", 0, 0)
                    continue
                prompts.append({"prompt_token_ids": ids})
                params.append(library.SamplingParams(**asdict(self.sampling), seed=request.seed))
                rows.append(row)
            outputs = model.generate(prompts, params, use_tqdm=False) if prompts else []
            for row, output in zip(rows, outputs, strict=True):  # in the order of the prompts
                yield row, _completion(output)


def _completion(output: Any) -> Completion:
    answer = output.outputs[0]
    finish = "length" if answer.finish_reason == "length" else "stop"
    prefilled = len(output.prompt_token_ids) - (output.num_cached_tokens or 0)
    return Completion(answer.text, finish, prefilled, len(answer.token_ids))
