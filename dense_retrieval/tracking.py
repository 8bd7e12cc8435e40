"""Weights & Biases, without which a run is the same: it never fails or waits because of it."""

import logging
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

_SECONDS_TO_CONNECT = 15
_SECONDS_TO_FINISH = 30


class Tracker:
    """One run in Weights & Biases: online with an API key, otherwise files for ``wandb sync``.

    An environment variable ``WANDB_MODE`` (online, offline, disabled) wins. Whatever goes wrong
    is said once, as a warning, and the run goes on without.
    """

    def __init__(
        self,
        enabled: bool,
        project: str,
        name: str,
        group: str | None,
        config: Mapping[str, Any],
        folder: Path,
    ) -> None:
        self.run: Any = None
        if not enabled:
            return
        import wandb

        mode = os.environ.get("WANDB_MODE") or ("online" if _has_key() else "offline")
        for attempt in dict.fromkeys([mode, "offline"]):
            try:
                self.run = wandb.init(
                    project=project,
                    name=name,
                    group=group,
                    config=dict(config),
                    dir=folder,
                    mode=attempt,  # type: ignore[arg-type]
                    reinit="create_new",
                    settings=wandb.Settings(
                        silent=True,
                        init_timeout=_SECONDS_TO_CONNECT,
                        finish_timeout=_SECONDS_TO_FINISH,
                        x_disable_stats=True,
                    ),
                )
                return
            except Exception as error:
                log.warning("Weights & Biases (%s): %s", attempt, str(error).partition("\n")[0])

    def _try(self, action: Callable[[], Any]) -> None:
        if self.run is None:
            return
        try:
            action()
        except Exception as error:
            log.warning("Weights & Biases stopped: %s", str(error).partition("\n")[0])
            self.run = None

    def log(self, values: Mapping[str, float], step: int | None = None) -> None:
        """Curves: named values at an optimiser step."""
        self._try(lambda: self.run.log(dict(values), step=step))

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        def upload() -> None:
            import wandb

            table = wandb.Table(list(columns), [*map(list, rows)], allow_mixed_types=True)
            self.run.log({name: table})

        self._try(upload)

    def page(self, name: str, html: str) -> None:
        def upload() -> None:
            import wandb

            self.run.log({name: wandb.Html(html, inject=False, data_is_not_path=True)})

        self._try(upload)

    def model(self, folder: Path) -> None:
        """The model as an artifact, by the run's name."""

        def upload() -> None:
            import wandb

            artifact = wandb.Artifact(re.sub(r"[^\w.-]+", "-", self.run.name), type="model")
            artifact.add_dir(str(folder))
            self.run.log_artifact(artifact)

        self._try(upload)

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Write the final metrics and close the run."""
        self._try(lambda: self.run.summary.update(dict(summary)))
        self._try(lambda: self.run.finish())


def _has_key() -> bool:
    from requests.utils import get_netrc_auth

    host = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")
    return bool(os.environ.get("WANDB_API_KEY") or get_netrc_auth(host))
