"""`python -m components.data recipe`, and the corpora of configs/data_dict."""

import json
from pathlib import Path

import pytest
from hydra.utils import get_method
from omegaconf import OmegaConf

from components.data import recipe
from components.data.__main__ import main
from components.data.recipes import lhotse_corpora
from tests.components.clips import write_clip
from utils.compose import CONFIGS, Request, compose_task
from utils.config import register_omegaconf_resolvers
from utils.validate import validate

CORPORA = sorted(path.stem for path in (CONFIGS / "data_dict").glob("*.yaml"))
NUM_CORPORA = 22
DIGITS = Path("../shared/data/spoken_digits")


def digits_tree(folder):
    for digit, speaker, take in [(0, "george", 0), (3, "george", 12), (7, "theo", 20)]:
        write_clip(folder / f"{digit}_{speaker}_{take}.wav", 0.1, 8_000)


def test_all_corpora_are_found():
    assert len(CORPORA) == NUM_CORPORA


@pytest.mark.parametrize("name", CORPORA)
def test_a_corpus_composes_and_its_recipe_and_datasets_are_valid(name, tmp_path):
    register_omegaconf_resolvers()
    used = [f"used={{recipe: '${{data_dict.{name}.recipe}}', corpus: '${{data_dict.{name}}}'}}"]
    given = [f"data_dict={name}", f"data_root={tmp_path}", "recipes=null", *(f"+{line}" for line in used)]
    config = compose_task(Request(CONFIGS, "default", tuple(given)))
    corpus = OmegaConf.create(OmegaConf.to_container(config.used, resolve=False))
    root = OmegaConf.merge({key: config[key] for key in ("data_dict", "data_root", "cache_dir")}, {"used": corpus})
    root.labels, root.sample_rate = {"sound": ["a"]}, 16_000
    assert validate(root) == []
    plain = OmegaConf.to_container(root.used.corpus, resolve=True)
    assert get_method(plain["recipe"]["_target_"]).__module__.startswith("components.data.recipes")
    assert plain["recipe"]["output_dir"].startswith(str(Path(config.cache_dir).expanduser()))
    splits = [split for split in ("train", "val", "test") if split in plain]
    assert all(plain[split]["manifest"] == f"{plain['output_dir']}/{split}.jsonl" for split in splits)
    assert splits or plain["manifest"].endswith(".jsonl")


def test_corpora_that_lhotse_prepares_are_called_as_it_calls_them():
    pytest.importorskip("lhotse")
    register_omegaconf_resolvers()
    known, asked = set(lhotse_corpora()), set()
    for path in sorted((CONFIGS / "data_dict").glob("*.yaml")):
        node = OmegaConf.load(path).recipe
        if node["_target_"].endswith("prepare_lhotse_corpus"):
            asked.add(node.corpus)
    assert asked == {"aishell", "commonvoice", "librispeech", "ljspeech", "musan", "speechcommands", "yesno"}
    assert asked <= known


def test_every_corpus_has_its_line_in_the_documentation():
    text = (CONFIGS.parent / "docs" / "corpora.md").read_text()
    assert [name for name in CORPORA if f"`{name}`" not in text] == []


def test_names_are_listed(capsys):
    assert main(["recipe"]) == 0
    printed = capsys.readouterr().out
    assert "spoken_digits" in printed
    assert "Human digits (FSDD, CC BY-SA 4.0)" in printed
    assert "gigaspeech" in printed


def test_a_corpus_is_made_where_it_is_wanted(tmp_path, capsys):
    digits_tree(tmp_path / "corpus")
    arguments = ["recipe", "spoken_digits", str(tmp_path / "out"), "--data-root", str(tmp_path / "corpus")]
    assert main([*arguments, "speakers=[theo]"]) == 0
    printed = capsys.readouterr().out
    assert "Free Spoken Digit Dataset (CC BY-SA 4.0)" in printed
    assert "train.jsonl 1 clips" in printed
    assert "theo" in (tmp_path / "out" / "train.jsonl").read_text()
    assert json.loads((tmp_path / "out" / "prepared.json").read_text())["speakers"] == ["theo"]


def test_a_corpus_of_lhotse_is_made_by_its_name(tmp_path, capsys):
    pytest.importorskip("lhotse")
    write_clip(tmp_path / "corpus" / "wavs" / "LJ001-0001.wav", 0.2, 22_050)
    write_clip(tmp_path / "corpus" / "wavs" / "LJ001-0002.wav", 0.2, 22_050)
    (tmp_path / "corpus" / "metadata.csv").write_text("LJ001-0001|In 1999|In nineteen\nLJ001-0002|Then|Then\n")
    out = tmp_path / "out"
    assert main(["recipe", "ljspeech", str(out), "--data-root", str(tmp_path / "corpus"), "held_out=null"]) == 0
    assert "train.jsonl 2 clips" in capsys.readouterr().out
    # `baker_zh` has no file in configs/data_dict: its options are Lhotse's.
    assert main(["recipe", "baker_zh", str(out), "--data-root", str(tmp_path / "corpus"), "num_jobs=2"]) == 2
    assert "options.num_jobs: Lhotse's recipe for baker_zh has no such option" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["spoken_digits"], "name the folder for its manifests"),
        (["spoken_digits", "OUT"], "give --data-root DIR, a copy of the corpus, or --download"),
        (["custom_folder", "OUT"], "give --data-root DIR"),
        (["spoken_digitz", "OUT", "--download"], "no recipe 'spoken_digitz' (did you mean 'spoken_digits'?)"),
        (["spoken_digits", "OUT", "--data-root", "nowhere"], "nowhere is not a folder"),
        (
            ["spoken_digits", "OUT", "--data-root", ".", "speaker=theo"],
            "did you mean 'data_dict.spoken_digits.speakers'",
        ),
        (["audiocaps", "OUT", "--download"], "AudioCaps is handed out without its audio"),
        (["baker_zh", "OUT", "--data-root", ".", "fast"], "'fast' is no key=value"),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(tmp_path, capsys, arguments, sentence):
    pytest.importorskip("lhotse")
    assert main(["recipe", *(str(tmp_path / "out") if a == "OUT" else a for a in arguments)]) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert error.startswith("error: ")
    assert not (tmp_path / "out").exists()


def test_splits_of_common_voice_are_its_own_tables():
    assert recipe._is_lhotse_option("commonvoice", "splits", ["dev"])
    assert not recipe._is_lhotse_option("commonvoice", "splits", {"val": ["ru-dev"]})


@pytest.mark.skipif(not DIGITS.is_dir(), reason="needs the shared digits")
def test_the_command_on_recorded_digits(tmp_path, capsys):
    assert main(["recipe", "spoken_digits", str(tmp_path / "out"), "--data-root", str(DIGITS)]) == 0
    assert "test.jsonl 250 clips, 0.031 h" in capsys.readouterr().out


def test_a_mistyped_command_is_one_sentence(capsys):
    assert main(["recpe"]) == 2
    assert capsys.readouterr().err == "error: there is no command 'recpe' (did you mean 'recipe'?)\n"
