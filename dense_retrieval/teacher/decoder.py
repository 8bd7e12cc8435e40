"""Cross-encoder teachers that are causal language models."""

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from dense_retrieval.teacher.seq2seq import PromptTeacher


class DecoderTeacher(PromptTeacher):
    """A decoder that answers yes or no after a prompt with the pair in it.

    Qwen3-Reranker (arXiv 2506.05176): log p(``yes``) among yes and no, after a chat prompt.
    bge-reranker-v2-gemma: the logit of ``Yes``.

    The template holds all special tokens, a first ``<bos>`` too; the tokenizer adds none.
    """

    auto_class = AutoModelForCausalLM
    architectures = ("ForCausalLM", "LMHeadModel")

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        mask = inputs["attention_mask"]
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        last = positions.argmax(1)
        # The head is two tokens wide: all positions' logits cost nothing.
        logits = self.model(**inputs, position_ids=positions, use_cache=False).logits
        return logits[torch.arange(len(last), device=last.device), last]
