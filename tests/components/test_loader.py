"""A DataLoader named in YAML, with samplers that see its dataset."""

from functools import partial

import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch.utils.data import BatchSampler, DistributedSampler, RandomSampler, SequentialSampler, WeightedRandomSampler

from components.data import AudioDataset
from components.data.loader import make_dataloader
from components.data.samplers import DynamicBatchSampler
from tests.components.clips import write_corpus
from utils.compose import CONFIGS, Request, compose_task
from utils.config import register_omegaconf_resolvers
from utils.errors import UserError
from utils.validate import validate

SECONDS = (0.5, 0.3, 0.4, 0.2, 0.6)


@pytest.fixture
def dataset(tmp_path):
    return AudioDataset(write_corpus(tmp_path, SECONDS, ("yes", "no", "no", "no", "yes")), 16_000)


def test_a_batch_sampler_is_made_for_the_dataset(dataset):
    loader = make_dataloader(dataset, partial(DynamicBatchSampler, max_seconds=1.0), num_workers=0)
    batches = list(loader)
    assert sorted(name for batch in batches for name in batch["id"]) == [f"clip{i}" for i in range(5)]
    assert all(batch["waveform"].numel() <= 16_000 for batch in batches)
    assert len(loader) == len(batches)


def test_other_samplers_are_torchs_own(dataset):
    given = BatchSampler(SequentialSampler(dataset), 2, False)
    assert make_dataloader(dataset, given).batch_sampler is given
    weighted = WeightedRandomSampler([1.0, 0.0, 0.0, 0.0, 1.0], 6)
    loader = make_dataloader(dataset, sampler=weighted, batch_size=3)
    assert {name for batch in loader for name in batch["id"]} <= {"clip0", "clip4"}
    backwards = partial(sorted, reverse=True, key=lambda item: item["waveform"].shape[-1])
    assert make_dataloader(dataset, sampler=backwards).sampler[0]["id"] == "clip4"
    assert isinstance(make_dataloader(dataset, batch_size=2, shuffle=True).sampler, RandomSampler)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"batch_sampler": [[0]], "shuffle": True}, "has no batch_size, shuffle"),
        ({"batch_sampler": [[0]], "batch_size": 4}, "has no batch_size, shuffle"),
        ({"sampler": [0], "shuffle": True}, "shuffle has no meaning"),
        ({"prefetch_factor": 4}, "prefetch_factor is for workers"),
        ({"sampler": DistributedSampler([0, 1], num_replicas=2, rank=0)}, "DistributedSampler deals out .* to 2 ranks"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(dataset, settings, sentence):
    with pytest.raises(UserError, match=sentence):
        make_dataloader(dataset, **settings)


PLAIN = ("~train_dataloader.batch_size", "~train_dataloader.shuffle", "~train_dataloader.drop_last")
OURS = "train_dataloader._target_=components.data.loader.make_dataloader"
SAMPLERS = {
    "dynamic": "{_target_: components.data.samplers.DynamicBatchSampler, _partial_: true, max_seconds: 60}",
    "mixture": "{_target_: components.data.samplers.MixtureBatchSampler, _partial_: true, seed: ${seed}, "
    "weights: {spoken_words: 1.0}, budget: {_target_: components.data.samplers.Budget, max_seconds: 60}}",
    "balanced": "{_target_: components.data.samplers.ClassBalancedBatchSampler, _partial_: true, label: word, "
    "budget: {_target_: components.data.samplers.Budget, max_items: 32, jitter: null}}",
}  # fmt: skip


def compose(sampler: str):
    register_omegaconf_resolvers()
    overrides = ("experiment=tagging/concat", OURS, *PLAIN, f"+train_dataloader.batch_sampler={sampler}")
    return compose_task(Request(CONFIGS, "default", overrides))


@pytest.mark.parametrize("name", SAMPLERS)
def test_samplers_in_yaml_are_checked_and_built(name, tmp_path):
    config = compose(SAMPLERS[name].replace(": ", ":"))
    assert validate(config) == []
    manifest = write_corpus(tmp_path, SECONDS, ("yes", "no", "no", "no", "yes"))
    part = {"_target_": "components.data.AudioDataset", "manifest": str(manifest), "sample_rate": 16_000}
    loading = OmegaConf.create({"seed": 3, "loader": config.train_dataloader})
    loading.loader.dataset = {"_target_": "components.data.ConcatDataset", "datasets": {"spoken_words": part}}
    loader = instantiate(loading.loader)
    assert sum(len(batch["id"]) for batch in loader) == 5


def test_a_mistyped_setting_is_told_before_anything_is_built():
    problems = validate(compose(SAMPLERS["dynamic"].replace("max_seconds", "max_secs").replace(": ", ":")))
    assert len(problems) == 1
    assert "train_dataloader.batch_sampler.max_secs" in problems[0]
    assert "did you mean 'max_seconds'" in problems[0]
