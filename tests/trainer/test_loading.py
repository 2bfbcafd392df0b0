"""Weights from elsewhere: all, or the parts that were named; nothing silently."""

from __future__ import annotations

import logging
from functools import partial

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import save_file
from torch import nn

from tests.trainer.tiny import VectorTrainer, linear, loader
from trainer.callbacks import ExponentialMovingAverage, Freeze, ModelCheckpoint
from trainer.loading import load_pretrained, load_pretrained_from, load_trained, read_symbols, remap_rows
from utils.errors import UserError


def tagger(num_classes: int = 3, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.ModuleDict({"backbone": nn.Linear(4, 4), "head": nn.Linear(4, num_classes)})


def saved(path, model: nn.Module, rename=("", "")):
    tensors = {name.replace(*rename) if rename[0] else name: t for name, t in model.state_dict().items()}
    save_file(tensors, path) if path.suffix == ".safetensors" else torch.save(tensors, path)
    return path


def same(a: nn.Module, b: nn.Module) -> bool:
    return torch.equal(a.weight, b.weight) and torch.equal(a.bias, b.bias)


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt"])
def test_a_whole_file_is_loaded(tmp_path, name):
    given, model = tagger(seed=1), tagger()
    report = load_pretrained(model, saved(tmp_path / name, given))
    assert same(model["backbone"], given["backbone"])
    assert same(model["head"], given["head"])
    assert str(report) == f"weights from {tmp_path / name}: 4 of the model's 4 tensors"


def test_a_part_is_loaded_where_it_is_named(tmp_path):
    given, model, fresh = tagger(5, seed=1), tagger(), tagger()
    report = load_pretrained(model, saved(tmp_path / "w.safetensors", given), include=["backbone.*"])
    assert same(model["backbone"], given["backbone"])
    assert same(model["head"], fresh["head"])
    assert report.loaded == ["backbone.bias", "backbone.weight"]
    assert str(report).splitlines()[1:] == [
        "  skipped, not asked for: head.bias, head.weight",
        "  keep their fresh values: head.weight, head.bias",
    ]


def test_a_part_is_left_out_where_it_is_named(tmp_path):
    given, model = tagger(5, seed=1), tagger()
    report = load_pretrained(model, saved(tmp_path / "w.safetensors", given), exclude="head")
    assert same(model["backbone"], given["backbone"])
    assert report.fresh == ["head.weight", "head.bias"]


def test_prefixes_are_renamed(tmp_path):
    given, model = tagger(seed=1), tagger()
    path = saved(tmp_path / "w.safetensors", given, ("backbone.", "encoder."))
    load_pretrained(model, path, rename={"encoder.": "backbone."})
    assert same(model["backbone"], given["backbone"])


def test_what_fits_is_loaded_where_that_was_said_and_the_reasons_are_told(tmp_path):
    given, model = tagger(5, seed=1), tagger()
    given["extra"] = nn.Linear(1, 1)
    report = load_pretrained(model, saved(tmp_path / "w.safetensors", given), partial=True)
    assert report.skipped == {
        "extra.bias": "not in the model",
        "extra.weight": "not in the model",
        "head.bias": "of shape [5], the model's [3]",
        "head.weight": "of shape [5, 4], the model's [3, 4]",
    }


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({}, r"does not fit the model: head.bias is of shape \[5\], the model's \[3\].* or take what fits with"),
        ({"include": ["backbone", "neck"]}, "pretrained.include: 'neck' matches no tensor of"),
        ({"exclude": ["("]}, r"pretrained.exclude: '\(' is no regular expression"),
        ({"rename": {"encoder.": ""}}, "pretrained.rename: no tensor of .* begins with 'encoder.'"),
        ({"rename": {"backbone.": "b."}, "partial": True, "exclude": ["head"]},
         "nothing of .* was loaded. Its names are like 'b.bias', the model's like 'backbone.weight'"),
        ({"rename": {"backbone.": "head."}}, "pretrained.rename: two tensors of .* become 'head.bias'"),
    ],
)  # fmt: skip
def test_a_misfit_is_refused_and_the_model_left_alone(tmp_path, options, sentence):
    model, fresh = tagger(), tagger()
    with pytest.raises(UserError, match=sentence):
        load_pretrained(model, saved(tmp_path / "w.safetensors", tagger(5, seed=1)), **options)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), fresh.state_dict().values()))


def test_a_part_that_was_asked_for_must_be_there(tmp_path):
    path = tmp_path / "w.safetensors"
    save_file({"backbone.weight": torch.zeros(4, 4)}, path)
    with pytest.raises(UserError, match=r"backbone.bias is missing in the file"):
        load_pretrained(tagger(), path, include=["backbone"])


class Hostile:
    def __reduce__(self):
        return print, ("code has run",)


def test_a_pickle_with_code_is_refused_and_runs_nothing(tmp_path, capsys):
    torch.save({"w": Hostile()}, tmp_path / "w.pt")
    with pytest.raises(UserError, match=r"can not read .*w.pt as weights without running code"):
        load_pretrained(tagger(), tmp_path / "w.pt")
    assert "code has run" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda path: None, "pretrained: there is no "),
        (lambda path: path.mkdir(), "is no checkpoint, it has no manifest.json"),
        (lambda path: path.write_bytes(b"junk"), "can not read the weights"),
    ],
)
def test_what_is_no_file_of_weights_is_refused(tmp_path, make, sentence):
    make(tmp_path / "w.safetensors")
    with pytest.raises(UserError, match=sentence):
        load_pretrained(tagger(), tmp_path / "w.safetensors")


def test_only_the_weights_of_a_training_checkpoint_optimizer_and_schedule_afresh(tmp_path, caplog):
    """The averaged weights, where the run kept them."""
    caplog.set_level(logging.INFO)
    adam = partial(torch.optim.AdamW, lr=0.1)
    VectorTrainer(linear(), loader(), adam, exp_dir=tmp_path, max_steps=5,
                  callbacks=[ExponentialMovingAverage(0.5), ModelCheckpoint()]).fit()  # fmt: skip
    report = load_pretrained_from(model := linear(1), str(tmp_path / "checkpoints/last"))
    assert report.source.endswith("last/ema.safetensors")
    assert str(report) in caplog.text
    trainer = VectorTrainer(model, loader(), adam, max_steps=1)
    trainer.fit()
    assert trainer.global_step == 1
    assert trainer.units["model"].optimizer.state[model.weight]["step"] == 1


def test_a_checkpoint_without_its_frozen_part_is_completed_from_what_the_run_began_with(tmp_path):
    def model(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1)).double()

    path = saved(tmp_path / "w.safetensors", model(1))
    load_pretrained_from(trained := model(0), path)
    VectorTrainer(trained, loader(), partial(torch.optim.SGD, lr=0.1), exp_dir=tmp_path, max_steps=2,
                  callbacks=[Freeze(["0"]), ModelCheckpoint(only_trainable=True)]).fit()  # fmt: skip
    load_trained(loaded := model(2), tmp_path / "checkpoints/last", str(path))
    assert same(loaded[0], trained[0])
    assert same(loaded[1], trained[1])


def test_the_config_key_is_a_path_or_a_mapping(tmp_path):
    path = saved(tmp_path / "w.safetensors", tagger(5, seed=1))
    assert load_pretrained_from(tagger(), {"path": path, "exclude": ["head"]}).loaded
    with pytest.raises(UserError, match=r"pretrained.includes: there is no such key, only path, include"):
        load_pretrained_from(tagger(), {"path": path, "includes": ["head"]})
    with pytest.raises(UserError, match=r"pretrained.path: name a checkpoint folder or a file of weights"):
        load_pretrained_from(tagger(), {"include": ["head"]})


def test_rows_of_shared_symbols_are_kept():
    old = torch.arange(6.0).reshape(3, 2)
    new = -torch.ones(4, 2)
    remapped, report = remap_rows(old, ["a", "b", "c"], ["c", "x", "a", "y"], new)
    assert remapped.tolist() == [[4, 5], [-1, -1], [0, 1], [-1, -1]]
    assert (report.kept, report.fresh, report.dropped) == (["c", "a"], ["x", "y"], ["b"])
    assert str(report) == "2 symbols keep their rows; 2 are new (x, y); 1 are gone (b)"
    assert new.eq(-1).all()


@pytest.mark.parametrize(
    ("old_symbols", "new_symbols", "new", "sentence"),
    [
        (["a"], ["a"], torch.zeros(1, 2), "the old vocabulary has 1 symbols, its tensor 2 rows"),
        (["a", "b"], ["a", "a"], torch.zeros(2, 2), "the new vocabulary has the symbol 'a' twice"),
        (["a", "b"], ["a"], torch.zeros(1, 3), r"a row was \[2\] and is to be \[3\]: rows can not be kept"),
    ],
)
def test_rows_that_do_not_go_with_their_symbols_are_refused(old_symbols, new_symbols, new, sentence):
    with pytest.raises(UserError, match=sentence):
        remap_rows(torch.zeros(2, 2), old_symbols, new_symbols, new)


# ------------------------------------------------------------------------------------------ vocabulary, from the config


def words(path, symbols):
    path.write_text("".join(f"{symbol}\n" for symbol in symbols))
    return str(path)


def test_a_change_of_vocabulary_takes_over_the_rows_of_shared_symbols_and_tells(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    given, model, fresh = tagger(3, seed=1), tagger(4), tagger(4)
    remap = {"head": {"old": words(tmp_path / "old.txt", "abc"), "new": ["c", "x", "a", "y"]}}
    load_pretrained_from(
        model, OmegaConf.create({"path": str(saved(tmp_path / "w.safetensors", given)), "remap_rows": remap})
    )
    assert same(model["backbone"], given["backbone"])
    for trained, before, old in zip(model["head"].parameters(), fresh["head"].parameters(), given["head"].parameters()):
        assert torch.equal(trained[[0, 2]], old[[2, 0]])
        assert torch.equal(trained[[1, 3]], before[[1, 3]])
    assert f"weights from {tmp_path / 'w.safetensors'}: 4 of the model's 4 tensors" in caplog.text
    assert (
        "  rows of head.bias, head.weight: 2 symbols keep their rows; 2 are new (x, y); 1 are gone (b)" in caplog.text
    )


def test_a_part_that_is_not_loaded_is_not_remapped(tmp_path):
    path = saved(tmp_path / "w.safetensors", tagger(3, seed=1))
    remap = {"head.weight": {"old": ["a", "b", "c"], "new": ["a", "b"]}}
    report = load_pretrained(tagger(2), path, exclude="head.bias", remap_rows=remap)
    assert list(report.rows) == ["head.weight"]
    assert report.fresh == ["head.bias"]


@pytest.mark.parametrize(
    ("remap", "sentence"),
    [
        ({"neck": {"old": ["a"], "new": ["a"]}}, "pretrained.remap_rows.neck: it matches no tensor that .* and the"),
        ({"(": {"old": ["a"], "new": ["a"]}}, r"pretrained.remap_rows: '\(' is no regular expression"),
        ({"head": {"old": ["a"]}}, "pretrained.remap_rows.head: give it old and new"),
        ({"head": {"old": ["a"], "new": ["a"], "row": 1}}, "pretrained.remap_rows.head: give it old and new"),
        ({"head": {"old": ["a", "b"], "new": ["a"]}},
         "pretrained.remap_rows.head: head.bias: the old vocabulary has 2 symbols, its tensor 3 rows"),
        ({"head": {"old": "none.txt", "new": ["a"]}}, "pretrained.remap_rows.head: can not read the vocabulary none"),
    ],
)  # fmt: skip
def test_a_vocabulary_that_does_not_go_with_the_file_is_refused_and_the_model_left_alone(tmp_path, remap, sentence):
    model, fresh = tagger(4), tagger(4)
    with pytest.raises(UserError, match=sentence):
        load_pretrained(model, saved(tmp_path / "w.safetensors", tagger(3, seed=1)), remap_rows=remap)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), fresh.state_dict().values()))


@pytest.mark.parametrize(
    ("name", "text", "symbols"),
    [
        ("plain.txt", "<blank>\n \na\n", ["<blank>", " ", "a"]),
        ("numbers.txt", "0\n1\n2", ["0", "1", "2"]),
        ("tokens.txt", "b 1\n<blk> 0\na 2\n", ["<blk>", "b", "a"]),
        ("spm.vocab", "<unk>\t0\n▁the\t-3.2\ne\t-4\n", ["<unk>", "▁the", "e"]),
        ("vocab.json", '{"b": 1, "<pad>": 0}', ["<pad>", "b"]),
        ("list.json", '["x", "y"]', ["x", "y"]),
    ],
)
def test_vocabularies_are_read_as_they_are_written(tmp_path, name, text, symbols):
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert read_symbols(tmp_path / name) == symbols


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("gap.json", '{"a": 0, "b": 2}', "does not give its 2 symbols the rows from 0 on"),
        ("number.json", "3", "is neither a list of symbols nor a mapping"),
        ("broken.json", "{", "can not read the vocabulary .*broken.json"),
    ],
)
def test_what_is_no_vocabulary_is_refused(tmp_path, name, text, sentence):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=sentence):
        read_symbols(tmp_path / name)
