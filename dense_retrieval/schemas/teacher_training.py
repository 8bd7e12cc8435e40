"""``conf/train_teacher.yaml``, for ``python -m dense_retrieval.teacher.train``."""

from dataclasses import dataclass

from omegaconf import MISSING

from dense_retrieval.schemas.setting import setting


@dataclass
class TeacherTraining:
    """A cross-encoder from a bi-encoder's weights."""

    base: str = setting(MISSING, "folder or hub name of the bi-encoder whose weights it starts from")
    output: str = setting(MISSING, "folder for the adapter; default: a new one in runs/")
    corpus: str | None = setting(None, "folder or zip in BEIR's layout; null = Wikipedia outside wikiscience")
    pairs: list[str] = setting(["human"], "human, title, or types of queries in file")
    file: str | None = setting(None, "synthetic queries, as python -m dense_retrieval.generate writes them")
    queries: int = setting(
        4000, "for training at most, as many of each kind of pairs; up to 200 others measure it", least=1
    )
    negatives_each: int = setting(
        2, "from BM25's list and from the bi-encoder's; one more shares the topic", least=1
    )
    depth: int = setting(20, "candidates that the negatives are drawn from", least=1)
    max_length: int = setting(128, "tokens of a pair", least=4)
    rank: int = setting(48, "of the LoRA matrices", least=1)
    learning_rate: float = setting(1e-3, "the peak", least=0)
    batch_size: int = setting(16, "queries a step", least=1)
    max_tokens: int = setting(4096, "padded tokens a forward pass", least=1)
    seed: int = setting(0, "of all that is drawn at random", least=0, most=2**32 - 1)
