"""A server that speaks OpenAI's chat completions: vLLM's, llama.cpp's, Ollama's, OpenAI's own."""

import logging
import os
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from queue import Empty, SimpleQueue
from threading import Event, Lock, Thread
from typing import Any
from urllib.parse import urlsplit

from requests import PreparedRequest, RequestException, Response, Session, Timeout

from dense_retrieval.queries.backends.interrupt import interruptible
from dense_retrieval.queries.backends.sampling import Sampling
from dense_retrieval.queries.generate import Backend, Completion, Request
from dense_retrieval.records import InputError

log = logging.getLogger(__name__)

_TOO_LONG = re.compile(r"context[ _-]?(?:length|size|window)|(?:prompt|input) is too long", re.IGNORECASE)
_CHARACTERS = 3  # a token has at least, in most languages: estimates are rather too high
_LONGEST_WAIT_S = 600.0
_CONNECT_S = 10.0


class _Passing(Exception):
    """A failure that another try may not meet; ``wait_s`` is how long the server asks to wait."""

    def __init__(self, said: str, wait_s: float = 0.0) -> None:
        super().__init__(said)
        self.wait_s = wait_s


class OpenAI(Backend):
    """Keeps many requests in flight, and tries again where a server fails for a while.

    Ollama cuts prompts that are longer than its ``num_ctx`` without a word: set that high enough there.

    Args:
        url: of the API, such as ``http://localhost:8000/v1``.
        model: as the server calls it.
        api_key_variable: the environment variable that holds the key; where it is unset, none is sent.
        concurrency: requests in flight.
        retries: further tries of a request that met 408, 425, 429, 5xx, a dropped connection, no answer
            within ``timeout_s``, or one that is no chat completion.
        timeout_s: seconds without a byte from the server.
        max_total_tokens: of prompts and answers together that this object may spend, as the server counts
            them, or estimated where it does not; None is no limit.
        extra_body: further fields of each request, such as ``{"chat_template_kwargs": {"enable_thinking":
            False}}``; None as a value leaves a field out that is sent otherwise.
        backoff_s: seconds before the second try, doubled with each further one.
        sampling: the fields of :class:`~dense_retrieval.queries.backends.sampling.Sampling`.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        api_key_variable: str = "OPENAI_API_KEY",
        concurrency: int = 32,
        retries: int = 5,
        timeout_s: float = 120.0,
        max_total_tokens: int | None = None,
        extra_body: Mapping[str, Any] | None = None,
        backoff_s: float = 1.0,
        **sampling: Any,
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or "@" in parts.netloc:
            # not shown: it may hold a password
            raise InputError(
                "generator.url must look like http://localhost:8000/v1; a key belongs into the environment "
                f"variable {api_key_variable}"
            )
        if concurrency < 1 or retries < 0 or timeout_s <= 0:
            raise InputError("generator.concurrency must be above 0, so timeout_s; retries not below 0")
        self.url = url.rstrip("/")
        self.api_key_variable = api_key_variable
        self.sampling = Sampling(**sampling)
        self.body = {"model": model} | asdict(self.sampling)
        self.extra_body = dict(extra_body or {})
        self.at_once = concurrency
        self.retries = retries
        self.timeout_s = timeout_s
        self.backoff_s = backoff_s
        self.finished = 0
        self.max_total_tokens = max_total_tokens
        self._spent = 0  # tokens, those that the requests in flight may spend included
        self._lock = Lock()
        self._warned: set[str] = set()

    def complete(self, requests: Sequence[Request]) -> Iterator[tuple[int, Completion]]:
        """See :class:`~dense_retrieval.queries.generate.Backend`.

        Ctrl-C lets the requests in flight finish, and then raises InputError; the second one raises
        KeyboardInterrupt at once.
        """
        todo: SimpleQueue[tuple[int, Request]] = SimpleQueue()
        for asked in enumerate(requests):
            todo.put(asked)
        # answers, what a thread died of, a line to log, and None from each thread that ends
        done: SimpleQueue[tuple[int, Completion] | BaseException | str | None] = SimpleQueue()
        stop = Event()
        running = min(self.at_once, len(requests))
        failure: BaseException | None = None
        with interruptible(stop, done.put):
            for _ in range(running):
                # daemons, so that a second Ctrl-C does not wait for a server that is silent
                Thread(target=self._work, args=(todo, done, stop), daemon=True).start()
            while running:
                item = done.get()
                if item is None:
                    running -= 1
                elif isinstance(item, str):
                    log.warning("%s", item)
                elif isinstance(item, BaseException):
                    failure = failure or item
                else:
                    self.finished += 1
                    yield item
            if failure is None and stop.is_set():
                failure = InputError(f"generator.url={self.url}: stopped by Ctrl-C")
        if isinstance(failure, InputError):
            kept = f"{self.finished} queries are finished; running again asks only for the others"
            raise InputError(f"{failure}; {kept}") from failure
        if failure:
            raise failure

    def _work(self, todo: SimpleQueue, done: SimpleQueue, stop: Event) -> None:
        try:
            with Session() as session:
                session.auth = self._authorise
                while not stop.is_set():
                    position, request = todo.get_nowait()
                    completion = self._ask(session, request, stop)
                    if completion:
                        done.put((position, completion))
        except Empty:
            pass
        except BaseException as error:  # goes on in the caller's thread
            stop.set()
            done.put(error)
        finally:
            done.put(None)

    def _ask(self, session: Session, request: Request, stop: Event) -> Completion | None:
        """The answer; None where it had to be asked for again but ``stop`` was set."""
        for attempt in range(self.retries + 1):
            try:
                return self._try(session, request)
            except _Passing as failure:
                pause = failure.wait_s + self.backoff_s * 2**attempt * random.uniform(0.5, 1)
                said = str(failure)
                if attempt == self.retries or failure.wait_s > _LONGEST_WAIT_S:
                    break
            if said not in self._warned:
                self._warned.add(said)
                log.warning("%s: %s; trying again, first in %.1f s", self.url, said, pause)
            if stop.wait(pause):
                return None
        raise InputError(
            f"generator.url={self.url}: gave up after {attempt + 1} tries: {said}; see whether the server runs "
            "and has room (generator.concurrency, generator.timeout_s)"
        )

    def _try(self, session: Session, request: Request) -> Completion:
        reserved = len(request.text) // _CHARACTERS + self.sampling.max_tokens
        self._reserve(reserved)
        spent = 0
        messages = [{"role": "user", "content": request.text}]
        fields = self.body | {"messages": messages, "seed": request.seed} | self.extra_body
        body: dict[str, Any] = {key: value for key, value in fields.items() if value is not None}
        try:
            response = session.post(
                f"{self.url}/chat/completions",
                json=body,
                timeout=(min(_CONNECT_S, self.timeout_s), self.timeout_s),
                allow_redirects=False,
            )
            if response.status_code != 200:
                return self._refused(response)
            spent = reserved  # whatever it is, the server wrote something
            completion, spent = self._read(response, request)
            return completion
        except Timeout as error:
            spent = reserved  # it may be writing still
            raise _Passing(f"no answer within generator.timeout_s={self.timeout_s:g}") from error
        except RequestException as error:
            raise _Passing(_reason(error)) from error
        finally:
            with self._lock:
                self._spent += spent - reserved

    def _reserve(self, tokens: int) -> None:
        """Raises InputError where so many more might pass the cap."""
        with self._lock:
            if self.max_total_tokens is not None and self._spent + tokens > self.max_total_tokens:
                raise InputError(
                    f"generator.max_total_tokens={self.max_total_tokens}: {self._spent} are spent or in flight, "
                    "and the next request might pass it; raise it, null is no limit"
                )
            self._spent += tokens

    def _read(self, response: Response, request: Request) -> tuple[Completion, int]:
        """A completion, and the tokens that the server counts for it."""
        try:
            values = response.json()
            choice = values["choices"][0]
            text = choice["message"]["content"] or ""
            if not isinstance(text, str):
                raise TypeError("content is no text")
            finish = "length" if choice.get("finish_reason") == "length" else "stop"
            usage = values.get("usage") or {}
            prompt = int(usage.get("prompt_tokens") or len(request.text) // _CHARACTERS + 1)
            written = int(usage.get("completion_tokens") or len(text) // _CHARACTERS + 1)
            cached = int((usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0)
            return Completion(text, finish, prompt - cached, written), prompt + written
        except (ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
            raise _Passing(f"an answer that is no chat completion: {self._said(response)}") from error

    def _refused(self, response: Response) -> Completion:
        """For a prompt that is too long a completion that says so; else an exception."""
        status, said = response.status_code, self._said(response)
        if status in (408, 425, 429) or status >= 500:
            wait = response.headers.get("Retry-After", "")
            raise _Passing(f"status {status}: {said}", int(wait) if wait.isdecimal() else 0)
        if status in (400, 413, 422) and _TOO_LONG.search(response.text):
            return Completion("", "context", 0, 0)
        remedy = {
            401: f"put the server's key into the environment variable {self.api_key_variable}",
            403: f"the key in {self.api_key_variable} may not use this model",
            404: "see that generator.url ends like http://localhost:8000/v1, and that generator.model is the "
            "name the server knows",
        }.get(status, "generator.extra_body changes the fields of a request, null leaves one out")
        raise InputError(f"generator.url={self.url}: status {status}: {said}; {remedy}")

    def _said(self, response: Response) -> str:
        """One line of the server's, printable, without the key, which some repeat."""
        try:
            values = response.json()
            error = values.get("error", values)
            text = error["message"] if isinstance(error, dict) else error
        except (ValueError, LookupError, AttributeError):
            text = response.text
        key = self._key()
        line = "".join(c if c.isprintable() else "\ufffd" for c in " ".join(str(text).split()))
        return (line.replace(key, "***") if key else line)[:200]

    def _key(self) -> str:
        return os.environ.get(self.api_key_variable, "").strip()

    def _authorise(self, prepared: PreparedRequest) -> PreparedRequest:
        if key := self._key():
            prepared.headers["Authorization"] = f"Bearer {key}"
        return prepared


def _reason(error: RequestException) -> str:
    system = re.search(r"\[Errno -?\d+\] [^'\")>]+", str(error))  # requests wraps it three times over
    return system[0] if system else "the connection was closed"
