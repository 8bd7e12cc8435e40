"""Fine-tune dense retrievers on a corpus by cross-encoder listwise distillation."""

__version__ = "0.1.0"
