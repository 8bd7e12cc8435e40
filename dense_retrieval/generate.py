"""python -m dense_retrieval.generate: the synthetic queries alone, to be looked at or shared.

Takes the overrides of ``dense_retrieval.run``. A later run with the same ones finds the queries in the
cache; another machine reads the file that this writes with ``generator=files generator.path=FILE``.
"""

import json
import logging
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from rich.console import Console
from rich.markup import escape

from dense_retrieval import needed, plan
from dense_retrieval.budget import found_out, known, prepared
from dense_retrieval.config import Config
from dense_retrieval.errors import command
from dense_retrieval.evaluation import report
from dense_retrieval.follow import flush_denormal
from dense_retrieval.hardware import hardware
from dense_retrieval.nodes import corpora
from dense_retrieval.prepare import Part, written
from dense_retrieval.records import InputError, read_table
from dense_retrieval.store import Store
from dense_retrieval.synthetic import cleaned

log = logging.getLogger(__name__)

SAMPLES = 3  # a type, shown
_READ = ("scale", "data", "querytype", "generator", "executor", "evaluation", "plan", "device", "cache_dir")


@command("config", Config, _READ)
def main(config: Config) -> None:
    """Write ``queries.jsonl``: every query as the language model wrote it, and why some are dropped."""
    folder = Path(HydraConfig.get().runtime.output_dir)
    store, configs = Store(Path(config.cache_dir)), corpora(config)
    needed.require([*configs.values()], needed.corpus, needed.queries, needed.executor)
    if config.plan:
        parts = [prepared(of, known(store)) for of in configs.values()]
        steps = [part.filtered[-1] for part in parts if part.filtered]
        Console().print(plan.table(plan.lines(store, steps), "plan"))
        return plan.remove(folder)
    if config.generator.get("budget") is not None:  # which students are trained to spend
        flush_denormal()
        hardware(config).executor.prepare(config.device)
    for title, of in configs.items():
        (folder / title).mkdir(exist_ok=True)
        _write(store, prepared(of, found_out(store)), folder / title)
    log.info("everything is in %s", folder)


def _write(store: Store, part: Part, folder: Path) -> None:
    if part.raw is None:
        raise InputError("querytype=human has no queries to write; choose others with querytype=")
    found = [(part.raw, part.filtered)]
    if types := list(part.c.evaluation.heldout_types):
        raw = written(part.c, part.corpus, part.heldout, part.duplicates, "heldout")
        found.append((raw, [cleaned(part.corpus, part.heldout, raw, types)]))
    with (folder / "queries.jsonl").open("w", encoding="utf-8") as lines:
        for raw, filtered in found:
            store.build(part.corpus, raw, *filtered)
            ids = store.load(part.corpus).passages["id"]
            reasons: dict[str, str] = {}
            for step in filtered:
                dropped = read_table(store.open(step).path / "dropped.arrow")
                reasons |= zip(dropped["id"], dropped["reason"], strict=True)
            for query in store.load(raw):
                values = {"passage_id": ids[query["source"]]}
                values |= {key: query[key] for key in ("querytype", "text", "finish")}
                if query["id"] in reasons:
                    values["dropped"] = reasons[query["id"]]
                lines.write(json.dumps(values, ensure_ascii=False) + "\n")
    left = part.filtered[-1]
    log.info("queries:\n%s", report.yields(store.counts(left)["by type"]))
    kept = store.load(left)
    for name in sorted(set(kept["querytype"])):
        texts = [text for text, of in zip(kept["text"], kept["querytype"], strict=True) if of == name]
        Console().print(f"[bold]{name}[/bold]", *map(escape, texts[:SAMPLES]), sep="\n  ")


if __name__ == "__main__":
    main()
