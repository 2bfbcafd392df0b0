"""What is looked at before a generator trains: its autoencoder's sounds, and the loss of saying nothing."""

from __future__ import annotations

import json

import pytest
import soundfile
import torch

from components.data import PadCollate
from tasks.audio_generation.reconstruction import ReconstructionDemo, baseline_loss
from tests.tasks.test_audio_generation import Sounds, loader, trainer
from trainer import Callback
from trainer.callbacks import ModelCheckpoint

FOLDER = "samples/reconstruction"


def test_clips_come_back_through_the_autoencoder_before_the_first_update(tmp_path, caplog):
    seen = []

    class Look(Callback):
        def on_train_batch_start(self, trainer, batch, batch_idx):
            seen.append(sorted(path.name for path in (tmp_path / FOLDER).iterdir()))

    with caplog.at_level("INFO"):
        trainer(tmp_path, max_steps=1, callbacks=[ReconstructionDemo(2), Look()]).fit()
    sounds = [name for name in seen[0] if name.endswith(".wav")]
    assert len(sounds) == 4
    assert {"scores.json", "spectrograms.png"} <= set(seen[0])
    assert {soundfile.info(tmp_path / FOLDER / name).frames for name in sounds} == {400}
    scores = json.loads((tmp_path / FOLDER / "scores.json").read_text())
    assert scores["log_spectral_distance_db"] < 0.1  # patches of a waveform lose nothing
    assert scores["num_clips"] == 2
    line = next(message for message in caplog.messages if "predicting zeros has a loss of" in message)
    assert line.startswith("the autoencoder's log-spectral distance is 0.0 dB")
    assert line.endswith(FOLDER)


def test_a_loss_of_zeros_is_the_spread_of_noise_and_data():
    run = trainer(max_steps=1)
    run.fit()
    batch = PadCollate()([Sounds()[i] for i in range(16)])
    model = run.model.eval()
    latents, lens = model.latents_of(batch)
    zeros = baseline_loss(model, batch, latents, lens, (0.1, 0.5, 0.9))
    assert zeros == pytest.approx(1 + float(latents.square().mean()), rel=0.05)  # E|data - noise|^2
    assert zeros == pytest.approx(2, rel=0.1)


def test_training_is_the_same_with_it_and_without(tmp_path):
    plain, demonstrated = trainer(tmp_path / "a", max_steps=3), trainer(
        tmp_path / "b", max_steps=3, callbacks=[ReconstructionDemo()]
    )  # fmt: skip
    for run in (plain, demonstrated):
        torch.manual_seed(0)
        run.fit()
    states = plain.model.state_dict(), demonstrated.model.state_dict()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.parametrize("options", [{"fast_dev_run": True}, {"callbacks": [ReconstructionDemo(0)]}])
def test_it_can_be_left_out(tmp_path, options):
    trainer(tmp_path, max_steps=1, **({"callbacks": [ReconstructionDemo()]} | options)).fit()
    assert not (tmp_path / "samples").exists()


def test_a_resumed_run_has_had_it(tmp_path):
    def go(max_steps):
        callbacks = {"demo": ReconstructionDemo(1), "checkpoint": ModelCheckpoint()}
        trainer(tmp_path, max_steps=max_steps, callbacks=callbacks, auto_resume=True).fit()

    go(2)
    (tmp_path / FOLDER / "scores.json").unlink()
    go(4)
    assert not (tmp_path / FOLDER / "scores.json").exists()


def test_without_validation_it_is_shown_clips_of_training(tmp_path):
    trainer(tmp_path, max_steps=1, val_dataloader=None, callbacks=[ReconstructionDemo(3)]).fit()
    assert len(list((tmp_path / FOLDER).glob("*_original.wav"))) == 3
    trainer(
        tmp_path / "named", max_steps=1, val_dataloader={"first": loader()}, callbacks=[ReconstructionDemo(1)]
    ).fit()
    assert (tmp_path / "named" / FOLDER / "scores.json").exists()
