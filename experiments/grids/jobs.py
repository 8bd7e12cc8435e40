"""Each job's value of its main metric, and where the dev losses chose the untuned student.

python experiments/grids/jobs.py runs/SWEEP
"""

import json
import sys
from pathlib import Path

import pandas
import yaml


def main() -> None:
    rows = []
    for file in Path(sys.argv[1]).glob("*/metrics.json"):
        facts = json.loads(file.read_text())
        seed = yaml.safe_load((file.parent / "config.yaml").read_text())["seed"]
        value = next(iter(facts["systems"]["tuned student"]["means"].values()))
        tuned = facts["training"]["best_epoch"] > 0
        rows.append([facts["choices"]["querytype"], seed, facts["choices"]["loss"], value, tuned])
    table = pandas.DataFrame(rows, columns=["querytype", "seed", "loss", "value", "tuned"])
    values, tuned = (
        table.pivot(index=["querytype", "seed"], columns="loss", values=v) for v in table.columns[3:]
    )
    shown = values.round(3).astype(str) + tuned.map(lambda kept: "" if kept else " untuned")
    print(shown.to_string(), "\n")
    for loss in ("listwise", "combined"):
        difference = values[loss] - values["infonce"]
        both = difference[tuned[loss] & tuned["infonce"]]
        for name, of in (("all", difference), ("both tuned", both)):
            print(
                f"{loss} - infonce, {name}: {of.mean():+.4f} +-{of.std():.4f}, {(of > 0).sum()} of {len(of)} above 0"
            )


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main()
