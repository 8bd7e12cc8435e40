"""Ten random queries a type of what ``python -m dense_retrieval.generate`` wrote, as Markdown.

python experiments/generation/samples.py runs/DATE/queries.jsonl > samples.md
"""

import json
import random
import sys
from pathlib import Path

EACH = 10


def main(file: str) -> None:
    queries = [json.loads(line) for line in Path(file).read_text(encoding="utf-8").splitlines()]
    for kind in sorted({query["querytype"] for query in queries}):
        of_kind = [query for query in queries if query["querytype"] == kind]
        print(f"\n## {kind}\n\n| passage | query | dropped |\n| --- | --- | --- |")
        for query in random.Random(0).sample(of_kind, EACH):
            text = " ".join(query["text"].replace("|", "\\|").split())
            print(f"| {query['passage_id']} | {text} | {query.get('dropped', '')} |")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(*sys.argv[1:])
