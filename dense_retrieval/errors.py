"""The commands' way to end: a user's error is one line, without a traceback."""

import functools
import logging
import math
import os
import re
import signal
import sys
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException
from hydra.types import RunMode
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    InterpolationKeyError,
    InterpolationToMissingValueError,
    MissingMandatoryValue,
    OmegaConfBaseException,
)

from dense_retrieval import folders, help, sweep
from dense_retrieval.checks import check, names, suggestion
from dense_retrieval.config import CONF, Config
from dense_retrieval.records import InputError

log = logging.getLogger(__name__)

TERMINATED = 143  # exit status after SIGTERM


def command(
    config_name: str, schema: type, shown: Collection[str] | None = None
) -> Callable[[Callable[[Any], float | None]], Callable[[], None]]:
    """``hydra.main`` of a function with a configuration in ``conf/``, all of whose errors are one line.

    Args:
        schema: of the configuration; the names of its settings are suggested for unknown ones.
        shown: groups and settings that ``--help`` shows, those that the command reads; None is all.
    """

    def decorate(task: Callable[[Any], float | None]) -> Callable[[], None]:
        start = hydra.main(version_base=None, config_path=CONF, config_name=config_name)(
            one_line_errors(task)
        )

        @functools.wraps(task)
        def main() -> None:
            if os.environ.get("HYDRA_FULL_ERROR") == "1":
                folders.offer(sys.argv[1:])
                return start()
            os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises what it else prints in many lines
            try:
                folders.offer(sys.argv[1:])
                if {"-h", "--help"} & set(sys.argv[1:]):
                    doc = sys.modules[task.__module__].__doc__ or ""
                    given = [word for word in sys.argv[1:] if not word.startswith("-")]
                    _show(help.text(config_name, schema, doc, given, shown))
                else:
                    start()
            except (HydraException, OmegaConfBaseException, ValueError, OSError) as error:
                raise SystemExit(f"error: {in_one_line(error, schema)}") from None
            except KeyboardInterrupt:
                print("error: interrupted; the same command goes on from there", file=sys.stderr, flush=True)
                raise SystemExit(128 + signal.SIGINT) from None
            finally:
                del os.environ["HYDRA_FULL_ERROR"]

        return main

    return decorate


def _show(text: str) -> None:
    """Print; where the reader goes early, as ``head`` does, that is no error."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is flushed at the end


def one_line_errors(task: Callable[[Any], float | None]) -> Callable[[Any], float | None]:
    """A Hydra task whose user's errors are one line; of others the traceback is in its log too.

    A job of a sweep that fails returns NaN and leaves the line in its folder: the others go on. A job that
    SIGTERM ended ends the sweep.
    """

    @functools.wraps(task)
    def wrapped(config: Any) -> float | None:
        try:
            check(config)
            return task(config)
        except SystemExit as stop:
            if stop.code == TERMINATED:
                print(
                    "error: ended by SIGTERM; the same command goes on from there",
                    file=sys.stderr,
                    flush=True,
                )
            raise
        except Exception as error:
            cause = users_error(error)
            line = f"error: {cause or repr(error)}"
            job = HydraConfig.get()
            if cause is None or job.mode == RunMode.MULTIRUN:
                log.error(line, exc_info=None if cause else error)
            if job.mode == RunMode.MULTIRUN:
                Path(job.runtime.output_dir, sweep.FAILURE).write_text(line)
                return math.nan
            raise SystemExit(line) from None

    return wrapped


def users_error(error: BaseException | None, schema: type = Config) -> str | None:
    """What to tell the user, in one line, if an error is of their making.

    Args:
        schema: of the configuration; the names of its settings are suggested for unknown ones.
    """
    if isinstance(error, MissingMandatoryValue | InterpolationToMissingValueError):
        return f"{error.full_key} has no value; give one with {error.full_key}="
    if isinstance(error, PermissionError | NotADirectoryError | FileExistsError):
        return f"{error.filename} cannot be written: {error.strerror}"
    if isinstance(error, MissingConfigException):
        return _unknown_choice(error)
    if isinstance(error, ConfigCompositionException):
        return _not_composed(error, schema)
    if error is None or isinstance(error, InputError):
        return str(error) if error else None
    if isinstance(error, InterpolationKeyError):
        return f"{error.full_key}: {_said(error)}"
    return users_error(error.__cause__, schema)  # Hydra wraps what a target raises


def in_one_line(error: Exception, schema: type = Config) -> str:
    """What to tell the user of an error that composing raised; arguments are those of :func:`users_error`."""
    return users_error(error, schema) or _said(error)


def _unknown_choice(error: MissingConfigException) -> str:
    group, _, choice = str(error.missing_cfg_file).rpartition("/")
    files = [] if group.startswith("hydra/") else Path(CONF, group).glob("*.yaml")  # plugins have others
    choices = [file.stem for file in files] or list(error.options or [])
    remedy = suggestion(choice, choices) or f"; choose one of {', '.join(sorted(choices))}"
    return f"{group}={choice}: there is no such choice{remedy}"


def _not_composed(error: ConfigCompositionException, schema: type) -> str:
    cause = error.__cause__
    override = re.match(r"Could not override '(.+)'\.\n|Error merging override (.+)", str(error))
    if isinstance(cause, ConfigKeyError | ConfigAttributeError):
        given, key = (override and override[1]) or "", str(cause.full_key)
        name = key if key.startswith(given) else given
        what = f"{name}: there is no such setting" if override else _said(error)
        if given.startswith("hydra.") and name != given:  # a sweeper's params take any name
            return f"{what}; +{given}= adds it"
        return what + suggestion(name, names(schema))
    if override and isinstance(cause, OmegaConfBaseException):
        return f"{override[1] or override[2]}: {_said(cause)}"
    return users_error(cause, schema) or _said(error)


def _said(error: Exception) -> str:
    """A message without Hydra's and OmegaConf's hints, in one line."""
    hints = ("full_key:", "object_type=", "reference_type=", "See https:", "To append to your")
    said = str(error).removeprefix("InputError raised while resolving interpolation: ")
    lines = [line.strip() for line in said.splitlines()]
    return " ".join(line for line in lines if line and not line.startswith(hints))
