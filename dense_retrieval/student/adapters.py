"""LoRA: small matrices beside a student's linear layers, which are trained in place of all its weights."""

from pathlib import Path
from typing import Any

from peft import LoraConfig, get_peft_model
from torch import nn

from dense_retrieval.records import InputError
from dense_retrieval.student.bi_encoder import BiEncoder


def adapt(
    student: BiEncoder,
    *,
    rank: int,
    alpha: float | None = None,
    target_modules: str | list[str] = "all-linear",
) -> None:
    """Freeze a student and give it adapters (arXiv 2106.09685): of a layer W becomes W + alpha / rank B A.

    B is 0, so that nothing changes before the first step. Its state_dict holds the adapters alone from now on: so do
    checkpoints. Adapters are float32, also beside bfloat16 weights.

    Args:
        rank: rows of A, columns of B.
        alpha: None is ``2 * rank``.
        target_modules: layers with an adapter, as of :class:`peft.LoraConfig`.

    Raises:
        InputError: the student has no such layers.
    """
    scale: Any = 2 * rank if alpha is None else alpha
    student.requires_grad_(False)
    try:
        config = LoraConfig(r=rank, lora_alpha=scale, target_modules=target_modules)
        student.transformer = get_peft_model(student.transformer, config)  # type: ignore[assignment]
    except ValueError as error:
        reason = str(error).strip().partition("\n")[0]
        raise InputError(f"student.lora.target_modules={target_modules}: {reason}") from error
    student.register_state_dict_post_hook(_without_frozen)
    student.register_load_state_dict_post_hook(_frozen_are_not_missing)


def merge(student: BiEncoder, folder: Path) -> None:
    """Write the adapters into ``folder``, as peft does, and add them to the weights: an ordinary student again."""
    transformer: Any = student.transformer
    transformer.save_pretrained(folder, save_embedding_layers=False)
    student.transformer = transformer.merge_and_unload()
    student.requires_grad_(True)


def _frozen(module: nn.Module) -> set[str]:
    named = module.named_parameters(remove_duplicate=False)
    return {name for name, parameter in named if not parameter.requires_grad}


def _without_frozen(module: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
    for name in _frozen(module):
        state.pop(prefix + name, None)


def _frozen_are_not_missing(module: nn.Module, keys: Any) -> None:
    frozen = tuple(_frozen(module))
    # The names are those of the whole that the module may be a part of.
    keys.missing_keys[:] = [name for name in keys.missing_keys if frozen and not name.endswith(frozen)]
