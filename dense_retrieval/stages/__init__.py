"""The stages of a run, each with the settings and inputs that its artifact depends on.

Every stage is a property: the folder of its finished artifact, or what it holds, built when it is
first asked for. Each class adds to the one before: texts, labels, training, rankings.
"""

from dense_retrieval.stages.rankings import Stages

__all__ = ["Stages"]
