"""Judges of generated sounds: taggers that were trained on real recordings, and never heard a generated one.

Shapes: B batch, T samples, K classes, D embedding.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from hydra.core.singleton import Singleton
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor

from components.data.recipes.common import is_prepared, whole_folder
from components.metrics import Listener
from trainer.checkpoint import find
from trainer.loading import load_trained
from utils.compose import COMPOSE_ERRORS, CONFIGS, Request
from utils.compose_errors import explain
from utils.errors import UserError
from utils.io import write_text
from utils.stored_run import StoredRun, load_run

logger = logging.getLogger(__name__)

# What launchers tell the processes of a run: a judge is trained by one process of its own.
_OF_LAUNCHERS = ("ACCELERATE_", "FSDP_", "TORCHELASTIC_", "MASTER_", "GROUP_", "ROLE_")
_OF_RANKS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "NODE_RANK")
_KEPT = ("ACCELERATE_USE_CPU",)


# --------------------------------------------------------------------------------------------------------- training one


def prepare_judge(
    experiment: str,
    output_dir: str,
    overrides: Sequence[str] = (),
    settings: Mapping[str, Any] | None = None,
) -> None:
    """Train a tagging experiment into `output_dir`, by train.py in a process of its own.

    A recipe: it does nothing where that was done with the same settings; what was broken off half-way is done again.

    Args:
        experiment: of `configs/experiment`, "tagging/judge_spoken_voices", say.
        overrides: as at the prompt.
        settings: dotted key -> value, for what the calling config hands on: `{cache_dir: ${cache_dir}}`.

    Raises:
        UserError: there is no such experiment or key, or the training failed.
    """
    folder = Path(output_dir)
    config = _composed(experiment, overrides, settings or {})
    made_of = OmegaConf.to_container(config, resolve=True)
    assert isinstance(made_of, dict)
    if is_prepared(folder, made_of):
        return
    with _alone(folder):
        if is_prepared(folder, made_of):  # by whoever was waited for
            return
        logger.info("training the judge %s into %s (once)", experiment, folder)
        with whole_folder(folder, made_of) as temporary:
            _train(experiment, OmegaConf.create(made_of), temporary)


def _composed(experiment: str, overrides: Sequence[str], settings: Mapping[str, Any]) -> DictConfig:
    """The experiment's config; what Hydra knows of the run that asks for it stays."""
    request = Request(CONFIGS, "default", (f"experiment={experiment}", *overrides))
    state = Singleton.get_state()
    try:
        config = request.compose()
    except COMPOSE_ERRORS as error:
        raise UserError(f"judge {experiment}: {explain(error, request)}") from None
    finally:
        Singleton.set_state(state)
    with open_dict(config):
        del config["hydra"]
    for key, value in settings.items():
        try:
            OmegaConf.update(config, key, value, merge=False)
        except OmegaConfBaseException:
            raise UserError(f"judge {experiment}: settings.{key}: its config has no such key") from None
    return config


def _train(experiment: str, config: DictConfig, folder: Path) -> None:
    job = folder / "job"
    job.mkdir()
    write_text(job / "judge.yaml", OmegaConf.to_yaml(config))
    quiet = ["callbacks.progress=null", "callbacks.samples=null"]
    command = [sys.executable, str(CONFIGS.parent / "train.py"), "--config-path", str(job), "--config-name", "judge"]
    environment = {name: value for name, value in os.environ.items() if name in _KEPT or not _is_of_launcher(name)}
    command += [f"exp_dir={folder}", *quiet]
    done = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        last_line = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1]
        raise UserError(f"judge {experiment}: it could not be trained: {last_line.removeprefix('error: ')}")
    shutil.rmtree(job)


def _is_of_launcher(name: str) -> bool:
    return name in _OF_RANKS or name.startswith(_OF_LAUNCHERS)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One process at a time; what others left half-made beside `folder` is removed."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with (folder.parent / f".{folder.name}.lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            for leftover in folder.parent.glob(f".{folder.name}.*"):
                if leftover.is_dir():
                    shutil.rmtree(leftover, ignore_errors=True)
            yield
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror or error}") from error


# ---------------------------------------------------------------------------------------------------------- asking one


@dataclass(frozen=True)
class Verdict:
    """What clips are taken for.

    Attributes:
        classes: target -> class name of each clip; "" for one that holds no sound, or no numbers.
        probs: target -> `[B, K]`; zeros for such a clip.
        embedding: `[B, D]`, what the classifiers see; zeros likewise.
    """

    classes: dict[str, list[str]]
    probs: dict[str, Tensor]
    embedding: Tensor


class Judge:
    """The tagger of a run, asked about any sounds. It hears them as it learned to: its config's `hearing`.

    Args:
        exp_dir: of a tagging run, what `prepare_judge` made. Its config is data: it may build what is on the list of
            `utils.trust`, and no more.
        device: where its network runs.
        batch_size: clips at a time.

    Attributes:
        labels: target -> class names, in the order of `probs`.
        sample_rate: Hz it hears at; others are resampled.

    Raises:
        UserError: there is no such run, or it is none that can be loaded.
    """

    def __init__(self, exp_dir: str | Path, device: str = "cpu", batch_size: int = 64) -> None:
        self._run = load_run(str(exp_dir))
        self._listener = Listener.of_run(self._run, device=device, batch_size=batch_size)
        self.labels, self.sample_rate = dict(self._listener.labels), self._listener.sample_rate
        checkpoint = find(self._run.default_checkpoint(), self._run.checkpoint_dir)
        load_trained(self._listener.model, checkpoint, self._run.config.get("pretrained"))

    def hear(self, waveform: Tensor, audio_lens: Tensor, sample_rate: int) -> Verdict:
        """Classes, probabilities and embeddings of `[B, 1, T]` with `audio_lens [B]`, at `sample_rate` Hz; on the CPU.

        A clip's verdict is its own: it depends neither on its neighbours nor on how long the batch is.
        """
        logits, embedding, sounds = self._listener.hear(waveform, audio_lens, sample_rate)
        probs = {target: values.softmax(1) * sounds.unsqueeze(1) for target, values in logits.items()}
        classes = {
            target: [names[k] if sound else "" for k, sound in zip(probs[target].argmax(1).tolist(), sounds.tolist())]
            for target, names in self.labels.items()
        }
        return Verdict(classes, probs, embedding * sounds.unsqueeze(1))

    def classify(self, waveform: Tensor, audio_lens: Tensor, sample_rate: int) -> dict[str, list[str]]:
        """Target -> class name of each clip; arguments as in `hear`."""
        return self.hear(waveform, audio_lens, sample_rate).classes

    def embed(self, waveform: Tensor, audio_lens: Tensor, sample_rate: int) -> Tensor:
        """`[B, D]`, for Frechet distances; arguments as in `hear`."""
        return self.hear(waveform, audio_lens, sample_rate).embedding

    def test_loader(self) -> Any:
        """Real clips that it was not trained with, at one level, as a loader; `hear` does to them what else it does."""
        config = deepcopy(self._run.config)
        if "augment" in config.test_dataloader.dataset:
            level = {"level": {"_target_": "components.data.generation.NormalizeLevel"}}
            OmegaConf.update(config, "test_dataloader.dataset.augment", level, merge=False)
        return StoredRun(self._run.exp_dir, config).build("test_dataloader")


# ------------------------------------------------------------------------------------------------------------ ceilings


class Codec(Protocol):
    """Waveforms to latents and back, as `components.models.audio_generator.autoencoders`."""

    sample_rate: int

    def encode(self, waveform: Tensor, audio_lens: Tensor) -> tuple[Tensor, Tensor]: ...

    def decode(self, latents: Tensor, latent_lens: Tensor) -> tuple[Tensor, Tensor]: ...


@dataclass(frozen=True)
class Accuracy:
    """How many of so many clips were recognised."""

    num_correct: int
    num_clips: int

    @property
    def share(self) -> float:
        """From 0 to 1; NaN without clips."""
        return self.num_correct / self.num_clips if self.num_clips else float("nan")


def accuracies(heard: Mapping[str, Sequence[str]], asked: Mapping[str, Sequence[str | None]]) -> dict[str, Accuracy]:
    """Target -> how many clips are what they should be; those of which that is not known (None) do not count.

    Args:
        heard: target -> class names, of `Judge.classify`.
        asked: target -> class names or None; targets that the judge does not know are left out.
    """
    found = {}
    for target in (target for target in heard if target in asked):
        pairs = [(own, wanted) for own, wanted in zip(heard[target], asked[target], strict=True) if wanted is not None]
        found[target] = Accuracy(sum(own == wanted for own, wanted in pairs), len(pairs))
    return found


def ceiling(
    judge: Judge, autoencoder: Codec | None = None, batches: Iterable[Mapping[str, Any]] | None = None
) -> dict[str, Accuracy]:
    """Target -> accuracy on real clips, which no generated ones should be expected to pass.

    Args:
        autoencoder: judge what it makes of the clips (copy synthesis): what a perfect generator of its latents would
            reach. It must work at the judge's sample rate. None: the clips as they are.
        batches: `waveform`, `audio_lens`, `targets` by the judge's own labels; by default clips that it was not trained
            with.

    Raises:
        UserError: the autoencoder has another sample rate.
    """
    if autoencoder is not None and autoencoder.sample_rate != judge.sample_rate:
        raise UserError(
            f"ceiling: the autoencoder works at {autoencoder.sample_rate} Hz, the judge hears at {judge.sample_rate} Hz"
        )
    correct: dict[str, list[Accuracy]] = {}
    for batch in judge.test_loader() if batches is None else batches:
        waveform, audio_lens = batch["waveform"], batch["audio_lens"]
        if autoencoder is not None:
            with torch.no_grad():
                copy, copy_lens = autoencoder.decode(*autoencoder.encode(waveform, audio_lens))
            waveform, audio_lens = copy, torch.minimum(copy_lens, audio_lens)
        asked = {
            target: [judge.labels[target][k] if k >= 0 else None for k in ids.tolist()]
            for target, ids in batch["targets"].items()
            if target in judge.labels
        }
        for target, found in accuracies(judge.classify(waveform, audio_lens, judge.sample_rate), asked).items():
            correct.setdefault(target, []).append(found)
    return {
        target: Accuracy(sum(part.num_correct for part in parts), sum(part.num_clips for part in parts))
        for target, parts in correct.items()
    }
