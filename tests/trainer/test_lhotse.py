"""Lhotse's samplers and datasets under our Trainer: same order, same draws, whatever happens to the run."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch.utils.data import DataLoader

from components.data.keyed_cuts import KeyedCuts
from components.data.loader import make_dataloader
from tests.trainer.test_sampler_resume import assert_resumes, run
from trainer.data import PlannedLoader
from utils.errors import UserError
from utils.validate import validate

pytest.importorskip("lhotse")


def write_cuts(folder: Path, num_cuts: int = 30) -> Path:
    """Cuts over small files, with a text each."""
    import numpy as np
    import soundfile
    from lhotse import CutSet, Recording, SupervisionSegment

    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    cuts = []
    for i in range(num_cuts):
        path = folder / f"{i}.wav"
        soundfile.write(path, 0.1 * rng.standard_normal(int(rng.uniform(0.3, 2.0) * 8000)), 8000)
        recording = Recording.from_file(path, recording_id=f"r{i}")
        cut = recording.to_cut()
        cut.supervisions = [SupervisionSegment(f"s{i}", f"r{i}", 0.0, recording.duration, text=f"text {i}")]
        cuts.append(cut)
    CutSet.from_cuts(cuts).to_file(folder / "cuts.jsonl.gz")
    return folder / "cuts.jsonl.gz"


def lhotse_loader(path: Path, workers: int = 0, mux: bool = False, **settings: Any) -> DataLoader:
    """As one would write it in YAML: a plain torch DataLoader around Lhotse's own parts."""
    from lhotse import CutSet, Fbank, FbankConfig, MonoCut
    from lhotse.dataset import DynamicBucketingSampler, K2SpeechRecognitionDataset, OnTheFlyFeatures, SpecAugment
    from lhotse.dataset.cut_transforms import CutMix, PerturbSpeed

    cuts = CutSet.from_file(path)
    noise = CutSet.from_cuts(MonoCut(f"n{c.id}", 0.0, c.duration, 0, recording=c.recording) for c in cuts)
    if mux:
        half = len(cuts) // 2
        cuts = CutSet.mux(cuts.subset(first=half), cuts.subset(last=half), weights=[0.7, 0.3], seed=1)
    settings = {"max_duration": 6.0, "num_buckets": 3, "shuffle": True, "world_size": 1, "rank": 0} | settings
    dataset = K2SpeechRecognitionDataset(
        cut_transforms=[PerturbSpeed([0.9, 1.1], p=0.7), CutMix(noise, p=0.6, preserve_id=True)],
        input_transforms=[SpecAugment(num_frame_masks=1, features_mask_size=8, p=0.9)],
        input_strategy=OnTheFlyFeatures(Fbank(FbankConfig(sampling_rate=8000, num_mel_bins=20))),
    )
    return DataLoader(
        KeyedCuts(dataset), batch_size=None, sampler=DynamicBucketingSampler(cuts, **settings), num_workers=workers
    )


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "mux"), [(0, False), (2, False), (0, True), (2, True)])
def test_lhotses_sampler_and_dataset_resume_with_the_same_draws(tmp_path, workers, mux):
    path = write_cuts(tmp_path / "cuts")
    loader = partial(lhotse_loader, path, workers, mux)
    assert_resumes(loader, tmp_path, kills=(4, 9), num_features=20, max_steps=14)


@pytest.mark.slow
def test_workers_change_nothing_in_lhotses_batches(tmp_path):
    path = write_cuts(tmp_path / "cuts")
    alone, _ = run(lhotse_loader(path), tmp_path / "alone", num_features=20, max_steps=8)
    workers, _ = run(lhotse_loader(path, 2), tmp_path / "workers", num_features=20, max_steps=8)
    assert alone == workers
    assert len({digest for _, _, digest in alone}) == 8


def test_lhotses_passes_differ_and_hold_every_cut(tmp_path):
    path = write_cuts(tmp_path / "cuts")
    planned = PlannedLoader(lhotse_loader(path), seed=3)
    walks = []
    for number in (0, 1):
        planned.start(number)
        walks.append([list(loaded.batch["supervisions"]["text"]) for loaded in planned])
        assert sorted(text for batch in walks[-1] for text in batch) == sorted(f"text {i}" for i in range(30))
    assert walks[0] != walks[1]


def test_two_ranks_share_lhotses_batches(tmp_path):
    path = write_cuts(tmp_path / "cuts")

    def walk(rank: int, world_size: int) -> list[Any]:
        planned = PlannedLoader(lhotse_loader(path), seed=3, rank=rank, world_size=world_size)
        return [loaded.batch["supervisions"]["text"] for loaded in planned]

    alone, first, second = walk(0, 1), walk(0, 2), walk(1, 2)
    even = len(alone) // 2 * 2
    assert [batch for step in zip(first, second) for batch in step][:even] == alone[:even]


def test_a_sampler_of_lhotses_that_shards_by_itself_is_refused(tmp_path, monkeypatch):
    """Left on auto it reads these, as a launcher sets them."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    path = write_cuts(tmp_path / "cuts", 4)
    loader = lhotse_loader(path, world_size=None, rank=None)
    with pytest.raises(UserError, match=r"DynamicBucketingSampler deals out its batches to 2 ranks"):
        make_dataloader(loader.dataset, sampler=loader.sampler, batch_size=None)
    alone = lhotse_loader(path)
    assert make_dataloader(alone.dataset, sampler=alone.sampler, batch_size=None).batch_size is None


def test_passes_of_different_lengths_lose_nothing(tmp_path):
    """Lhotse's number of batches changes with their order: an epoch is as long as its pass."""
    path = write_cuts(tmp_path / "cuts", 200)
    planned = PlannedLoader(lhotse_loader(path), seed=3)
    lengths = [planned.length_of(number) for number in range(6)]
    assert len(set(lengths)) > 1
    seen, trainer = run(lhotse_loader(path), tmp_path / "run", num_features=20, epochs=6)
    assert trainer.global_step == sum(lengths)
    assert sorted(text for _, texts, _ in seen for text in texts) == sorted(
        f"text {i}" for i in range(200) for _ in range(6)
    )


LOADER = """
_target_: torch.utils.data.DataLoader
batch_size: null
sampler:
  _target_: lhotse.dataset.DynamicBucketingSampler
  _args_:
    - _target_: lhotse.CutSet.mux
      _args_:
        - {{_target_: lhotse.CutSet.from_file, path: {path}}}
        - {{_target_: lhotse.CutSet.from_file, path: {path}}}
      weights: [0.7, 0.3]
      seed: 1
  max_duration: 6.0
  num_buckets: 3
  shuffle: true
  world_size: 1
  rank: 0
dataset:
  _target_: components.data.keyed_cuts.KeyedCuts
  dataset:
    _target_: lhotse.dataset.K2SpeechRecognitionDataset
    cut_transforms:
      - {{_target_: lhotse.dataset.cut_transforms.PerturbSpeed, factors: [0.9, 1.1], p: 0.7}}
    input_strategy:
      _target_: lhotse.dataset.OnTheFlyFeatures
      extractor:
        _target_: lhotse.Fbank
        config: {{_target_: lhotse.FbankConfig, sampling_rate: 8000, num_mel_bins: 20}}
"""


def test_all_of_it_can_be_said_in_yaml(tmp_path):
    config = OmegaConf.create(LOADER.format(path=write_cuts(tmp_path / "cuts", 12)))
    assert validate(config) == []
    planned = PlannedLoader(instantiate(config), seed=0)
    batches = [loaded.batch for loaded in planned]
    assert sorted(text for batch in batches for text in batch["supervisions"]["text"]) == sorted(
        f"text {i}" for i in range(12) for _ in range(2)
    )
    assert batches[0]["inputs"].shape[2] == 20
