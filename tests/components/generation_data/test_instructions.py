"""Wordings of an instruction."""

import pytest
import torch

from components.data.generation import Instructions
from tests.components.generation_data.sounds import clip_of
from utils.compose import CONFIGS
from utils.errors import UserError

TEMPLATES = ["say {text} like {speaker}", "{speaker} says {text}", "let {speaker} say {text}"]


def test_wordings_are_drawn_fixed_or_given(tmp_path):
    clip = clip_of(torch.zeros(1, 800), text="two", speaker="ben")
    torch.manual_seed(0)
    drawn = {Instructions(TEMPLATES)(clip) for _ in range(30)}
    assert drawn == {"say two like ben", "ben says two", "let ben say two"}
    assert Instructions(TEMPLATES, wording=1)(clip) == "ben says two"
    assert Instructions(TEMPLATES, wording="please {text}")(clip) == "please two"
    (tmp_path / "t.txt").write_text("# a comment\n\nonly {text}\n")
    assert Instructions(tmp_path / "t.txt")(clip) == "only two"


@pytest.mark.parametrize(
    ("templates", "wording", "sentence"),
    [
        ([], None, "there is no wording"),
        (["a"], 1, "there is no template 1"),
        (["say {text"], None, "'say {text' is none"),
        (["say {}"], None, "no name of a field"),
        ("nowhere.txt", None, "cannot read nowhere.txt"),
    ],
)
def test_templates_that_are_none_are_refused(templates, wording, sentence):
    with pytest.raises(UserError, match=sentence):
        Instructions(templates, wording)


def test_the_shipped_wordings_are_ten_a_task_and_held_out_ones_use_known_words():
    from omegaconf import OmegaConf

    from components.models.audio_generator.content_encoders.vocabulary import vocabulary_of

    values = {name: ["x"] for name in ("text", "speaker", "caption")}
    pool = OmegaConf.load(CONFIGS / "instructions" / "english.yaml")
    assert len(pool) >= 9
    for task, wordings in pool.items():
        assert (len(set(wordings.train)), len(set(wordings.held_out))) == (8, 2), task
        assert not set(wordings.train) & set(wordings.held_out)
        unknown = set(vocabulary_of(wordings.held_out, values)) - set(vocabulary_of(wordings.train, values))
        assert unknown == set(), task
