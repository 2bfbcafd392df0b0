"""The autoencoding task: both optimizers step, and what is learned by heart comes back."""

from __future__ import annotations

import json
import math
from functools import partial

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from components.data import PadCollate
from components.losses import AutoencoderLoss, HingeLoss, MultiResolutionStftLoss
from components.models.audio_generator import OobleckAutoencoder
from components.models.discriminators import AdversarialPair, MultiScaleStftDiscriminator
from tasks.autoencoding import AutoencoderTrainer, ReconstructionLogger, ReconstructionPredictor
from tasks.autoencoding.export import main as export
from trainer import Callback
from trainer.callbacks import ModelCheckpoint
from utils.errors import UserError


class Tones(Dataset):
    """Eight tones of different heights and lengths."""

    deterministic = True

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int):
        time = torch.arange(1_024 + 64 * index) / 8_000
        return {"id": f"tone{index}", "waveform": 0.4 * torch.sin(2 * math.pi * (200 + 90 * index) * time).unsqueeze(0)}


class Watch(Callback):
    """Whose parameters each update moved."""

    def __init__(self) -> None:
        self.moved, self.before = [], {}

    def on_train_batch_start(self, trainer, batch, batch_idx) -> None:
        self.before = {name: p.detach().clone() for name, p in trainer.unwrapped_model.named_parameters()}

    def on_train_batch_end(self, trainer, output, batch, batch_idx) -> None:
        parameters = dict(trainer.unwrapped_model.named_parameters())
        changed = {name.split(".")[0] for name, p in parameters.items() if not torch.equal(p, self.before[name])}
        self.moved.append(changed)


def trainer(max_steps: int, weights=None, **options) -> AutoencoderTrainer:
    torch.manual_seed(0)
    generator = OobleckAutoencoder(8_000, 16, [4, 4], [1, 2], 16)
    model = AdversarialPair(generator, MultiScaleStftDiscriminator((256, 128), 4))
    spectral = MultiResolutionStftLoss((256, 128), (64, 32), (256, 128))
    weights = weights or {"spectral": 1.0, "waveform": 5.0, "kl": 1e-4, "adversarial": 0.1, "feature_matching": 0.5}
    loader = DataLoader(Tones(), 8, collate_fn=PadCollate())
    adam = partial(torch.optim.AdamW, lr=3e-3, betas=(0.8, 0.99), weight_decay=0.0)
    return AutoencoderTrainer(
        model,
        loader,
        {"generator": adam, "discriminator": adam},
        loss_fn=AutoencoderLoss(spectral, HingeLoss(), weights),
        val_dataloader=loader,
        max_steps=max_steps,
        val_every_n_steps=max_steps,
        log_every_n_steps=1,
        **options,
    )


def test_both_optimizers_step_in_every_update_and_what_is_heard_is_kept(tmp_path):
    watch, keeper = Watch(), ReconstructionLogger(8_000, num_samples=1)
    run = trainer(3, callbacks=[watch, keeper], exp_dir=tmp_path, adversarial_start=2)
    run.fit()
    assert watch.moved == 3 * [{"generator", "discriminator"}]
    assert {"val/spectral", "val/waveform", "val/kl", "train/discriminator_loss"} <= set(run.metrics)
    names = ("tone0_original", "tone0_reconstruction")
    heard = sorted(path.name for path in (tmp_path / "samples/step_00000003").iterdir())
    assert heard == sorted(f"{name}.{kind}" for name in names for kind in ("png", "wav"))


def test_the_autoencoder_hears_of_the_discriminators_when_it_is_time():
    first, late = trainer(1, adversarial_start=1), trainer(1)
    for run in (first, late):
        run.fit()
    assert "train/adversarial" not in first.metrics
    assert late.metrics["train/adversarial"] > 0
    assert late.metrics["train/generator_loss"] > first.metrics["train/generator_loss"]


def test_a_weight_of_no_part_is_refused():
    with pytest.raises(UserError, match="'l1' is none of spectral, waveform"):
        trainer(1, weights={"l1": 1.0})


def test_what_comes_back_is_measured_clip_by_clip():
    model, batch = trainer(1).model.eval(), PadCollate()([Tones()[0], Tones()[5]])
    predictor = ReconstructionPredictor()
    with torch.no_grad():
        records = predictor(model, batch)
        alone = predictor(model, PadCollate()([Tones()[0]]))
    assert [record["id"] for record in records] == ["tone0", "tone5"]
    for name in ("spectral_convergence", "log_magnitude", "waveform"):
        assert alone[0][name] == pytest.approx(records[0][name], abs=2e-5)
        mean = (records[0][name] + records[1][name]) / 2
        assert predictor.score(records)[name] == pytest.approx(mean)
    assert predictor.score([]) == {}


def test_a_trained_autoencoder_is_taken_out_of_its_run(tmp_path, capsys):
    run = trainer(2, exp_dir=tmp_path, callbacks=[ModelCheckpoint(every_n_steps=2)])
    run.fit()
    sizes = {"hidden_size": 16, "strides": [4, 4], "channel_multiples": [1, 2], "decoder_channels": 16}
    generator = {"_target_": "components.models.audio_generator.OobleckAutoencoder", "sample_rate": 8_000, **sizes}
    node = {
        "_target_": "components.models.discriminators.AdversarialPair",
        "generator": generator,
        "discriminator": {
            "_target_": "components.models.discriminators.MultiScaleStftDiscriminator",
            "n_ffts": [256, 128],
            "num_channels": 4,
        },
    }
    (tmp_path / "config.yaml").write_text(json.dumps({"model": node}))
    assert export([str(tmp_path), str(tmp_path / "out")]) == 0
    taken, trained = OobleckAutoencoder(8_000, pretrained=str(tmp_path / "out")), run.unwrapped_model.generator
    clip = (Tones()[0]["waveform"].unsqueeze(0), torch.tensor([1_024]))
    with torch.no_grad():
        torch.testing.assert_close(taken.encode(*clip)[0], trained.encode(*clip)[0], atol=1e-5, rtol=1e-4)
    capsys.readouterr()
    assert export([str(tmp_path / "nowhere"), str(tmp_path / "out")]) == 2
    assert "there is no folder" in capsys.readouterr().err


@pytest.mark.slow
def test_eight_clips_are_learned_by_heart():
    untrained = trainer(1).validate()
    run = trainer(150, adversarial_start=50)
    run.fit()
    assert run.metrics["val/spectral"] < 0.55 * untrained["val/spectral"]  # 0.44 here
    assert run.metrics["val/loss"] < 0.7 * untrained["val/loss"]  # 0.55 here
    assert run.metrics["train/discriminator_loss"] < 2.0  # what guessing costs
