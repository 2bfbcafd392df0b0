import json
import multiprocessing

import pytest
from omegaconf import OmegaConf

from components.data import write_manifest
from components.text import (
    CharTokenizer,
    Normalize,
    PhonemeTokenizer,
    load_tokenizer,
    texts_of,
    tokenizer_of,
    train_tokenizer,
)
from components.text.__main__ import main
from utils.build import build
from utils.compose import CONFIGS, Request, compose_task
from utils.config import register_omegaconf_resolvers
from utils.errors import UserError
from utils.validate import validate

PLAIN = Normalize(case="lower", punctuation="remove")
OPTIONS = sorted(path.stem for path in (CONFIGS / "tokenizer").glob("*.yaml"))
NUM_OPTIONS = 9


def manifest(folder, texts, name="train.jsonl", **fields):
    audio = {"audio_path": "a.wav", "duration": 1.0, "sample_rate": 8_000}
    write_manifest(folder / name, ({"id": str(i), **audio, "text": text, **fields} for i, text in enumerate(texts)))
    return folder / name


def test_a_vocabulary_is_that_of_the_normalised_texts_in_the_order_of_the_alphabet():
    tokenizer = train_tokenizer(["Bad cab!", "A\u0301 dab"], "char", PLAIN)
    assert tokenizer.symbols == [" ", "a", "b", "c", "d", "á"]
    assert train_tokenizer(["one two", "Two"], "word", PLAIN).symbols == ["one", "two"]
    assert train_tokenizer([["tʃ", "iː"], "z iː"], "phoneme").symbols == ["iː", "tʃ", "z"]


def test_the_rare_are_left_out():
    assert train_tokenizer(["aaabbc"], "char", vocab_size=6).symbols == ["a", "b"]
    assert train_tokenizer(["aaabbc"], "char", min_count=3).symbols == ["a"]
    assert train_tokenizer(["cab"], "char", vocab_size=5).symbols == ["a"]
    with pytest.raises(UserError, match="no symbol that comes 9 times"):
        train_tokenizer(["a"], "char", min_count=9)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"kind": "chars"}, r"'chars' is none of .*did you mean 'char'"),
        ({"kind": "bpe"}, "say how many pieces with vocab_size"),
        ({"kind": "char", "byte_fallback": True}, "byte_fallback are options of bpe and unigram"),
    ],
)
def test_options_that_do_not_fit_the_kind_are_refused(options, sentence):
    with pytest.raises(UserError, match=sentence):
        train_tokenizer(["a"], **options)


def test_texts_come_from_manifests_and_plain_files(tmp_path):
    assert list(texts_of(manifest(tmp_path, ["a b", "c"]))) == ["a b", "c"]
    assert list(texts_of(manifest(tmp_path, ["a"], phonemes=["x", "y"]), "phonemes")) == [["x", "y"]]
    (tmp_path / "lines.txt").write_text("a b\n\nc\n")
    assert list(texts_of(tmp_path / "lines.txt")) == ["a b", "c"]
    with pytest.raises(UserError, match=r"not one record has 'caption'$"):
        list(texts_of(tmp_path / "train.jsonl", "caption"))
    with pytest.raises(UserError, match=r"not one record has 'text': in a folder it is FILE.txt"):
        list(texts_of(manifest(tmp_path, [""])))
    (tmp_path / "lines.txt").write_bytes(b"a\n\xff\n")
    with pytest.raises(UserError, match=r"lines.txt:2: it is not UTF-8"):
        list(texts_of(tmp_path / "lines.txt"))


def test_a_tokenizer_is_made_once_and_kept(tmp_path):
    source, path = manifest(tmp_path, ["ab", "ba"]), tmp_path / "cache" / "char.json"
    made = tokenizer_of(source, "char", path, normalize=PLAIN)
    written = path.stat().st_mtime_ns
    again = tokenizer_of(source, "char", path, normalize=PLAIN)
    assert again.fingerprint == made.fingerprint
    assert path.stat().st_mtime_ns == written
    source.unlink()  # the file is enough, on another machine say
    assert tokenizer_of(source, "char", path, normalize=PLAIN).symbols == ["a", "b"]


def test_a_file_of_other_texts_or_settings_is_not_taken_in_silence(tmp_path):
    source, path = manifest(tmp_path, ["ab"]), tmp_path / "char.json"
    tokenizer_of(source, "char", path)
    with pytest.raises(UserError, match=r"made with min_count=1, not 2: remove it, or keep the new one elsewhere"):
        tokenizer_of(source, "char", path, min_count=2)
    manifest(tmp_path, ["abc"])
    with pytest.raises(UserError, match=r"made of .*train.jsonl as it was before"):
        tokenizer_of(source, "char", path)


def test_one_that_was_made_at_the_prompt_is_taken_as_it_is(tmp_path):
    CharTokenizer("xyz").save(tmp_path / "char.json")
    assert tokenizer_of(tmp_path / "nowhere.jsonl", "char", tmp_path / "char.json").symbols == ["x", "y", "z"]


def _make(source, path, results):
    results.put(tokenizer_of(source, "char", path).fingerprint)


@pytest.mark.slow
def test_processes_that_ask_at_once_get_one_and_the_same(tmp_path):
    source, path = manifest(tmp_path, ["some text"] * 2000), tmp_path / "char.json"
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    processes = [context.Process(target=_make, args=(source, path, results)) for _ in range(3)]
    for process in processes:
        process.start()
    found = {results.get(timeout=60) for _ in processes}
    for process in processes:
        process.join()
    assert found == {load_tokenizer(path).fingerprint}
    assert [p.name for p in tmp_path.iterdir() if "partial" in p.name] == []


# ------------------------------------------------------------------------------------------------------------- configs


def test_all_options_are_found():
    assert len(OPTIONS) == NUM_OPTIONS


@pytest.mark.parametrize("name", OPTIONS)
def test_an_option_is_valid_and_builds(name, tmp_path):
    register_omegaconf_resolvers()
    if name in ("bpe", "unigram"):
        pytest.importorskip("sentencepiece")
    source = manifest(tmp_path, ["The cat sat.", "A dog, a cat"], phonemes=["a", "b"])
    CharTokenizer("ab").save(tmp_path / "own.json")
    (tmp_path / "vocab.json").write_text('{"<pad>": 0, "a": 1}')
    given = {"file": f"path={tmp_path}/own.json", "phoneme_vocabulary": f"symbols={tmp_path}/vocab.json"}
    overrides = ["~experiment", f"+tokenizer={name}", f"cache_dir={tmp_path}/cache"]
    if name != "byte":
        overrides.append(f"tokenizer.{given.get(name, f'manifest={source}')}")
    overrides += ["tokenizer.vocab_size=16"] if name in ("bpe", "unigram") else []
    config = compose_task(Request(CONFIGS, "default", tuple(overrides)))
    node = OmegaConf.create({"tokenizer": config.tokenizer, "cache_dir": config.cache_dir})
    assert validate(node) == []
    tokenizer = build(node, "tokenizer")
    assert tokenizer.vocab_size > 4
    if "path" in node.tokenizer and name != "file":
        assert load_tokenizer(node.tokenizer.path).fingerprint == tokenizer.fingerprint
        assert node.tokenizer.path.startswith(f"{tmp_path}/cache/tokenizers/{node.tokenizer.kind}-")


# -------------------------------------------------------------------------------------------------------------- prompt


def test_the_prompt_makes_shows_and_uses_a_tokenizer(tmp_path, capsys):
    source, path = manifest(tmp_path, ["The cat.", "A bat"]), str(tmp_path / "t.json")
    settings = ["kind=char", "normalize.case=lower", "normalize.punctuation=remove"]
    assert main(["train", *settings, str(source), path]) == 0
    printed = capsys.readouterr().out
    assert "char | 11 tokens" in printed
    assert "0 of 12 tokens are unknown, in 0 of 2 texts" in printed
    assert main(["encode", path, "A cat", "bee"]) == 0
    ids = capsys.readouterr().out.splitlines()
    assert main(["decode", path, *ids[0].split()]) == 0
    assert capsys.readouterr().out == "a cat\n"
    assert main(["encode", path, "Bee", "--pieces"]) == 0
    assert capsys.readouterr().out == "b e e\n"
    other = manifest(tmp_path, ["a zoo"], "other.jsonl")
    assert main(["unknown", path, str(other)]) == 0
    assert "3 of 5 tokens are unknown, in 1 of 1 texts: 'o' 2x, 'z' 1x" in capsys.readouterr().out
    assert main(["train", "kind=word", str(source), str(tmp_path / "words.json")]) == 0
    capsys.readouterr()
    assert main(["rows", path, str(tmp_path / "words.json")]) == 0
    assert "4 symbols keep their rows; 4 are new" in capsys.readouterr().out
    assert main(["show", path]) == 0
    assert load_tokenizer(path).fingerprint[:16] in capsys.readouterr().out
    assert json.loads((tmp_path / "t.json").read_text())["made_of"]["sources"] == [str(source)]


def test_the_prompt_reads_lines(tmp_path, capsys, monkeypatch):
    PhonemeTokenizer(["tʃ", "iː"]).save(tmp_path / "t.json")
    monkeypatch.setattr("sys.stdin", iter(["tʃiː\n", "iː\n"]))
    assert main(["encode", str(tmp_path / "t.json")]) == 0
    assert capsys.readouterr().out == "4 5\n5\n"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["a.jsonl", "t.json"], "name a kind, kind=char|word"),
        (["kind=char", "t.json"], "name a manifest"),
        (["kind=char", "a.jsonl", "t.model"], "t.model does not end in .json"),
        (["kind=char", "size=3", "a.jsonl", "t.json"], "'size' is no setting"),
        (["kind=char", "normalize=lower", "a.jsonl", "t.json"], "normalize.case=lower"),
        (["kind=char", "a.jsonl", "t.json"], "a.jsonl"),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(arguments, sentence, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["train", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert sentence in error
