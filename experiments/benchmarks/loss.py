"""InfoNCE and the combined loss beside InfoNCE with all logits at once, and beside a loop over queries.

    python experiments/benchmarks/loss.py --queries 4096 --candidates 20 --unique 44568

Forward and backward, float32, at the paper's batch. Prints a JSON object a measure; ratios are the peer's over ours:
of seconds, the median of the repeats and their range.
"""

import argparse
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from dense_retrieval.losses.infonce import InfoNCE
from dense_retrieval.losses.listwise import Listwise
from dense_retrieval.losses.loss import Loss
from dense_retrieval.losses.similarities import Similarities

TAU = 0.01
Result = tuple[float, Tensor, Tensor]


def batch(given: argparse.Namespace) -> dict[str, Tensor]:
    """Queries near their candidates, some of which are masked, and every unique passage among the candidates."""
    torch.manual_seed(0)
    b, k, u = given.queries, given.candidates, given.unique
    slots = torch.cat([torch.arange(u), torch.randint(u, (b * k - u,))])[torch.randperm(b * k)].view(b, k)
    queries = normalize(torch.randn(b, given.dimensions), dim=1)
    near = torch.empty(u, dtype=torch.long).index_copy_(0, slots.ravel(), torch.arange(b * k) // k)
    passages = normalize(0.6 * queries[near] + normalize(torch.randn(u, given.dimensions), dim=1), dim=1)
    return {
        "queries": queries,
        "passages": passages,
        "slots": slots,
        "teacher": torch.rand(b, k).sort(1, descending=True).values,
        "positives": slots[:, 0],
        "multiplicity": torch.bincount(slots.ravel(), minlength=u),
        "masked": torch.stack([torch.arange(b).repeat_interleave(3), slots[:, :3].ravel()], 1),
    }


def at_once(of: Similarities) -> Tensor:
    """The former InfoNCE."""
    logits = of.in_batch / TAU
    negatives = logits + of.multiplicity.to(logits.dtype).log()
    negatives = negatives.index_put((of.masked[:, 0], of.masked[:, 1]), logits.new_tensor(-torch.inf))
    positive = logits.gather(1, of.positives[:, None])
    return cross_entropy(torch.cat([positive, negatives], 1), torch.zeros_like(of.positives))


def combined_at_once(of: Similarities) -> Tensor:
    """The combined loss as it was, the candidates gathered."""
    s = torch.einsum("bd,bkd->bk", of.queries, of.passages[of.slots]).double() / 0.05
    log_p, log_q = (of.teacher.double() / 0.3).log_softmax(1), s.log_softmax(1)
    return (log_p.exp() * (log_p - log_q)).sum(1).mean() + 0.1 * at_once(of)


def combined(of: Similarities) -> Tensor:
    return Loss({"listwise": Listwise(1.0, 0.05, 0.3), "infonce": InfoNCE(0.1, TAU)})(of)["loss"]


def gradients(loss: Callable[[Similarities], Tensor], parts: dict[str, Tensor]) -> Result:
    queries, passages = (parts[name].clone().requires_grad_() for name in ("queries", "passages"))
    value = loss(Similarities(**parts | {"queries": queries, "passages": passages}))
    value.backward()
    assert queries.grad is not None and passages.grad is not None
    return value.item(), queries.grad, passages.grad


def loop(parts: dict[str, Tensor]) -> Result:
    """InfoNCE query by query."""
    queries, passages = (parts[name].clone().requires_grad_() for name in ("queries", "passages"))
    total, n = 0.0, len(queries)
    log_multiplicity = parts["multiplicity"].float().log()
    masked = parts["masked"][parts["masked"][:, 0].argsort()]
    of_query = masked[:, 1].split(torch.bincount(masked[:, 0], minlength=n).tolist())
    for row in range(n):
        logits = passages @ queries[row] / TAU
        negatives = (logits + log_multiplicity).index_fill(0, of_query[row], -torch.inf)
        positive = logits[parts["positives"][row]]
        loss = torch.cat([positive[None], negatives]).logsumexp(0) - positive
        (loss / n).backward()
        total += loss.item() / n
    return total, queries.grad, passages.grad


Measured = Callable[[dict[str, Tensor]], Result]
PAIRS: dict[str, tuple[Measured, Measured]] = {
    "infonce": (lambda parts: gradients(InfoNCE(1.0, TAU), parts), lambda parts: gradients(at_once, parts)),
    "combined": (lambda parts: gradients(combined, parts), lambda parts: gradients(combined_at_once, parts)),
    "infonce beside a loop": (lambda parts: gradients(InfoNCE(1.0, TAU), parts), loop),
}


def memory() -> float:
    """MB at most of this process so far. Not ru_maxrss, which begins with that of the process that started it."""
    return int(re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[0]) / 1024


def peak(name: str, side: int, given: argparse.Namespace) -> int:
    """MB that a process that does this alone needs beyond the batch."""
    sizes = [word for of in SIZES for word in (f"--{of}", str(getattr(given, of)))]
    command = [sys.executable, __file__, "--alone", name, str(side), *sizes]
    return round(float(subprocess.run(command, check=True, capture_output=True, text=True).stdout))


def first(parts: dict[str, Tensor], n: int) -> dict[str, Tensor]:
    """The batch with its first n queries only."""
    of_queries = {name: parts[name][:n] for name in ("queries", "slots", "teacher", "positives")}
    return parts | of_queries | {"masked": parts["masked"][parts["masked"][:, 0] < n]}


def difference(one: Result, other: Result) -> dict[str, float]:
    """The greatest of the loss, relative, and of the gradients, relative to the greatest gradient."""
    found = {"loss": abs(one[0] - other[0]) / abs(other[0])}
    for name, a, b in zip(("queries", "passages"), one[1:], other[1:], strict=True):
        found[name] = ((a - b).abs().max() / b.abs().max()).item()
    return {name: float(f"{value:.2g}") for name, value in found.items()}


def compare(name: str, given: argparse.Namespace, parts: dict[str, Tensor]) -> None:
    few = first(parts, given.loop) if PAIRS[name][1] is loop else parts
    taken: list[list[list[float]]] = []
    for _ in range(given.repeats):
        results, one = [], []
        for do, of in zip(PAIRS[name], (parts, few), strict=True):
            wall, cpu = time.perf_counter(), time.process_time()
            results.append(do(of))
            # A loop's time is proportional to its queries.
            each = len(parts["queries"]) / len(of["queries"])
            one.append([(time.perf_counter() - wall) * each, (time.process_time() - cpu) * each])
        taken.append(one)
    if few is not parts:
        results[0] = PAIRS[name][0](few)
    most = {"peak_mb_ours": peak(name, 0, given), "peak_mb_peer": peak(name, 1, given)}
    for clock, (ours, peer) in zip(("seconds", "CPU seconds"), np.array(taken).T, strict=True):
        values = {
            "ours": np.median(ours),
            "peer": np.median(peer),
            "ratio": np.median(peer / ours),
            "ratio_low": (peer / ours).min(),
            "ratio_high": (peer / ours).max(),
        }
        found: dict[str, Any] = {"measure": f"{clock} of {name}"}
        found |= {of: float(f"{value:.4g}") for of, value in values.items()} | most
        print(json.dumps(found | {"repeats": given.repeats, "agree": difference(*results)}), flush=True)


SIZES = {"queries": 4096, "candidates": 20, "unique": 44_568, "dimensions": 384, "loop": 32}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    for name, usual in SIZES.items():
        parser.add_argument(
            f"--{name}", type=int, default=usual, help="queries of the loop" * (name == "loop")
        )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--alone", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    parts = batch(given)
    if not given.alone:
        for name in PAIRS:
            compare(name, given, parts)
        return
    name, side = given.alone
    do = PAIRS[name][int(side)]
    before = memory()
    do(first(parts, given.loop) if do is loop else parts)
    print(memory() - before)


if __name__ == "__main__":
    main()
