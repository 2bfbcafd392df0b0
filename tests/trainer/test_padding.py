"""How much of a run's batches is padding."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from tests.trainer.tiny import SGD
from trainer import StepOutput, Trainer
from trainer.callbacks import Padding
from utils.errors import UserError


class Frames(Dataset):
    deterministic = True
    lengths = (4, 8, 2, 2, 6, 6)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.ones(self.lengths[index], 3)


def padded(items: list[torch.Tensor]) -> dict[str, Any]:
    lens = torch.tensor([len(item) for item in items])
    return {"features": nn.utils.rnn.pad_sequence(items, batch_first=True), "feature_lens": lens}


class Sums(Trainer):
    def training_step(self, batch, batch_idx):
        return StepOutput(self.model(batch["features"]).square().sum(), len(batch["features"]))


def run(tmp_path, callback: Padding, log_every_n_steps: int, epochs: int = 1) -> list[dict[str, float]]:
    loader = DataLoader(Frames(), batch_size=2, collate_fn=padded)
    Sums(
        nn.Linear(3, 1), loader, SGD, callbacks=[callback], exp_dir=tmp_path, epochs=epochs,
        log_every_n_steps=log_every_n_steps,
    ).fit()  # fmt: skip
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "perf/padding" in line]


def test_it_is_the_share_over_the_batches_since_the_last_log(tmp_path):
    lines = run(tmp_path, Padding("feature_lens", "features", dim=1, size_name="seconds", size_unit=2.0), 1)
    assert [line["perf/padding"] for line in lines] == pytest.approx([1 / 4, 0.0, 0.0])
    assert [line["perf/seconds_per_batch"] for line in lines] == [6.0, 2.0, 6.0]


def test_batches_are_weighted_by_their_room_and_not_counted_twice(tmp_path):
    lines = run(tmp_path, Padding("feature_lens", "features", dim=1), 3, epochs=2)
    assert [line["perf/padding"] for line in lines] == pytest.approx([1 - 28 / 32] * 2)
    assert [line["perf/size_per_batch"] for line in lines] == pytest.approx([28 / 3] * 2)


def test_nothing_is_read_from_the_device_between_logs():
    callback = Padding("lens", "features")
    batch = {"lens": torch.ones(2, device="meta"), "features": torch.ones(2, 5, device="meta")}
    callback.on_train_batch_end(None, None, batch, 0)  # a meta tensor can not be read
    callback.on_train_batch_end(None, None, batch, 1)


def test_a_batch_without_these_tensors_is_told(tmp_path):
    with pytest.raises(UserError, match=r"no 'audio_lens' in a batch, which has features, feature_lens"):
        run(tmp_path, Padding("audio_lens", "features"), 1)
