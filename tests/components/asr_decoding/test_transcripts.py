import json
import re

import pytest

from components.decoding import Transcript, Word, words_of, write_transcripts
from components.decoding.transcripts import as_ctm, as_srt, as_textgrid
from components.models.asr.types import Hypothesis
from components.text import CharTokenizer, PhonemeTokenizer
from utils.errors import UserError

CHARS = CharTokenizer("abcdefghijklmnopqrstuvwxyz'\"<>- ")


def said(text, begin=0.0, step=0.1, tokenizer=CHARS):
    tokens = tokenizer.encode(text)
    times = [(begin + step * at, begin + step * (at + 1)) for at in range(len(tokens))]
    return Hypothesis(tokens, -1.5, times, [0.5] * len(tokens), {"ctc": -1.0, "word_lm": -0.5})


def test_words_have_the_times_of_their_letters():
    hypothesis = said("to be")
    hypothesis.confidences = [1.0, 0.5, 0.0, 0.2, 0.4]
    first, second = words_of(hypothesis, CHARS, begin=2.0)
    assert (first.text, second.text) == ("to", "be")
    assert [first.begin, first.end, second.begin, second.end] == pytest.approx([2.0, 2.2, 2.3, 2.5])
    assert [first.confidence, second.confidence] == pytest.approx([0.75, 0.3])
    assert words_of(Hypothesis(CHARS.encode("ab"), 0.0), CHARS) == [Word("ab", None, None, None)]


def test_phones_are_words_where_nothing_parts_them():
    phones = PhonemeTokenizer(["tʃ", "iː", "z"])
    assert [word.text for word in words_of(said("tʃ iː z", tokenizer=phones), phones)] == ["tʃ", "iː", "z"]


def test_all_files_are_written(tmp_path):
    transcripts = [
        Transcript("b/../x", [said("to be"), said("two bee")], 1.0),
        Transcript("a", [said("or")], 0.5, begin=3.0),
        Transcript("a", [said("not")], 0.5),
        Transcript(".c", [Hypothesis([], float("-inf"))], 0.0),
    ]
    written = write_transcripts(tmp_path, transcripts, CHARS)
    names = sorted(path.relative_to(tmp_path).as_posix() for path in written)
    recordings = ("%2Ec", "a", "b%2F..%2Fx")
    assert names == sorted(
        ["text.tsv", "n_best.jsonl", "words.ctm"]
        + [f"srt/{name}.srt" for name in recordings]
        + [f"textgrid/{name}.TextGrid" for name in recordings]
    )
    assert (tmp_path / "text.tsv").read_text() == "b/../x\tto be\na\tor\na\tnot\n.c\t\n"
    lines = [json.loads(line, parse_constant=pytest.fail) for line in (tmp_path / "n_best.jsonl").open()]
    assert [one["text"] for one in lines[0]["n_best"]] == ["to be", "two bee"]
    assert lines[0]["n_best"][0]["scores"] == {"ctc": -1.0, "word_lm": -0.5}
    assert lines[1]["n_best"][0]["words"] == [{"word": "or", "begin": 3.0, "end": 3.2, "confidence": 0.5}]
    assert lines[3]["n_best"] == [{"text": "", "score": None, "scores": {}, "tokens": [], "words": []}]


def test_ctm_is_sorted_and_has_six_fields_whatever_the_names():
    transcripts = [
        Transcript("b b", [said("to be")], 1.0, channel=2),
        Transcript(";;a", [said("or")], 0.5, begin=3.0),
        Transcript(";;a", [said("not")], 0.5),
    ]
    assert as_ctm(transcripts, CHARS).splitlines() == [
        "_;a 1 0.000 0.300 not 0.5000",
        "_;a 1 3.000 0.200 or 0.5000",
        "b_b 2 0.000 0.200 to 0.5000",
        "b_b 2 0.300 0.200 be 0.5000",
    ]


def test_captions_are_split_at_pauses_and_length_and_hold_no_arrow():
    parts = [
        Transcript("a", [said("to --> be")], 1.0),
        Transcript("a", [said("or not " * 16, step=0.01)], 4.0, begin=3600.9),
    ]
    blocks = as_srt(parts, CHARS).split("\n\n")
    assert blocks[0] == "1\n00:00:00,000 --> 00:00:00,900\nto -> be"
    assert blocks[1].startswith("2\n01:00:00,900 --> 01:00:01,")
    assert all(re.fullmatch(r"\d+\n[\d:,]{12} --> [\d:,]{12}\n[^\n]+\n?", block) for block in blocks)
    assert max(len(block.splitlines()[2]) for block in blocks) <= 84
    assert [block.split("\n")[0] for block in blocks] == [str(number) for number in range(1, len(blocks) + 1)]
    assert as_srt([Transcript("a", [], 1.0)], CHARS) == ""


def test_a_textgrid_covers_the_recording_and_doubles_quotes():
    grid = as_textgrid([Transcript("a", [said('to "be"', begin=0.2)], 2.0)], CHARS)
    words, tokens = (section.split("intervals: size")[1] for section in grid.split("item [")[2:])
    found = re.findall(r'xmin = ([\d.]+)\s+xmax = ([\d.]+)\s+text = "(.*)"\n', words)
    assert [(float(begin), float(end), text) for begin, end, text in found] == [
        (0.0, 0.2, ""),
        (0.2, 0.4, "to"),
        (0.4, 0.5, ""),
        (0.5, 0.9, '""be""'),
        (0.9, 2.0, ""),
    ]
    edges = re.findall(r"xmin = ([\d.]+)\s+xmax = ([\d.]+)\s+text", tokens)
    assert [end for _, end in edges[:-1]] == [begin for begin, _ in edges[1:]]
    assert len(edges) == 7 + 2


def test_a_textgrid_is_read_by_others(tmp_path):
    praatio = pytest.importorskip("praatio.textgrid")
    overlapping = said("to be")
    overlapping.times[1] = (0.05, 0.35)
    overlapping.times[4] = (0.45, 0.45)  # of no length
    transcripts = [
        Transcript("a", [said('say "hi"', begin=0.2)], 2.0),
        Transcript("a", [overlapping], 0.4, begin=2.0),
        Transcript("b", [], 0.0),
    ]
    write_transcripts(tmp_path, transcripts, CHARS, ["textgrid"])
    grid = praatio.openTextgrid(str(tmp_path / "textgrid" / "a.TextGrid"), includeEmptyIntervals=False)
    assert [entry.label for entry in grid.getTier("words").entries] == ["say", '"hi"', "to", "be"]
    assert grid.maxTimestamp == pytest.approx(2.45)
    assert praatio.openTextgrid(str(tmp_path / "textgrid" / "b.TextGrid"), includeEmptyIntervals=True).tierNames


def test_formats_with_times_ask_for_a_decoder_that_knows_them(tmp_path):
    untimed = [Transcript("a", [Hypothesis(CHARS.encode("ab"), 0.0)], 1.0)]
    for name in ("ctm", "srt", "textgrid"):
        with pytest.raises(UserError, match="needs times"):
            write_transcripts(tmp_path / "out", untimed, CHARS, ["text", name])
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match="no format 'vtt'"):
        write_transcripts(tmp_path, untimed, CHARS, ["vtt"])
