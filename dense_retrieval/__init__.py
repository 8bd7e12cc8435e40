"""Fine-tune dense retrievers on a corpus by cross-encoder listwise distillation."""

import os

__version__ = "0.1.0"

# bm25s, when it is imported, tries JAX where that is installed, which would take three quarters of a GPU's memory.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
