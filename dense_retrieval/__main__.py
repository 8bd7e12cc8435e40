"""dense-retrieval COMMAND: every command of the package by one name; ``dense-retrieval --help`` lists them."""

import ast
import runpy
import sys
from difflib import get_close_matches
from pathlib import Path

import dense_retrieval

# In the order in which a newcomer meets them; each is also started by python -m dense_retrieval.NAME.
COMMANDS = {
    name: name
    for name in ("run", "evaluate", "compare", "search", "generate", "export", "index", "mteb", "cache")
} | {"train-teacher": "teacher.train"}
_HERE = Path(__file__).parent


def main() -> None:
    """Start the command that is named first, in this process, as ``python -m`` would."""
    command, *rest = sys.argv[1:] or ["--help"]
    if command in ("-h", "--help", "help"):
        print(overview())
    elif command == "--version":
        print(dense_retrieval.__version__)
    elif command not in COMMANDS or not _file(command).is_file():
        close = get_close_matches(command, COMMANDS, n=1)
        remedy = f"did you mean {close[0]}?" if close else f"choose one of {', '.join(COMMANDS)}"
        sys.exit(f"error: {command}: there is no such command; {remedy}")
    else:
        sys.argv[1:] = rest
        runpy.run_module(f"dense_retrieval.{COMMANDS[command]}", run_name="__main__", alter_sys=True)


def overview() -> str:
    """What each command does, by the first line of its module, which is read and not imported."""
    lines = ["Fine-tune a dense retriever on a corpus, and see whether it helped.", ""]
    lines += ["Usage: dense-retrieval COMMAND ...", ""]
    for command in COMMANDS:
        if _file(command).is_file():
            said = ast.get_docstring(ast.parse(_file(command).read_text(encoding="utf-8"))) or ""
            what = said.partition("\n")[0].partition(": ")[2]
            lines.append(f"  {command:<15}{what}")
    lines += ["", "dense-retrieval COMMAND --help says what a command takes. To begin:"]
    lines += [
        "  dense-retrieval run                                 a small corpus that comes with the package"
    ]
    lines += ["  dense-retrieval run data=beir data.path=FOLDER      your own, in BEIR's layout"]
    return "\n".join(lines)


def _file(command: str) -> Path:
    return _HERE.joinpath(*COMMANDS[command].split(".")).with_suffix(".py")


if __name__ == "__main__":
    main()
