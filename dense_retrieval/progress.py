"""Progress bars are for whoever watches."""

from rich import get_console


def unwatched() -> bool:
    """Whether output goes to a file or a pipe, where each bar would leave an empty line."""
    return not get_console().is_interactive
