"""What of a passage the models read."""

from dense_retrieval.records import InputError


def passage_text(title: str, text: str, choice: str, characters: int | None) -> str:
    """A passage as one line, cut at ``characters``.

    Args:
        choice: ``title_and_text`` (BEIR's convention: title, space, text) or ``text_only`` (the paper's).

    Raises:
        InputError: another choice.
    """
    if choice not in ("title_and_text", "text_only"):
        raise InputError(f"data.text={choice!r} is unknown; use title_and_text or text_only")
    whole = f"{title} {text}".strip() if choice == "title_and_text" else text
    return " ".join(whole.split("\n"))[:characters]


def without_title(passage: str, title: str) -> str:
    """What follows the title in a passage of ``title_and_text``."""
    return passage[len(title.strip()) :]
