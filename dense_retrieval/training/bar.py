"""The progress bar of training."""

from typing import Any

from pytorch_lightning.callbacks import RichProgressBar


class Bar(RichProgressBar):
    """``epoch 1 of 3 ━━━━ 12/40 0:00:33 • 0:01:12 0.39it/s loss: 0.234``"""

    def get_metrics(self, trainer: Any, pl_module: Any) -> dict[str, Any]:
        """Without Lightning's number of the run, which says nothing here."""
        return {
            name: value for name, value in super().get_metrics(trainer, pl_module).items() if name != "v_num"
        }

    def _get_train_description(self, current_epoch: int) -> str:
        return f"epoch {current_epoch + 1} of {self.trainer.max_epochs}"
