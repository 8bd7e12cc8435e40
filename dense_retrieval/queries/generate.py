"""Queries from a language model: what is asked, what was answered."""

import json
import logging
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Protocol

import numpy as np
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from dense_retrieval.memo import Memo, key
from dense_retrieval.progress import unwatched
from dense_retrieval.queries.prompts import Prompt

log = logging.getLogger(__name__)

_HALF = re.compile(r"[\ud800-\udfff]")  # of a character: JSON may hold one, UTF-8 cannot
_SAID_EVERY = 300  # seconds: a log has no progress bar


@dataclass(frozen=True)
class Request:
    """One message to a language model."""

    text: str
    shared: int  # characters at the start that other requests begin with too
    seed: int  # of this request's sampling, so that no answer depends on which others are asked for


@dataclass(frozen=True)
class Completion:
    """One answer."""

    text: str
    finish: str  # "stop", "length": it was cut, or "context": the prompt did not fit, no text
    prefilled: int  # prompt tokens computed, without those found in a prefix cache
    written: int  # tokens of the answer


class Backend(Protocol):
    """Something that runs a language model, loaded when it is first asked.

    Where the model's weights are files, they are its attribute ``files``: a file or a folder.
    """

    at_once: int  # requests that it works on at the same time

    def complete(self, requests: Sequence[Request]) -> Iterator[tuple[int, Completion]]:
        """Positions and completions, each as soon as it is finished, in any order.

        Raises:
            InputError: the model or server cannot be had, or gives up; what was yielded is kept.
        """


def requests(
    passages: Sequence[str], prompts: Sequence[Prompt], passage_first: bool, seed: int
) -> list[Request]:
    """One request a passage and prompt, ``(P * T)``: the T prompts of the first passage, and so on."""
    found = []
    for passage in passages:
        for prompt in prompts:
            # The draw depends on the passage and the type alone: not on which others are asked for.
            own = int.from_bytes(key(str(seed), prompt.querytype, passage)[:4], "little")
            text, shared = prompt.render(passage, passage_first, np.random.default_rng(own))
            found.append(Request(text, shared, own))
    return found


def generate(backend: Backend, memo: Memo, asked: Sequence[Request], of: str = "queries") -> list[Completion]:
    """The completions of the requests, in their order; those that the memo has are not asked again.

    A lone surrogate in an answer becomes U+FFFD. How long it will take on this machine is said after the first few.

    Args:
        of: what the answers are called.

    Raises:
        InputError: see :meth:`Backend.complete`.
    """
    keys = [key(request.text, str(request.seed)) for request in asked]
    known = memo.get(keys)
    missing = [i for i, k in enumerate(keys) if k not in known]
    log.info("%s from the language model: %d to write, %d are there", of, len(missing), len(known))
    trial = max(backend.at_once, 6)
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[speed]}"),
        transient=True,
        disable=unwatched(),
    ) as progress:
        bar = progress.add_task(f"writing {of}", total=len(missing), speed="")
        start, said, n, prefilled, written = time.perf_counter(), 0.0, 0, 0, 0
        for part in filter(None, (missing[:trial], missing[trial:])):  # a model loads when it is first asked
            for position, completion in backend.complete([asked[i] for i in part]):
                completion = replace(completion, text=_HALF.sub("\ufffd", completion.text))
                value = json.dumps(asdict(completion), ensure_ascii=False)
                if completion.finish != "context":  # another context size may do
                    memo.put([(keys[part[position]], value)])
                known[keys[part[position]]] = value
                seconds = time.perf_counter() - start
                n, prefilled, written = n + 1, prefilled + completion.prefilled, written + completion.written
                speed = (
                    f"{n / seconds * 3600:,.0f} {of} an hour, {prefilled:,} tokens read, {written:,} written"
                )
                progress.update(bar, advance=1, speed=speed)
                if seconds - said >= _SAID_EVERY:
                    said = seconds
                    log.info("%d of %d %s: %s", n, len(missing), of, speed)
            if n == trial < len(missing):
                rest = (time.perf_counter() - start) / n * (len(missing) - n) / getattr(backend, "devices", 1)
                log.info(
                    "%d %s took %.0f s; the other %d about %s",
                    *(n, of, seconds, len(missing) - n, _span(rest)),
                )
    if missing:
        log.info("%d %s in %s: %s", n, of, _span(seconds), speed)
    return [Completion(**json.loads(known[k])) for k in keys]


def _span(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
