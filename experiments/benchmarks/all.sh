#!/usr/bin/env bash
# All benchmarks, a line of JSON a measure: bash all.sh SCIFACT BEFORE >> results.jsonl
# SCIFACT is a folder in BEIR's layout, BEFORE a checkout of an earlier commit. Hours on two cores.
set -euo pipefail
cd "$(dirname "$0")"
scifact=$1 before=$2
for queries in 32 256; do python training.py --scifact "$scifact" --queries $queries; done
python training.py --scifact "$scifact" --queries 809 --repeats 1 --minibatches 64
python encoding.py "$scifact" --threads 1
python scoring.py --scifact "$scifact"
python loss.py
python bm25.py
python dense.py
python startup.py --against "$before"
python demo.py --against "$before"
python grid.py querytype.total=130 student.passage_length=64
