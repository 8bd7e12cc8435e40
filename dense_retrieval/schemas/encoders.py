"""``conf/student/`` and ``conf/teacher/``: the models that compare queries with passages."""

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from dense_retrieval.schemas.setting import setting


@dataclass
class Lora:
    """Adapters of low rank beside linear layers, which are all that is trained (arXiv 2106.09685)."""

    rank: int | None = setting(None, "of the adapters; null = all weights are trained", least=1)
    alpha: float | None = setting(None, "adapters count alpha / rank times; null = 2 rank", above=0)
    target_modules: Any = setting(
        "all-linear", "layers with an adapter: all-linear, a list of endings of their names, or a pattern"
    )


@dataclass
class Student:
    """The bi-encoder that is tuned."""

    _target_: str = "dense_retrieval.student.bi_encoder.BiEncoder.load"
    path: str = setting(MISSING, "folder or hub name")
    revision: str | None = setting(None, "branch, tag or commit on the hub")
    pooling: str = setting(MISSING, "cls, mean, or of decoders lasttoken")
    query_prefix: str = setting("", "before each query; auto = the prompt that the model's folder has")
    passage_prefix: str = setting("", "before each passage; auto likewise")
    append_eos: bool | None = setting(
        None,
        "end each text with the end-of-text token, if the tokenizer does not; null = with lasttoken pooling",
    )
    query_length: int = setting(64, "tokens", least=4)
    passage_length: Any = setting(
        512,
        "tokens; auto: so many that 19 of 20 passages are read whole, at most what the student can read",
        least=4,
    )
    dropout: float = setting(0.0, "probability", least=0, below=1)
    tune: str = setting(
        "both",
        "what learns: both, or queries alone; then the passages keep the untuned student's embeddings, and an index "
        "of these stays as it is",
    )
    matryoshka: list[int] = setting(
        [],
        "dimensions, such as [384,128,64], to which embeddings may be cut: the loss is the sum over them; "
        "[] = the whole embeddings only",
        least=1,
    )
    dtype: str = setting("float32", "of the weights: float32 or bfloat16, the latter best with lora")
    lora: Lora = field(
        default_factory=Lora, metadata={"meaning": "adapters that are trained instead of all weights"}
    )
    gradient_checkpointing: bool = setting(
        False, "compute a layer's activations again for the backward pass instead of keeping them"
    )
    attention: str | None = setting(
        None, "transformers' name of an implementation, such as flash_attention_2; null = its choice"
    )
    trust_remote_code: bool = setting(False, "run modelling code that comes with the weights")
    engine: str = setting(
        "torch",
        "of embeddings on a CPU: torch, openvino, openvino_bf16, openvino_int8, onnx, onnx_int8; auto = measured",
    )
    float16_from: int | None = setting(
        1_000_000, "texts from which on their embeddings are kept in float16; null = never", least=0
    )


@dataclass
class Teacher:
    """A frozen cross-encoder."""

    _target_: str = MISSING
    path: str = setting(MISSING, "folder or hub name")
    revision: str | None = setting(None, "branch, tag or commit on the hub")
    max_length: int = setting(512, "tokens of a pair; the passage is what is cut", least=4)


@dataclass
class SequenceClassifierTeacher(Teacher):
    """The score is the one output of a sequence classifier."""

    _target_: str = "dense_retrieval.teacher.sequence_classifier.SequenceClassifier.load"
    adapter: str | None = setting(None, "folder of a LoRA adapter on it")
    trust_remote_code: bool = setting(False, "run modelling code that comes with the weights")


@dataclass
class Seq2SeqTeacher(Teacher):
    """The score is that of the first token an encoder-decoder answers: RankT5, monoT5."""

    _target_: str = "dense_retrieval.teacher.seq2seq.Seq2SeqTeacher.load"
    template: str = setting(MISSING, "with {query} and after it {passage}")
    token: str = setting(MISSING, "whose logit is the score")
    other_token: str | None = setting(None, "if given, the score is log p(token) among the two")
    trust_remote_code: bool = setting(False, "run modelling code that comes with the weights")


@dataclass
class DecoderTeacher(Teacher):
    """The score is that of the token after a decoder's prompt: Qwen3-Reranker, bge-reranker-v2-gemma."""

    _target_: str = "dense_retrieval.teacher.decoder.DecoderTeacher.load"
    max_length: int = setting(1024, "tokens of a pair; the passage is what is cut", least=4)
    template: str = setting(MISSING, "with {query} and after it {passage}, and all special tokens")
    token: str = setting(MISSING, "whose logit is the score")
    other_token: str | None = setting(None, "if given, the score is log p(token) among the two")
    trust_remote_code: bool = setting(False, "run modelling code that comes with the weights")


@dataclass
class LightweightTeacher(Teacher):
    """bge-reranker-v2.5-gemma2-lightweight."""

    _target_: str = "dense_retrieval.teacher.lightweight.LightweightTeacher.load"
    max_length: int = setting(1024, "tokens of a pair; the passage is what is cut", least=4)
    template: str = setting(MISSING, "with {query}, a line break, and {passage}, and all special tokens")
    cutoff_layer: int = setting(28, "layers computed", least=1)
    compress_layers: list[int] = setting([24, 40], "before which passages shrink", least=0)
    compress_ratio: int = setting(2, "passage tokens that become one; 1 = none", least=1)


@dataclass
class EnsembleTeacher:
    """The weighted mean of several teachers' normalised scores."""

    members: list[str] = setting(
        MISSING, 'such as "teacher=rankt5_base"; also bm25, and student: the untuned one'
    )
    weights: list[float] | None = setting(None, "one a member; null = all alike", above=0)
