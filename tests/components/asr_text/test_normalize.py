import unicodedata

import pytest

from components.text import Normalize, graphemes
from utils.errors import UserError

PLAIN = Normalize(case="lower", punctuation="remove")


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("Don't  STOP – now!", "don't stop now"),
        ("‘Quoted’, 'single' she said…", "quoted single she said"),
        ("It’s 3.5 km, at 10:30, for 1,000.", "it's 3.5 km at 10:30 for 1,000"),
        ("well-known", "well known"),
        ("100 % & $5 (+2)", "100 % & $5 +2"),
        ("\ufeffso\u00adft\u200b\tlines\n", "soft lines"),
        ("...", ""),
    ],
)
def test_marks_go_and_numbers_stay(text, plain):
    assert PLAIN(text) == plain
    assert PLAIN(plain) == plain


def test_by_default_a_text_is_only_composed_and_tidied():
    assert Normalize()("  Ça,\tva?  ") == "Ça, va?"
    assert Normalize()(unicodedata.normalize("NFD", "é")) == "é"
    assert Normalize(form="NFKC")("ＡＢ") == "AB"
    assert Normalize(case="upper")("straße") == "STRASSE"


def test_lower_case_comes_out_composed_too():
    assert Normalize(form="NFC", case="lower")("Ȧ\u0307") == unicodedata.normalize("NFC", "ȧ\u0307")


def test_joiners_that_letters_need_are_kept():
    persian = "می\u200cخواهم"
    assert Normalize(case="lower", punctuation="remove")(persian) == persian


def test_spaces_of_mandarin_go_and_replacements_come_first():
    assert Normalize(spaces="remove")("甚至 出现 交易") == "甚至出现交易"
    assert Normalize(replace={"&": " and ", "<NOISE>": ""})("you&me <NOISE>") == "you and me"


def test_it_survives_json_and_refuses_what_it_does_not_know():
    own = Normalize(case="upper", replace={"a": "b"})
    assert Normalize.from_dict(own.as_dict()) == own
    with pytest.raises(UserError, match=r"normalize.case: 'lowr' is none of keep, lower, upper"):
        Normalize(case="lowr")
    with pytest.raises(UserError, match=r"normalize.cases: there is no such option"):
        Normalize.from_dict({"cases": "lower"})


def test_graphemes_are_those_of_unicodes_annex():
    regex = pytest.importorskip("regex")
    texts = ["abc", "e\u0301a", "นี้ดี", "किताब", "👩🏽‍🚀!", "한국어", "שָׁלוֹם", "ɑ̃ʁ", "مَرْحَبًا"]
    for text in texts:
        assert graphemes(text) == regex.findall(r"\X", text), text
