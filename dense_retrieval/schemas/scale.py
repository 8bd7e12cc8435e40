"""``conf/scale/``: how large a run is."""

from dataclasses import dataclass
from typing import Any

from omegaconf import MISSING

from dense_retrieval.schemas.setting import setting


@dataclass
class Scale:
    """What other settings are unless they are given themselves."""

    name: str = setting(MISSING, "laptop, gpu or paper; of auto what it chose")
    generator: str = setting(MISSING, "generator.path of transformers and vllm")
    passages: int | None = setting(MISSING, "generator.passages of the same; null = all", least=1)
    demo_queries: int | None = setting(
        MISSING, "querytype.total of data=wikiscience; null = all there are", least=1
    )
    passage_length: Any = setting(
        MISSING, "student.passage_length; auto: from the corpus, as student.passage_length says", least=4
    )
    minilm_passage_length: Any = setting(MISSING, "the same of student=all_minilm", least=4)
    list_size: int = setting(MISSING, "groups.list_size", least=2)
    batch_size: int = setting(MISSING, "trainer.batch_size", least=1)
    learning_rate: float = setting(MISSING, "trainer.learning_rate", least=0)
    min_warmup_steps: int = setting(MISSING, "trainer.min_warmup_steps", least=0)
    max_epochs: int = setting(MISSING, "trainer.max_epochs", least=1)
    patience: int = setting(MISSING, "trainer.patience", least=1)
    precision: str = setting(MISSING, "32-true, bf16-mixed or auto")
