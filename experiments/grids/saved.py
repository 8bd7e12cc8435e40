"""What the cache saved a sweep: the time of its jobs before training, the first of which found nothing there.

    python experiments/grids/saved.py runs/SWEEP

The sweep must have begun with an empty cache. Before training: corpus, queries, embeddings, candidates, teacher
scores, and the rankings of BM25, of the untuned student, and of the teacher.
"""

import re
import sys
from datetime import datetime
from pathlib import Path


def preparation(job: Path) -> float:
    """Seconds from a job's start until it has everything that training needs."""
    log = (job / "run.log").read_text()
    ready = re.search(r"^\[([\d: ,-]+)\]\[__main__\]\[INFO\] - loss:", log, re.MULTILINE)
    if ready is None:
        sys.exit(f"error: {job}/run.log does not say when training began")
    at = datetime.strptime(ready[1], "%Y-%m-%d %H:%M:%S,%f").timestamp()
    return at - (job / ".hydra" / "overrides.yaml").stat().st_mtime


def main() -> None:
    jobs = sorted(
        (path.parent for path in Path(sys.argv[1]).glob("*/metrics.json")), key=lambda j: int(j.name)
    )
    first, *others = [preparation(job) for job in jobs]
    with_cache = first + sum(others)
    print(
        f"{len(jobs)} runs: preparation {first:.0f} s for the first, {sum(others) / len(others):.1f} s for each "
        f"of the others; {len(jobs) * first:.0f} s each alone, {with_cache:.0f} s with the cache, "
        f"{len(jobs) * first / with_cache:.1f} times less"
    )


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main()
