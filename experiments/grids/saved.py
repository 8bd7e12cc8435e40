"""What a sweep's runs would have spent on preparation, each alone, and what they spent with a shared cache.

    python experiments/grids/saved.py runs/SWEEP

Preparation is every stage that the training stage was made from, its seconds as stage.json has them.
"""

import json
import sys
from pathlib import Path


def stages(folder: Path, found: dict[str, float]) -> dict[str, float]:
    """The seconds of the stages that an artifact was made from, by their folders' names, without its own."""
    for source in json.loads((folder / "stage.json").read_text())["inputs"].values():
        made_from = folder.parent / source
        if (made_from / "stage.json").is_file() and source not in found:
            found[source] = json.loads((made_from / "stage.json").read_text())["seconds"]
            stages(made_from, found)
    return found


def main() -> None:
    runs = [json.loads(file.read_text()) for file in sorted(Path(sys.argv[1]).glob("*/metrics.json"))]
    trained = [Path(run["artifacts"]["training"]) for run in runs]
    preparation = [stages(folder, {}) for folder in trained]
    alone = sum(sum(of.values()) for of in preparation)
    shared: dict[str, float] = {}
    for of in preparation:
        shared |= of
    training = sum(json.loads((folder / "stage.json").read_text())["seconds"] for folder in set(trained))
    print(
        f"{len(runs)} runs: preparation {alone:.0f} s each alone, {sum(shared.values()):.0f} s with the cache, "
        f"{alone / sum(shared.values()):.1f} times less; training {training:.0f} s"
    )


if __name__ == "__main__":
    main()
