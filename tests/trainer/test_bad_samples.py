"""Samples that can not be used: left out, named once, counted the same after a resume, and too many end the run."""

from __future__ import annotations

import json

import pytest
import torch
from torch.utils.data import DataLoader

from tests.trainer.test_resume import PullThePlug, Unplugged
from tests.trainer.tiny import SGD, Vectors, VectorTrainer, linear
from trainer import Callback
from trainer.callbacks import ModelCheckpoint
from trainer.data import PlannedLoader
from utils.errors import BadSample, UserError


class Rotten(Vectors):
    """Vectors of which some can not be read."""

    def __init__(self, num_items: int, bad: set[int], noise: float = 0.0) -> None:
        super().__init__(num_items, noise)
        self.bad = bad

    def __getitem__(self, index: int):
        if index in self.bad:
            raise BadSample(f"cannot read {index}.wav: it is empty", sample_id=str(index), source=f"{index}.wav",
                            reason="empty file")  # fmt: skip
        return super().__getitem__(index)


def rotten(num_items=32, bad=(3, 17, 30), batch_size=4, noise=0.0, **settings) -> DataLoader:
    return DataLoader(Rotten(num_items, set(bad), noise), batch_size=batch_size, **settings)


def named_in(exp_dir) -> list[dict]:
    return [json.loads(line) for line in (exp_dir / "bad_samples.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_run_over_bad_samples_ends_as_one_without_them(tmp_path, num_workers):
    weights = []
    for exp_dir, loader in ((tmp_path, rotten(num_workers=num_workers)), (None, without_bad())):
        model = linear()
        trainer = VectorTrainer(model, loader, SGD, exp_dir=exp_dir, epochs=2)
        trainer.fit()
        weights.append(model.weight)
        if exp_dir:
            assert trainer.bad_samples.summary().startswith("3 bad samples left out (3 empty file); named in ")
    assert torch.equal(*weights)
    assert [line["id"] for line in named_in(tmp_path)] == ["3", "17", "30"]  # once, though met in both epochs
    assert named_in(tmp_path)[0] == {"id": "3", "source": "3.wav", "reason": "empty file",
                                     "detail": "cannot read 3.wav: it is empty"}  # fmt: skip


def without_bad() -> DataLoader:
    batches = [[i for i in range(g * 4, g * 4 + 4) if i not in (3, 17, 30)] for g in range(8)]
    return DataLoader(Vectors(32), batch_sampler=batches)


def test_a_batch_without_a_usable_sample_weighs_nothing(tmp_path):
    model, other = linear(), linear()
    VectorTrainer(model, rotten(32, bad=(4, 5, 6, 7)), SGD, exp_dir=tmp_path, epochs=1).fit()
    kept = [list(range(g * 4, g * 4 + 4)) for g in range(8) if g != 1]
    VectorTrainer(other, DataLoader(Vectors(32), batch_sampler=kept), SGD, epochs=1).fit()
    assert torch.equal(model.weight, other.weight)


def test_validation_counts_only_what_it_could_read():
    usable = DataLoader(Vectors(12), batch_sampler=[[0, 2, 3], [8, 9, 10, 11]])
    whole, rest = (
        VectorTrainer(linear(), max_bad_fraction=0.5).validate(loader)["val/loss"]
        for loader in (rotten(12, (1, 4, 5, 6, 7), 4), usable)
    )
    assert whole == rest


def test_what_a_step_logs_of_samples_that_stand_in_is_not_counted():
    class Logs(VectorTrainer):
        def training_step(self, batch, batch_idx):
            self.log("index", batch["index"].sum(), len(batch["index"]))
            return super().training_step(batch, batch_idx)

    loader = rotten(12, (4, 5, 6, 7), 4)
    trainer = Logs(linear(), loader, SGD, None, None, loader, epochs=1, max_bad_fraction=0.5)
    trainer.fit()
    assert trainer.metrics["train/index"] == trainer.metrics["val/index"] == sum([0, 1, 2, 3, 8, 9, 10, 11]) / 8


def test_predictions_of_samples_that_stand_in_reach_no_callback():
    class Seen(Callback):
        def on_predict_batch_end(self, trainer, output, batch, batch_idx):
            seen.extend(output)

    seen: list[int] = []
    predicted = VectorTrainer(linear(), callbacks=[Seen()], max_bad_fraction=0.5).predict(rotten(12, (4, 5, 6, 7), 4))
    assert seen == predicted == [0, 1, 2, 3, 8, 9, 10, 11]


def test_prediction_leaves_out_what_it_can_not_read():
    assert VectorTrainer(linear()).predict(rotten(6, (2,), 4)) == [0, 1, 3, 4, 5]


def test_too_many_end_the_run_with_one_sentence(tmp_path):
    trainer = VectorTrainer(linear(), rotten(32, range(0, 32, 4)), SGD, exp_dir=tmp_path, epochs=3)
    told = (
        r"8 bad samples of the last 32, more than trainer.max_bad_fraction=0.2 allows: "
        r"8 bad samples left out \(8 empty file\); named in .*bad_samples.jsonl"
    )
    with pytest.raises(UserError, match=told):
        trainer.fit()
    assert trainer.epoch == 0
    assert len(named_in(tmp_path)) == 8


def test_a_disk_that_goes_away_late_is_noticed_soon():
    dataset = Rotten(3000, set())
    loader = DataLoader(dataset, batch_size=10)

    class Unmounted(VectorTrainer):
        def on_train_batch_start(self, batch, batch_idx):
            if self.global_step == 200:
                dataset.bad = set(range(1000, 3000, 2))

    trainer = Unmounted(linear(), loader, SGD, epochs=1, log_every_n_steps=5)
    with pytest.raises(UserError, match=r"more than trainer.max_bad_fraction"):
        trainer.fit()
    assert 200 < trainer.global_step < 250


def test_raise_names_the_first_one():
    with pytest.raises(UserError, match=r"^cannot read 3.wav: it is empty$"):
        VectorTrainer(linear(), rotten(), SGD, epochs=1, on_bad_sample="raise").fit()
    with pytest.raises(UserError, match=r"trainer.on_bad_sample: must be skip or raise"):
        VectorTrainer(linear(), rotten(), SGD, epochs=1, on_bad_sample="ignore")


def test_an_error_of_a_worker_is_a_sentence_without_its_traceback():
    loader = rotten(num_workers=1)
    with pytest.raises(UserError, match=r"^cannot read 3.wav: it is empty$"):
        VectorTrainer(linear(), loader, SGD, epochs=1, on_bad_sample="raise").fit()


def test_nothing_readable_ends_the_run():
    with pytest.raises(UserError, match="not one of 100 samples in a row can be used, the first because: cannot read"):
        VectorTrainer(linear(), rotten(300, range(300)), SGD, epochs=1).fit()


def test_lines_that_a_dataset_could_not_use_are_named_before_training(tmp_path):
    loader = rotten(bad=())
    loader.dataset.bad_samples = [
        {"id": None, "source": "a.jsonl:7", "reason": "half a line", "detail": "a.jsonl:7: half"}
    ]
    trainer = VectorTrainer(linear(), loader, SGD, exp_dir=tmp_path, epochs=1)
    trainer.fit()
    assert named_in(tmp_path) == loader.dataset.bad_samples
    loader.dataset.bad_samples *= 20
    with pytest.raises(UserError, match=r"20 bad samples of the 52 of train_dataloader, more than"):
        VectorTrainer(linear(), loader, SGD, exp_dir=tmp_path, epochs=1).fit()
    with pytest.raises(
        UserError, match=r"train_dataloader: a.jsonl:7: half \(trainer.on_bad_sample=skip leaves it out\)"
    ):
        VectorTrainer(linear(), loader, SGD, exp_dir=tmp_path, epochs=1, on_bad_sample="raise").fit()


def test_a_resumed_run_counts_as_one_that_nobody_stopped(tmp_path):
    def run(exp_dir, *more):
        callbacks = [ModelCheckpoint(every_n_steps=3), *more]
        loader = rotten(64, range(0, 64, 9), noise=0.1, shuffle=True, num_workers=2)
        trainer = VectorTrainer(linear(), loader, SGD, exp_dir=exp_dir, epochs=2, callbacks=callbacks, auto_resume=True,
                                log_every_n_steps=4)  # fmt: skip
        trainer.fit()
        return trainer

    whole = run(tmp_path / "whole")
    for kill_at in (5, 20):
        with pytest.raises(Unplugged):
            run(tmp_path / "killed", PullThePlug(kill_at))
    killed = run(tmp_path / "killed")
    assert torch.equal(whole.model.weight, killed.model.weight)
    assert killed.bad_samples.state_dict() == whole.bad_samples.state_dict()
    assert sorted(map(str, named_in(tmp_path / "killed"))) == sorted(map(str, named_in(tmp_path / "whole")))
    assert len(named_in(tmp_path / "whole")) == 8


def test_ranks_keep_the_same_number_of_batches():
    ranks = [PlannedLoader(rotten(), seed=0, rank=r, world_size=2, skip_bad=True) for r in range(2)]
    walks = [list(planned) for planned in ranks]
    assert [len(walk) for walk in walks] == [4, 4]
    assert sum(len(loaded.batch["index"]) for walk in walks for loaded in walk) == 29
