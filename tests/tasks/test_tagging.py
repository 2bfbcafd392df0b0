"""The tagging task through its public ways in: the predictor, and the Trainer on a corpus made on the spot."""

import json
from functools import partial

import pytest
import torch
from torch.utils.data import DataLoader

from components.augment import SpecAugment
from components.data import AudioDataset, PadCollate
from components.features import LogMel
from components.losses import MultiTargetCrossEntropy
from components.models.tagger import ConvNet, PoolingHead, Tagger, TaggerOutput
from tasks.tagging import TaggingPredictor, TaggingTrainer
from tests.components.clips import write_corpus
from utils.errors import UserError

LABELS = {"word": ["no", "yes", "maybe"], "speaker": ["anna", "ben"]}


def make_batch(**changes):
    targets = {"word": torch.tensor([1, -100]), "speaker": torch.tensor([-100, -100])}
    audio = {"waveform": torch.zeros(2, 1, 10), "audio_lens": torch.tensor([10, 5])}
    return {"id": ["a", "b"], "targets": targets} | audio | changes


def model(waveform, audio_lens):
    word = torch.tensor([[0.0, 2.0, 1.0], [3.0, 0.0, 1.0]])
    return TaggerOutput({"word": word, "speaker": torch.tensor([[0.0, 1.0], [1.0, 0.0]])}, torch.zeros(2, 4))


def test_records_hold_ranked_labels_and_what_is_known():
    records = TaggingPredictor(LABELS, main_target="word", top_k=2)(model, make_batch())
    assert records == json.loads(json.dumps(records))
    first, second = records
    assert first["id"] == "a"
    assert first["predictions"]["word"]["label"] == "yes"
    assert [entry["label"] for entry in first["predictions"]["word"]["top"]] == ["yes", "maybe"]
    assert first["predictions"]["word"]["score"] == pytest.approx(0.665, abs=1e-3)
    assert first["targets"] == {"word": "yes"}
    assert "targets" not in second


def test_scores_count_only_what_is_known():
    predictor = TaggingPredictor(LABELS, main_target="word")
    targets = {"word": torch.tensor([1, 2]), "speaker": torch.tensor([1, -100])}
    assert predictor.score(predictor(model, make_batch(targets=targets))) == {
        "accuracy": 0.5, "count": 2, "speaker_accuracy": 1.0, "speaker_count": 1,
    }  # fmt: skip
    assert predictor.score(predictor(model, make_batch(targets={}))) == {}


@pytest.fixture
def make_trainer(tmp_path):
    manifest = write_corpus(tmp_path, durations=(0.3, 0.2, 0.25), labels=("no", "yes", "unheard"))

    def make(sample_rate=16_000, features=None, **options):
        torch.manual_seed(0)
        tagger = Tagger(
            LogMel(16_000, 256, 160, 16),
            partial(ConvNet, channels=[4, 8]),
            partial(PoolingHead, hidden_dim=8),
            {target: len(names) for target, names in LABELS.items()},
            SpecAugment(),
        )
        loader = partial(DataLoader, batch_size=3, collate_fn=PadCollate())
        training = {
            "train_dataloader": loader(
                AudioDataset(manifest, sample_rate, LABELS, augment={}, features=features), shuffle=True
            ),
            "val_dataloader": loader(AudioDataset(manifest, 16_000, LABELS)),
            "optimizer": partial(torch.optim.AdamW, lr=1e-2),
            "loss_fn": MultiTargetCrossEntropy(),
        }
        return TaggingTrainer(model=tagger, **training, labels=LABELS, main_target="word", **options)

    return make


def test_a_trainer_learns_and_measures_known_targets_only(make_trainer):
    trainer = make_trainer(epochs=40)
    trainer.fit()
    assert trainer.metrics["val/accuracy"] == 1.0  # of the two clips whose word is in the list
    assert "val/speaker_accuracy" not in trainer.metrics
    assert all(value == value for value in trainer.metrics.values())


def test_the_same_seed_trains_the_same_weights(make_trainer):
    weights = []
    for _ in range(2):
        trainer = make_trainer(epochs=2, seed=5)
        trainer.fit()
        weights.append(trainer.unwrapped_model.state_dict())
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def test_data_at_another_rate_than_the_model_hears_is_refused(make_trainer):
    with pytest.raises(
        UserError, match=r"^train_dataloader.dataset.sample_rate is 8000 Hz, the model hears at 16000 Hz"
    ):
        make_trainer(sample_rate=8_000, max_steps=1).fit()


def test_features_for_a_model_that_makes_its_own_are_refused(make_trainer):
    with pytest.raises(UserError, match="the batch has no waveform for the model"):
        make_trainer(features=LogMel(16_000, 256, 160, 16), max_steps=1).fit()
