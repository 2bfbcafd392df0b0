from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from components.decoding import CtcGreedy, CtcPrefixBeam
from components.decoding.__main__ import main
from components.text import CharTokenizer
from tests.components.asr_decoding.test_ctc_decoders import decode

FOLDER = Path(__file__).resolve().parents[3] / "configs" / "decoder"
FILES = {"ctc_greedy": CtcGreedy, "ctc_prefix_beam": CtcPrefixBeam, "ctc_prefix_beam_lm": CtcPrefixBeam}


def build(name, **changes):
    node = OmegaConf.load(FOLDER / f"{name}.yaml")
    tokenizer = {"_target_": "components.text.CharTokenizer", "symbols": "abc "}
    config = OmegaConf.create({"tokenizer": tokenizer, "decoder": OmegaConf.merge(node, changes)})
    return instantiate(config.decoder)


@pytest.mark.parametrize("name", FILES)
def test_a_decoder_is_built_of_its_yaml_and_decodes(name):
    decoder = build(name)
    assert type(decoder) is FILES[name]
    assert decoder.needs == ("ctc",)
    found = decode(decoder, torch.randn(2, 20, 8).log_softmax(2), [20, 9])
    assert len(found) == 2
    assert all(utterance[0].times is not None for utterance in found)


def test_models_of_the_command_and_hotwords_go_into_the_yaml(tmp_path):
    (tmp_path / "corpus.txt").write_text("ab cab\ncab ab ab\nb ab\n")
    CharTokenizer("abc ").save(tmp_path / "tokenizer.json")
    corpus, words, chars = (str(tmp_path / name) for name in ("corpus.txt", "words.arpa", "chars.arpa"))
    assert main(["ngram", corpus, words]) == 0
    assert main(["ngram", corpus, chars, "order=4", f"tokenizer={tmp_path / 'tokenizer.json'}"]) == 0
    decoder = build(
        "ctc_prefix_beam_lm", word_lm=words, token_lm=chars, hotwords={"b ab": 2.0}, word_bonus=1.0, insertion_bonus=0.5
    )
    log_probs = torch.randn(2, 20, 8, generator=torch.Generator().manual_seed(0)).log_softmax(2)
    for utterance in decode(decoder, log_probs, [20, 9]):
        for one in utterance:
            assert {*one.scores} == {"ctc", "insertion", "word_insertion", "token_lm", "word_lm", "hotwords"}
            assert one.score == pytest.approx(sum(one.scores.values()), abs=1e-3)
