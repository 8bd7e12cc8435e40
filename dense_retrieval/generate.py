"""python -m dense_retrieval.generate: the synthetic queries alone, to be looked at or shared.

Takes the overrides of ``dense_retrieval.run``. A later run with the same ones finds the queries in the
cache; another machine reads the file that this writes with ``generator=files generator.path=FILE``.
"""

import json
import logging
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from rich.console import Console
from rich.markup import escape

from dense_retrieval.config import CONF, Config, one_line_errors
from dense_retrieval.evaluation import report
from dense_retrieval.records import read_table
from dense_retrieval.stages import Stages, build
from dense_retrieval.stages.queries import counts_of

log = logging.getLogger(__name__)

SAMPLES = 3  # a type, shown


@hydra.main(version_base=None, config_path=CONF, config_name="config")
@one_line_errors
def main(config: Config) -> None:
    """Write ``queries.jsonl``: every query as the language model wrote it, and why some are dropped."""
    folder = Path(HydraConfig.get().runtime.output_dir)
    for title, stages in build(config, lambda *_: None).members.items():
        (folder / title).mkdir(exist_ok=True)
        _write(stages, folder / title)
    log.info("everything is in %s", folder)


def _write(stages: Stages, folder: Path) -> None:
    ids = stages.corpus.passages["id"]
    with (folder / "queries.jsonl").open("w", encoding="utf-8") as lines:
        for of in ["train"] + ["heldout"] * bool(stages.config.evaluation.heldout_types):
            cleaned = stages.cleaned_folder(of)
            dropped = read_table(cleaned / "dropped.parquet")
            reasons = dict(zip(dropped["id"], dropped["reason"], strict=True))
            for query in read_table(stages.raw_folder(of) / "raw.parquet"):
                values = {"passage_id": ids[query["source"]]}
                values |= {key: query[key] for key in ("querytype", "text", "finish")}
                if query["id"] in reasons:
                    values["dropped"] = reasons[query["id"]]
                lines.write(json.dumps(values, ensure_ascii=False) + "\n")
    log.info("queries:\n%s", report.yields(counts_of(stages.cleaned_folder())))
    kept = read_table(stages.cleaned_folder() / "queries.parquet")
    for name in sorted(set(kept["querytype"])):
        texts = [text for text, of in zip(kept["text"], kept["querytype"], strict=True) if of == name]
        Console().print(f"[bold]{name}[/bold]", *map(escape, texts[:SAMPLES]), sep="\n  ")


if __name__ == "__main__":
    main()
