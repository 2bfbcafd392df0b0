"""Hypotheses as files: text, n-best lists, CTM, SRT, Praat's TextGrid."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from components.models.asr.types import Hypothesis
from utils.errors import UserError
from utils.io import write_text

if TYPE_CHECKING:
    from components.text.tokenizer import Tokenizer

_CAPTION_SECONDS, _CAPTION_CHARACTERS, _CAPTION_PAUSE = 6.0, 84, 0.8
_BLANKS = re.compile(r"\s+")


@dataclass
class Transcript:
    """An utterance and what was heard in it.

    Attributes:
        id: of the utterance, or of the recording that it is a part of.
        hypotheses: best first.
        duration: seconds.
        begin: seconds from the beginning of the recording; the hypotheses' times are from here.
        channel: of the recording, from 1.
    """

    id: str
    hypotheses: list[Hypothesis]
    duration: float
    begin: float = 0.0
    channel: int = 1


@dataclass(frozen=True)
class Word:
    """A word; seconds from and to and its confidence (the mean of its tokens'), None where they are not known."""

    text: str
    begin: float | None
    end: float | None
    confidence: float | None


def words_of(hypothesis: Hypothesis, tokenizer: Tokenizer, begin: float = 0.0) -> list[Word]:
    """The words of a hypothesis, as the tokenizer parts them: each from its first token's begin to its last one's end.

    Args:
        hypothesis: with times or without.
        tokenizer: with `word_spans`.
        begin: seconds that are added to the times.
    """
    words = []
    for text, first, stop in tokenizer.word_spans(hypothesis.tokens):
        span: tuple[float | None, float | None] = (None, None)
        if hypothesis.times is not None:
            span = hypothesis.times[first][0] + begin, hypothesis.times[stop - 1][1] + begin
        sure = None
        if hypothesis.confidences is not None:
            sure = sum(hypothesis.confidences[first:stop]) / (stop - first)
        words.append(Word(text, *span, sure))
    return words


def as_text(transcripts: Iterable[Transcript], tokenizer: Tokenizer) -> str:
    """A line for each utterance: its id, a tab, the best text."""
    return "".join(f"{_one_line(one.id)}\t{_one_line(_best_text(one, tokenizer))}\n" for one in transcripts)


def as_n_best(transcripts: Iterable[Transcript], tokenizer: Tokenizer) -> str:
    """A JSON object for each utterance and line: `id`, `begin`, `duration`, `text`, and `n_best`, a list.

    Each hypothesis has `text`, `score`, `scores`, `tokens` and `words`, each of those with `word`, `begin`, `end` and
    `confidence`; a number that is not finite or not known is null.
    """
    lines = []
    for one in transcripts:
        content = {
            "id": one.id,
            "begin": one.begin,
            "duration": one.duration,
            "text": _best_text(one, tokenizer),
            "n_best": [_described(hypothesis, tokenizer, one.begin) for hypothesis in one.hypotheses],
        }
        lines.append(json.dumps(content, ensure_ascii=False, allow_nan=False) + "\n")
    return "".join(lines)


def as_ctm(transcripts: Iterable[Transcript], tokenizer: Tokenizer) -> str:
    """NIST's time-marked words: recording, channel, begin, duration, word, confidence; sorted as sclite wants it.

    Raises:
        UserError: the decoder gave no times.
    """
    rows = []
    for one in transcripts:
        name = _BLANKS.sub("_", one.id.strip()) or "_"
        name = name.replace(";", "_", 1) if name.startswith(";") else name  # else it is a comment
        for word in _timed_words(one, tokenizer, "CTM"):
            sure = 1.0 if word.confidence is None else word.confidence
            rows.append((name, one.channel, word.begin, word.end - word.begin, _BLANKS.sub("_", word.text), sure))
    rows.sort(key=lambda row: row[:3])
    return "".join(
        f"{name} {channel} {at:.3f} {lasts:.3f} {text} {sure:.4f}\n" for name, channel, at, lasts, text, sure in rows
    )


def as_srt(transcripts: Iterable[Transcript], tokenizer: Tokenizer) -> str:
    """Captions of one recording (SubRip); a new one after a pause, 84 characters or 6 seconds.

    Raises:
        UserError: the decoder gave no times.
    """
    words = [word for one in transcripts for word in _timed_words(one, tokenizer, "SRT")]
    blocks = []
    for number, caption in enumerate(_captions(words), start=1):
        text = " ".join(_one_line(word.text) for word in caption).replace("-->", "->")
        blocks.append(f"{number}\n{_clock(caption[0].begin)} --> {_clock(caption[-1].end)}\n{text}\n")
    return "\n".join(blocks)


def as_textgrid(transcripts: Sequence[Transcript], tokenizer: Tokenizer) -> str:
    """Words and tokens of one recording in Praat's long text format, a tier each; silence is an empty interval.

    Raises:
        UserError: the decoder gave no times.
    """
    words, tokens = [], []
    for one in transcripts:
        words += [(word.begin, word.end, word.text) for word in _timed_words(one, tokenizer, "TextGrid")]
        for best in one.hypotheses[:1]:
            symbols = [tokenizer.tokens[token] for token in best.tokens]
            spans = [(begin + one.begin, end + one.begin) for begin, end in best.times or []]
            tokens += [(*span, symbol) for span, symbol in zip(spans, symbols)]
    length = max([one.begin + one.duration for one in transcripts] + [end for _, end, _ in words + tokens], default=0.0)
    length = max(length, 0.001)  # Praat has no empty grid
    tiers = {"words": _intervals(words, length), "tokens": _intervals(tokens, length)}
    lines = ['File type = "ooTextFile"', 'Object class = "TextGrid"', "", "xmin = 0", f"xmax = {length:.6f}"]
    lines += ["tiers? <exists>", f"size = {len(tiers)}", "item []:"]
    for number, (name, intervals) in enumerate(tiers.items(), start=1):
        lines += [f"    item [{number}]:", '        class = "IntervalTier"', f'        name = "{name}"']
        lines += ["        xmin = 0", f"        xmax = {length:.6f}", f"        intervals: size = {len(intervals)}"]
        for index, (begin, end, text) in enumerate(intervals, start=1):
            quoted = _one_line(text).replace('"', '""')
            lines += [f"        intervals [{index}]:", f"            xmin = {begin:.6f}"]
            lines += [f"            xmax = {end:.6f}", f'            text = "{quoted}"']
    return "\n".join(lines) + "\n"


# format -> (how it is written, name of its file, for all utterances; or its ending, for each recording one)
_WHOLE: dict[str, tuple[Callable[..., str], str]] = {
    "text": (as_text, "text.tsv"),
    "n_best": (as_n_best, "n_best.jsonl"),
    "ctm": (as_ctm, "words.ctm"),
}
_EACH: dict[str, tuple[Callable[..., str], str]] = {"srt": (as_srt, ".srt"), "textgrid": (as_textgrid, ".TextGrid")}
FORMATS = (*_WHOLE, *_EACH)


def write_transcripts(
    folder: str | Path, transcripts: Sequence[Transcript], tokenizer: Tokenizer, formats: Sequence[str] = FORMATS
) -> list[Path]:
    """Write transcripts into a folder: `text.tsv`, `n_best.jsonl`, `words.ctm`, `srt/ID.srt`, `textgrid/ID.TextGrid`.

    Args:
        folder: made where it is not there.
        transcripts: several with one id are parts of one recording.
        tokenizer: that the tokens are of.
        formats: of `text`, `n_best`, `ctm`, `srt`, `textgrid`.

    Returns:
        The files.

    Raises:
        UserError: an unknown format, or one that needs times where the decoder gave none.
    """
    if unknown := set(formats) - set(FORMATS):
        raise UserError(f"there is no format {min(unknown)!r}, only {', '.join(FORMATS)}")
    folder, written = Path(folder).expanduser(), []
    contents: dict[Path, str] = {}
    for name in formats:
        if name in _WHOLE:
            render, file = _WHOLE[name]
            contents[folder / file] = render(transcripts, tokenizer)
            continue
        render, ending = _EACH[name]
        in_order = sorted(transcripts, key=lambda one: (one.id, one.begin))
        for recording, parts in groupby(in_order, key=lambda one: one.id):
            contents[folder / name / f"{_file_name(recording)}{ending}"] = render(list(parts), tokenizer)
    for path, content in contents.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, content)
        written.append(path)
    return written


def _best_text(transcript: Transcript, tokenizer: Tokenizer) -> str:
    return tokenizer.decode(transcript.hypotheses[0].tokens) if transcript.hypotheses else ""


def _described(hypothesis: Hypothesis, tokenizer: Tokenizer, begin: float) -> dict[str, Any]:
    return {
        "text": tokenizer.decode(hypothesis.tokens),
        "score": _number(hypothesis.score),
        "scores": {name: _number(score) for name, score in hypothesis.scores.items()},
        "tokens": list(map(int, hypothesis.tokens)),
        "words": [
            {
                "word": word.text,
                "begin": _number(word.begin),
                "end": _number(word.end),
                "confidence": _number(word.confidence),
            }
            for word in words_of(hypothesis, tokenizer, begin)
        ],
    }


def _number(value: float | None) -> float | None:
    return float(value) if value is not None and math.isfinite(value) else None


def _timed_words(transcript: Transcript, tokenizer: Tokenizer, wanted_by: str) -> list[Word]:
    for best in transcript.hypotheses[:1]:
        if best.tokens and best.times is None:
            raise UserError(
                f"{transcript.id}: {wanted_by} needs times, and this decoder gives none: take one that does"
            )
        return words_of(best, tokenizer, transcript.begin)
    return []


def _captions(words: Sequence[Word]) -> list[list[Word]]:
    captions: list[list[Word]] = []
    length = 0
    for word in words:
        fits = captions and (
            length + 1 + len(word.text) <= _CAPTION_CHARACTERS
            and word.begin - captions[-1][-1].end <= _CAPTION_PAUSE
            and word.end - captions[-1][0].begin <= _CAPTION_SECONDS
        )
        if not fits:
            captions.append([])
            length = -1
        captions[-1].append(word)
        length += 1 + len(word.text)
    return captions


def _clock(seconds: float) -> str:
    milliseconds = max(round(seconds * 1000), 0)
    minutes, milliseconds = divmod(milliseconds, 60_000)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{milliseconds // 1000:02d},{milliseconds % 1000:03d}"


def _intervals(marks: Sequence[tuple[float, float, str]], length: float) -> list[tuple[float, float, str]]:
    """The same without gaps and overlaps, from 0 to `length`; a mark of no length is dropped."""
    intervals, at = [], 0.0
    for begin, end, text in sorted(marks):
        begin, end = round(max(begin, at), 6), round(min(end, length), 6)
        if end <= begin:
            continue
        if begin > at:
            intervals.append((at, begin, ""))
        intervals.append((begin, end, text))
        at = end
    if at < round(length, 6) or not intervals:
        intervals.append((at, length, ""))
    return intervals


def _one_line(text: str) -> str:
    return _BLANKS.sub(" ", text).strip()


def _file_name(name: str) -> str:
    """An id as a name of a file: what would leave the folder is written in percent."""
    written = quote(name, safe=" ()[]{}+=,@#~^&!'") or "_"
    return f"%2E{written[1:]}" if written.startswith(".") else written
