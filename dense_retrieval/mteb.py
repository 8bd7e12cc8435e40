"""python -m dense_retrieval.mteb RUN_OR_MODEL tasks=[NAME,...]: a run's model on mteb's tasks, with mteb's own results.

The model is opened by sentence-transformers, as others would open it: its prompts are the prefixes of queries and
passages, its lengths those that it was tuned with. The results lie in the run's folder, in ``mteb/``, as mteb wants
them for its leaderboard. Needs the extra ``mteb``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from rich.table import Table

from dense_retrieval.checks import check, suggestion
from dense_retrieval.errors import in_one_line
from dense_retrieval.files import fingerprint
from dense_retrieval.folders import student
from dense_retrieval.records import InputError
from dense_retrieval.schemas.setting import setting


@dataclass
class Settings:
    """What is tested, and how."""

    tasks: list[str] = setting([], "names of mteb's tasks, such as NanoFiQA2018Retrieval")
    benchmark: str | None = setting(None, "or all tasks of one of its benchmarks, such as NanoBEIR")
    output: str | None = setting(None, "folder for the results; null = mteb in the run's folder")
    batch_size: int = setting(32, "texts a forward pass", least=1)
    device: str | None = setting(None, "cpu or cuda; null = cuda where there is one")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m dense_retrieval.mteb",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, metavar="RUN_OR_MODEL")
    parser.add_argument(
        "settings", nargs="+", metavar="SETTING=VALUE", help="tasks, benchmark, output, batch_size, device"
    )
    given = parser.parse_args()
    try:
        settings = _settings(given.settings)
        output = Path(settings.output or given.folder / "mteb")
        tasks = tasks_of(list(settings.tasks), settings.benchmark)
        found = evaluate(given.folder, tasks, output, settings.batch_size, settings.device)
    except (InputError, OmegaConfBaseException) as error:
        sys.exit(f"error: {in_one_line(error, Settings)}")
    table = Table("task", "split", "metric", "score")
    for line in found:
        table.add_row(*line[:3], f"{line[3]:.4f}")
    Console().print(table)
    Console().print(f"mteb's result files are in {output}")


def _settings(words: Sequence[str]) -> Any:
    known = [field.name for field in fields(Settings)]
    for name in (word.partition("=")[0] for word in words):
        if name not in known:
            raise InputError(f"{name}: there is no such setting{suggestion(name, known)}")
    settings = OmegaConf.merge(OmegaConf.structured(Settings), OmegaConf.from_dotlist([*words]))
    check(settings)
    return settings


def tasks_of(names: Sequence[str], benchmark: str | None) -> list[Any]:
    """mteb's tasks of some names, or of a benchmark.

    Raises:
        InputError: mteb is not installed, or knows no such name.
    """
    if find_spec("mteb") is None:
        raise InputError("this needs mteb: pip install 'dense_retrieval[mteb]'")
    if bool(names) == bool(benchmark):
        raise InputError("give either tasks=[NAME,...] or benchmark=NAME")
    import mteb

    try:
        return list(mteb.get_benchmark(benchmark).tasks if benchmark else mteb.get_tasks(tasks=names))
    except KeyError as error:
        said = str(error.args[0]).removeprefix("KeyError: ")
        raise InputError(f"mteb: {said}") from error


def evaluate(
    folder: Path, tasks: Sequence[Any], output: Path, batch_size: int = 32, device: str | None = None
) -> list[tuple[str, str, str, float]]:
    """Task, split, main metric and its value, of each task and split; what was measured before is not again.

    Args:
        folder: a run's, or a model's.
        tasks: of mteb.
        output: for mteb's result files.

    Raises:
        InputError: there is no model, or no dataset.
    """
    import mteb
    from mteb.models import SentenceTransformerEncoderWrapper
    from sentence_transformers import SentenceTransformer

    path = Path(student(folder).path)
    model = SentenceTransformerEncoderWrapper(SentenceTransformer(str(path), device=device))
    run = path.resolve().parent.name if path.name == "model" else path.resolve().name
    named = {
        "name": f"dense_retrieval/{run}",
        "revision": fingerprint(path)[:12],
    }  # the latter is of its content
    model.mteb_model_meta = model.mteb_model_meta.model_copy(update=named)
    cache = mteb.ResultCache(output)
    found = []
    for task in tasks:
        try:
            result = mteb.evaluate(model, task, cache=cache, encode_kwargs={"batch_size": batch_size})
        except (OSError, ValueError) as error:  # the hub's and datasets' errors
            reason = str(error).strip().partition("\n")[0]
            raise InputError(
                f"{task.metadata.name}: mteb could not run it ({type(error).__name__}: {reason}); it reads its "
                "datasets from the Hugging Face hub"
            ) from error
        for of_task in result.task_results:
            for split, subsets in of_task.scores.items():
                mean = sum(subset["main_score"] for subset in subsets) / len(subsets)
                found.append((of_task.task_name, split, task.metadata.main_score, float(mean)))
    return found


if __name__ == "__main__":
    main()
