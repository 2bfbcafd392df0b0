"""Where metrics go: `metrics.jsonl` always; TensorBoard and Weights & Biases by config.

Only the main process has trackers. A tracker in YAML is a partial; the Trainer gives it `exp_dir`.
"""

from __future__ import annotations

import json
import logging
import secrets
import time
import wave
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from utils.imports import require

logger = logging.getLogger(__name__)


class Tracker(Protocol):
    """What the Trainer asks of a tracker. `step` is always `global_step`: optimizer updates."""

    def log(self, metrics: Mapping[str, float], step: int, epoch: int) -> None: ...
    def log_hyperparameters(self, config: Mapping[str, Any]) -> None: ...
    def log_files(self, files: Mapping[str, Path], step: int) -> None:
        """Show pictures (.png) and sounds (.wav, 16 bit, mono), by name."""

    def resume(self, step: int) -> None:
        """The run goes on behind `step`: forget what an interrupted run logged later."""

    def close(self) -> None: ...


class JsonlTracker:
    """`exp_dir/metrics.jsonl`, one JSON object a line: step, epoch, time (unix seconds), then the metrics.

    A disk that is full for a while costs nothing: lines wait in the file's buffer.
    """

    def __init__(self, exp_dir: Path) -> None:
        self.path = exp_dir / "metrics.jsonl"
        self._file = self.path.open("a", buffering=1)
        self._is_behind = False

    def log(self, metrics: Mapping[str, float], step: int, epoch: int) -> None:
        line = {"step": step, "epoch": epoch, "time": round(time.time(), 3), **metrics}
        try:
            self._file.write(json.dumps(line) + "\n")
            self._is_behind = False
        except OSError as error:
            if not self._is_behind:
                logger.warning("can not write %s: %s; tried again at the next log", self.path, error)
            self._is_behind = True

    def log_hyperparameters(self, config: Mapping[str, Any]) -> None:
        """Nothing to do: `exp_dir/config.yaml` holds them."""

    def log_files(self, files: Mapping[str, Path], step: int) -> None:
        """Nothing to do: the files lie in `exp_dir`."""

    def resume(self, step: int) -> None:
        lines = [line for line in self.path.read_text().splitlines() if _step_of(line, default=step + 1) <= step]
        temporary = self.path.with_suffix(".partial")
        temporary.write_text("".join(line + "\n" for line in lines))
        self._file.close()
        temporary.replace(self.path)
        self._file = self.path.open("a", buffering=1)

    def close(self) -> None:
        try:
            self._file.close()
        except OSError as error:
            logger.error("the last lines of %s are lost: %s", self.path, error)


def _step_of(line: str, default: int) -> int:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return default  # half a line, written as the run was killed


class TensorBoardTracker:
    """TensorBoard event files under `exp_dir/tensorboard`. See them with `tensorboard --logdir exp_dir`."""

    def __init__(self, exp_dir: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._directory = exp_dir / "tensorboard"
        self._writer = SummaryWriter(str(self._directory))

    def log(self, metrics: Mapping[str, float], step: int, epoch: int) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def log_hyperparameters(self, config: Mapping[str, Any]) -> None:
        self._writer.add_text("config", f"```json\n{json.dumps(config, indent=1, default=str)}\n```")

    def log_files(self, files: Mapping[str, Path], step: int) -> None:
        for name, path in files.items():
            if path.suffix == ".png":
                import matplotlib.image

                picture = matplotlib.image.imread(path)[..., :3]
                self._writer.add_image(name, torch.from_numpy(picture), step, dataformats="HWC")
            elif path.suffix == ".wav":
                with wave.open(str(path)) as file:
                    samples = np.frombuffer(file.readframes(file.getnframes()), dtype="<i2")
                    rate = file.getframerate()
                self._writer.add_audio(name, torch.from_numpy(samples / 32768.0), step, sample_rate=rate)

    def resume(self, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer.close()
        self._writer = SummaryWriter(str(self._directory), purge_step=step + 1)

    def close(self) -> None:
        self._writer.close()


class WandbTracker:
    """Weights & Biases; `mode="offline"` needs no account. The run's id lies in `exp_dir`, so a resume goes on with it.

    Raises:
        UserError: the package is not installed.
    """

    def __init__(self, exp_dir: Path, project: str = "ostinato", mode: Any = "offline", **settings: Any) -> None:
        wandb = require("wandb", extra="wandb")
        id_file = exp_dir / "wandb_id.txt"
        if not id_file.exists():
            id_file.write_text(secrets.token_hex(4))
        self._wandb = wandb
        self._run = wandb.init(
            project=project,
            name=exp_dir.name,
            id=id_file.read_text(),
            resume="allow",
            mode=mode,
            dir=str(exp_dir),
            **settings,
        )

    def log(self, metrics: Mapping[str, float], step: int, epoch: int) -> None:
        self._run.log({"epoch": epoch, **metrics}, step=step)

    def log_hyperparameters(self, config: Mapping[str, Any]) -> None:
        self._run.config.update(dict(config), allow_val_change=True)

    def log_files(self, files: Mapping[str, Path], step: int) -> None:
        shown = {".png": self._wandb.Image, ".wav": self._wandb.Audio}
        media = {name: shown[path.suffix](str(path)) for name, path in files.items() if path.suffix in shown}
        if media:
            self._run.log(media, step=step)

    def resume(self, step: int) -> None:
        """Nothing to do: a wandb run refuses steps it has seen."""

    def close(self) -> None:
        self._run.finish()
