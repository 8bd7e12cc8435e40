"""A student's tokenizer, which ends each text with a token where the embedding is taken from the last one."""

from pathlib import Path
from typing import Any

from dense_retrieval.hub import load_tokenizer
from dense_retrieval.records import InputError


def student_tokenizer(folder: Path, named: str, trust_remote_code: bool, append_eos: bool) -> Any:
    """The tokenizer of a student; one without a padding token pads with its end-of-text token, which is masked.

    Args:
        named: the setting that chose the folder, for error messages: ``student.path=NAME``.
        append_eos: as :func:`ended`.

    Raises:
        InputError: there is none, it cannot be loaded, or it has no end-of-text token.
    """
    tokenizer = load_tokenizer(folder, named, trust_remote_code)
    if tokenizer.pad_token_id is None and tokenizer.eos_token_id is not None:
        tokenizer.pad_token = tokenizer.eos_token
    return ended(tokenizer, named) if append_eos else tokenizer


def ends_texts(append_eos: bool | None, pooling: str) -> bool:
    """``student.append_eos``, where None is: if the last token is what an embedding is taken from."""
    return pooling == "lasttoken" if append_eos is None else append_eos


def ended(tokenizer: Any, named: str) -> Any:
    """The tokenizer, which from now on ends each text, also one that is cut, with its end-of-text token, unless it
    ends them with a special token already. It is saved with the tokenizer.

    Raises:
        InputError: it has no such token, or cannot be told to do so.
    """
    plain, whole = (tokenizer("a", add_special_tokens=special)["input_ids"] for special in (False, True))
    if len(whole) > len(plain) and whole[-1] in tokenizer.all_special_ids and whole[-1:] != plain[-1:]:
        return tokenizer
    eos, backend = tokenizer.eos_token, getattr(tokenizer, "backend_tokenizer", None)
    if eos is None or backend is None:
        raise InputError(
            f"{named}: its tokenizer cannot end texts with a token; set student.append_eos=false"
        )
    if {
        "add_bos_token",
        "add_eos_token",
    } & tokenizer.init_kwargs.keys():  # by which it is made anew when loaded
        tokenizer.add_eos_token = True
        return tokenizer
    from tokenizers.processors import TemplateProcessing

    before = tokenizer.convert_ids_to_tokens(whole[: len(whole) - len(plain)])
    ids = [(token, tokenizer.convert_tokens_to_ids(token)) for token in dict.fromkeys([*before, eos])]
    backend.post_processor = TemplateProcessing(
        single=[*before, "$A", eos],
        pair=[*before, "$A", eos, *(f"{token}:1" for token in before), "$B:1", f"{eos}:1"],
        special_tokens=ids,
    )
    return tokenizer
