"""``conf/generator/``: where synthetic queries come from."""

from dataclasses import dataclass
from typing import Any

from omegaconf import MISSING

from dense_retrieval.schemas.setting import setting


@dataclass
class Budget:
    """Of queries, where they are had in parts: each for the passages that those before show to be worth most."""

    budget: int | None = setting(
        None,
        "queries in all, of passages of the whole corpus, had in parts until a part is seen to gain less than 0.01 on "
        "the dev queries; null = of all passages given or sampled, at once",
        least=1,
    )
    parts: int = setting(4, "of the budget, of the same size", least=1)
    choose: str = setting(
        "disagreement",
        "passages of all parts but the first: those about which teacher and untuned student disagree, or random",
    )


@dataclass
class QueryFile(Budget):
    """Queries that are there already."""

    _target_: str = "dense_retrieval.queries.files.read"
    path: str | None = setting(None, 'file of lines {"passage_id": ..., "querytype": ..., "text": ...}')


@dataclass
class LanguageModel(Budget):
    """Queries written by a language model."""

    _target_: str = MISSING
    passages: int | None = setting(
        300, "sampled from the corpus, one query of each type; null = all; without a budget", least=1
    )
    passage_characters: int = setting(2048, "longer passages are cut", least=1)
    passage_first: bool = setting(True, "before the instruction: a prefix cache then serves all types")
    seed: int = setting(0, "of passages, few-shot examples and answers", least=0, most=2**32 - 1)
    temperature: float = setting(0.8, "0 = greedy", least=0)
    top_p: float = setting(0.95, "probability of the tokens that are drawn from", above=0, most=1)
    max_tokens: int = setting(50, "of an answer", least=1)


@dataclass
class LlamaCpp(LanguageModel):
    """llama.cpp, in this process."""

    _target_: str = "dense_retrieval.queries.backends.llama_cpp.LlamaCpp"
    path: str = setting(MISSING, "GGUF file")
    context: int = setting(2048, "tokens of prompt and answer", least=1)
    threads: int | None = setting(None, "null = all cores", least=1)


@dataclass
class OpenVINO(LanguageModel):
    """OpenVINO GenAI, in this process, on a CPU."""

    _target_: str = "dense_retrieval.queries.backends.openvino.OpenVINO"
    path: str = setting(MISSING, "GGUF file, or folder of a model that was exported for OpenVINO")
    context: int = setting(2048, "tokens of prompt and answer", least=1)
    threads: int | None = setting(None, "null = all cores", least=1)


@dataclass
class OpenAI(LanguageModel):
    """A server that speaks OpenAI's chat completions."""

    _target_: str = "dense_retrieval.queries.backends.openai.OpenAI"
    _convert_: str = "all"  # extra_body becomes plain dicts, which JSON can hold
    url: str = setting(MISSING, "of the API, such as http://localhost:8000/v1")
    model: str = setting(MISSING, "as the server calls it")
    api_key_variable: str = setting(
        "OPENAI_API_KEY", "environment variable that holds the key; unset = no key"
    )
    concurrency: int = setting(32, "requests in flight", least=1)
    retries: int = setting(
        5, "further tries of a request that the server could not serve for the moment", least=0
    )
    timeout_s: float = setting(120.0, "seconds without a byte from the server", above=0)
    max_total_tokens: int | None = setting(
        None, "of prompts and answers that a run may spend; null = no limit", least=1
    )
    extra_body: Any = setting(
        None,
        "fields of each request, such as {chat_template_kwargs: {enable_thinking: false}}; null leaves one out",
    )


@dataclass
class Transformers(LanguageModel):
    """A causal model or an encoder-decoder, in this process."""

    _target_: str = "dense_retrieval.queries.backends.transformers.Transformers"
    path: str = setting(MISSING, "folder or hub name")
    revision: str | None = setting(None, "branch, tag or commit on the hub")
    context: int | None = setting(
        None, "tokens of prompt and answer (encoder-decoder: prompt); null = the model's", least=1
    )
    max_tokens_a_batch: int = setting(16_384, "padded tokens, answers included", least=1)
    device: str = setting("auto", "cpu, cuda, or auto: cuda where there is one")
    dtype: str = setting("auto", "float32, bfloat16, float16, or auto: bfloat16 on cuda, else float32")
    trust_remote_code: bool = setting(False, "run modelling code that comes with the weights")


@dataclass
class VLLM(LanguageModel):
    """A causal model on GPUs, in this process."""

    _target_: str = "dense_retrieval.queries.backends.vllm.VLLM"
    path: str = setting(MISSING, "folder or hub name")
    revision: str | None = setting(None, "branch, tag or commit on the hub")
    context: int = setting(4096, "tokens of prompt and answer; more take more memory", least=1)
    dtype: str = setting("auto", "float32, bfloat16, float16, or auto: the checkpoint's")
    gpus: int = setting(1, "that share the model", least=1)
    gpu_memory: float = setting(0.9, "fraction of a GPU's memory", above=0, most=1)
    trust_remote_code: bool = setting(False, "run modelling code that comes with the weights")
