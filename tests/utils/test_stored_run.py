"""A stored run as data: what can be evaluated, and what its config may not do."""

import io

import pytest
from omegaconf import OmegaConf

from utils.errors import UserError
from utils.stored_run import evaluations, load_run

CONFIG = """
sample_rate: 8000
data_dict:
  digits:
    names: [zero, one]
    test: {_target_: components.data.AudioDataset, manifest: digits/test.jsonl, sample_rate: 8000}
    heard: {manifest: digits/heard.jsonl}
test_dataloader:
  _target_: torch.utils.data.DataLoader
  dataset: {_target_: components.data.AudioDataset, manifest: test.jsonl, sample_rate: 8000, max_duration: 2.0}
  batch_size: 4
model: {_target_: torch.nn.Linear, in_features: 2, out_features: 3}
"""


@pytest.fixture
def run(tmp_path):
    (tmp_path / "config.yaml").write_text(CONFIG)
    return load_run(str(tmp_path))


def request(**changes):
    audio_dataset = {"_target_": "components.data.AudioFiles", "paths": "${audio}", "sample_rate": "${sample_rate}"}
    keys = {"data_dict": {}, "audio": None, "audio_dataset": audio_dataset, "batch_size": None, "data_root": None}
    return OmegaConf.create(keys | changes)


def loaders_of(run, **changes):
    return {evaluation.name: evaluation.loader for evaluation in evaluations(run, request(**changes))}


def test_nothing_named_means_the_runs_own_test_set(run):
    loaders = loaders_of(run)
    assert list(loaders) == ["test"]
    assert loaders["test"] == run.config.test_dataloader


def test_what_is_named_is_merged_onto_the_runs_own_dataset(run):
    loaders = loaders_of(run, data_dict={"digits": {"test": {"max_samples": 9}}}, batch_size=2)
    assert list(loaders) == ["digits_test"]
    assert loaders["digits_test"].batch_size == 2
    assert loaders["digits_test"].dataset.manifest == "digits/test.jsonl"
    assert loaders["digits_test"].dataset.max_samples == 9


def test_a_split_without_a_target_changes_the_test_dataset(run):
    dataset = loaders_of(run, data_dict={"digits": {"heard": {}}})["digits_heard"].dataset
    assert (dataset.manifest, dataset.max_duration) == ("digits/heard.jsonl", 2.0)


def test_audio_is_files_or_a_manifest(run):
    files = loaders_of(run, audio=["a.wav", "b.wav"])["audio"].dataset
    assert OmegaConf.to_container(files, resolve=True) == {
        "_target_": "components.data.AudioFiles",
        "paths": ["a.wav", "b.wav"],
        "sample_rate": 8000,
    }
    manifest = loaders_of(run, audio="mine.jsonl")["audio"].dataset
    assert (manifest.manifest, manifest.max_duration) == ("mine.jsonl", 2.0)


@pytest.mark.parametrize(
    ("data_dict", "sentence"),
    [
        ({"digits": {"tset": {}}}, r"data_dict.digits.tset: no such split \(did you mean 'test'\?\)"),
        ({"digitz": {"test": {}}}, r"data_dict.digitz: no such corpus \(did you mean 'digits'\?\)"),
        (
            {"digits": {"test": {"max_sample": 1}}},
            r"digits_test.dataset.max_sample: unknown argument .* \(did you mean 'max_samples'\?\)",
        ),
    ],
)
def test_a_mistake_in_the_request_is_one_sentence(run, data_dict, sentence):
    with pytest.raises(UserError, match=sentence):
        loaders_of(run, data_dict=data_dict)


def test_another_corpus_comes_with_its_recipe(run, tmp_path, monkeypatch):
    monkeypatch.setattr("utils.stored_run.CONFIGS", tmp_path / "configs")
    monkeypatch.setattr("utils.compose.CONFIGS", tmp_path / "configs")
    (tmp_path / "configs" / "data_dict").mkdir(parents=True)
    (tmp_path / "configs" / "inference.yaml").write_text("data_root: null\n")
    (tmp_path / "configs" / "data_dict" / "sounds.yaml").write_text(
        "# @package data_dict.sounds\n"
        "recipe: {_target_: components.data.recipes.prepare_spoken_digits, data_root: '${data_root}'}\n"
        "val: {manifest: '${data_root}/val.jsonl', sample_rate: '${sample_rate}'}\n"
    )
    [evaluation] = evaluations(run, request(data_dict={"sounds": {"val": {}}}, data_root="/data"))
    assert evaluation.name == "sounds_val"
    assert evaluation.loader.dataset.manifest == "/data/val.jsonl"
    assert evaluation.loader.dataset.sample_rate == 8000
    assert evaluation.recipe.data_root == "/data"


def test_the_model_is_built_from_the_stored_config(run):
    assert run.build("model").out_features == 3
    with pytest.raises(UserError, match=r"predictor: .*config.yaml has none"):
        run.build("predictor")


def test_a_stored_config_can_not_run_what_is_not_on_the_list(run):
    run.config.model["_target_"] = "os.system"
    run.config.test_dataloader.dataset = {"_target_": "builtins.exec", "_args_": ["1/0"]}
    with pytest.raises(UserError, match=r"^model._target_: 'os.system' is not among"):
        run.build("model")
    with pytest.raises(UserError, match=r"^test.dataset._target_: 'builtins.exec' is not among"):
        loaders_of(run)


def test_the_default_checkpoint_is_the_best_one_that_is_there(run):
    assert run.default_checkpoint() == "last"
    (run.checkpoint_dir / "best").mkdir(parents=True)
    assert run.default_checkpoint() == "best"


def instructed(run, **more):
    """The run with a generator's data: instructions around clips."""
    task = {"_target_": "components.data.generation.InstructedDataset", "task": "tts", "templates": ["say {text}"]}
    inner = {"_target_": "components.data.AudioDataset", "manifest": "test.jsonl", "sample_rate": 8000}
    run.config.test_dataloader.dataset = task | {"wording": 0, "dataset": inner} | more
    run.config.instructions = {"tts": {"train": ["say {text}"], "held_out": ["utter {text}", "speak {text}"]}}
    return run


def test_wordings_that_were_held_out_take_the_place_of_the_others(run):
    loaders = loaders_of(instructed(run), wordings="held_out")
    assert list(loaders) == ["test_held_out"]
    dataset = loaders["test_held_out"].dataset
    assert (dataset.templates, dataset.wording) == (["utter {text}", "speak {text}"], None)
    [own] = loaders_of(run, wordings=["do {text}"], data_dict={"digits": {"test": {"max_samples": 3}}}).items()
    assert (own[0], own[1].dataset.templates) == ("digits_test_own_wordings", ["do {text}"])
    assert own[1].dataset.dataset.max_samples == 3


def test_wordings_that_are_not_there_are_told(run):
    with pytest.raises(UserError, match="wordings: the data of this run has no instructions"):
        loaders_of(run, wordings="held_out")
    with pytest.raises(UserError, match=r"no 'heldout' of tts, only train, held_out \(did you mean 'held_out'\?\)"):
        loaders_of(instructed(run), wordings="heldout")


def test_settings_go_to_the_predictor_whatever_it_takes(run):
    run.config.predictor = {"_target_": "tasks.tagging.TaggingPredictor", "labels": {"a": ["b"]}, "main_target": "a"}
    changed = run.with_settings("infer_args", OmegaConf.create({"top_k": 2, "main_target": None}))
    assert (changed.config.predictor.top_k, changed.config.predictor.main_target) == (2, "a")
    assert "top_k" not in run.config.predictor
    with pytest.raises(
        UserError, match=r"infer_args.topk: the run's TaggingPredictor has no .* \(did you mean 'top_k'"
    ):
        run.with_settings("infer_args", OmegaConf.create({"topk": 2}))
    run.config.predictor["_target_"] = "os.system"
    with pytest.raises(UserError, match=r"^predictor._target_: 'os.system' is not among"):
        run.with_settings("infer_args", OmegaConf.create({"top_k": 2}))


def test_a_whole_dataset_can_stand_in_the_place_of_splits(run):
    own = {
        "_target_": "components.data.AudioDataset",
        "manifest": "${data_root}/m.jsonl",
        "sample_rate": "${sample_rate}",
    }
    dataset = loaders_of(run, data_dict={"mine": own}, data_root="/data")["mine"].dataset
    assert (dataset.manifest, dataset.sample_rate) == ("/data/m.jsonl", 8000)


def test_what_items_are_does_not_depend_on_how_many_are_taken(run):
    few, all_of_them = (
        evaluations(run, request(data_dict={"digits": {"test": changes}}))[0].data()
        for changes in ({"max_samples": 1}, {})
    )
    assert few == all_of_them
    other = evaluations(run, request(data_dict={"digits": {"test": {"channel": 1}}}))[0].data()
    assert other != few


def test_a_part_of_a_node_is_built(run):
    run.config.callbacks = {"one": {"net": run.config.model}}
    assert run.build("callbacks.one.net").out_features == 3


def test_folders_without_a_run_are_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="there is no folder nowhere"):
        load_run("nowhere")
    with pytest.raises(UserError, match=r"holds no run, it has no config\.yaml"):
        load_run(".")
    with pytest.raises(UserError, match="there is none under experiments/"):
        load_run(None)
    (tmp_path / "config.yaml").write_text("a: [")
    with pytest.raises(UserError, match=r"can not read config\.yaml"):
        load_run(".")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n", "uses YAML aliases"),
        ("a: " + "x" * 5_000_000, "is larger than any config"),
        ("a: !!python/object/apply:os.system [false]\n", "can not read"),
        ("- 1\n", "is no config"),
    ],
)
def test_a_config_that_would_unfold_or_run_something_is_refused(tmp_path, text, sentence):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(UserError, match=sentence):
        load_run(str(tmp_path))


def test_without_a_name_the_newest_run_is_taken(tmp_path, monkeypatch):
    import os

    monkeypatch.chdir(tmp_path)
    for age, name in enumerate(["b", "c", "a"]):
        folder = tmp_path / "experiments" / "task" / name
        (folder / "checkpoints").mkdir(parents=True)
        (folder / "config.yaml").write_text(f"name: {name}")
        os.utime(folder / "config.yaml", (1000 + age, 1000 + age))
    assert load_run(None).config.name == "a"


def test_a_list_of_files_comes_by_standard_input(run, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("a.wav\n\n b c.wav \n"))
    assert loaders_of(run, audio="-")["audio"].dataset.paths == ["a.wav", "b c.wav"]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n"))
    with pytest.raises(UserError, match="audio: standard input has no path in it"):
        loaders_of(run, audio="-")


def test_a_manifest_is_read_by_the_innermost_dataset(run):
    inner = {"_target_": "components.data.AudioDataset", "manifest": "test.jsonl", "sample_rate": 8000}
    tokenizer = {"_target_": "components.text.ByteTokenizer"}
    around = {"_target_": "components.data.TranscribedDataset", "dataset": inner, "tokenizer": tokenizer}
    run.config.test_dataloader.dataset = around
    dataset = loaders_of(run, audio="mine.jsonl")["audio"].dataset
    assert dataset.tokenizer._target_ == "components.text.ByteTokenizer"
    assert dataset.dataset.manifest == "mine.jsonl"


def test_a_prompt_may_be_about_recordings(run):
    wishes = {"_target_": "components.data.generation.Wishes", "wishes": "${prompt}", "recordings": "${audio}",
              "sample_rate": "${sample_rate}", "seconds": 1.0}  # fmt: skip
    asked = {"prompt": "clean it", "prompt_dataset": wishes}
    assert loaders_of(run, audio="noisy.wav", **asked)["prompt"].dataset.recordings == "noisy.wav"
