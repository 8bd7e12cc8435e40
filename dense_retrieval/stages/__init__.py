"""The stages of a run, each with the settings and inputs that its artifact depends on.

Every stage is a property: the folder of its finished artifact, or what it holds, built when it is
first asked for. Each class adds to the one before: texts, labels, training, rankings.
"""

import logging
import warnings
from collections.abc import Callable, Mapping

import datasets
import transformers

from dense_retrieval.config import Config
from dense_retrieval.stages.mixture import MixtureStages
from dense_retrieval.stages.rankings import Stages

__all__ = ["MixtureStages", "Stages", "build"]

for library in ("bm25s", "httpx", "faiss.loader"):  # they narrate
    logging.getLogger(library).setLevel(logging.WARNING)
transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()
datasets.disable_progress_bars()
warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)  # peft asks for it


def build(config: Config, log: Callable[[Mapping[str, float], int], None]) -> Stages | MixtureStages:
    """The stages of one corpus, or of a mixture of several."""
    if "members" in config.data:
        return MixtureStages(config, log, list(config.data.members))
    return Stages(config, log)
