"""From a batch to transcripts that a person can read, and to files of them.  Shapes: B batch, T samples."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from components.decoding import Transcript, transcribe_long, words_of, write_transcripts
from components.metrics.error_rates import RATE_NAMES, error_counts
from components.metrics.recognition_report import RecognitionReport
from components.models.asr import AsrModel, Hypothesis

Record = dict[str, Any]

_FRAME_BY_FRAME = {"ctc", "transducer"}  # heads for which chunks can be put together before they are decoded


class AsrPredictor:
    """Recognises, and scores what was recognised where the truth is known.

    A record is `{"id", "hypothesis", "reference"?, "score", "duration": seconds, "words": [{"word", "begin", "end",
    "confidence"}], "n_best": [{"text", "score", "scores", "tokens", "times"}], <field>: ...}`. Times are seconds.

    Args:
        decoder: `(model, encoded) -> n-best hypotheses of each utterance`.
        tokenizer: the model's.
        num_best: hypotheses that a record keeps.
        formats: files beside the records, of `text`, `n_best`, `ctm`, `srt`, `textgrid`.
        chunk_seconds: longer recordings are heard in chunks of this length; None: whole.
        context_seconds: that a chunk hears more on either side.
        unit: of `python inference.py evaluate=true`: `word`, `char`, `token`.
        fields: of the batch, that records keep; errors are told apart by them, and by duration.
    """

    def __init__(
        self,
        decoder: Callable[..., list[list[Hypothesis]]],
        tokenizer: Any,
        num_best: int = 1,
        formats: Sequence[str] = (),
        chunk_seconds: float | None = 30.0,
        context_seconds: float = 4.0,
        unit: str = "word",
        fields: Sequence[str] = (),
    ) -> None:
        self.decoder, self.tokenizer, self.num_best, self.formats = decoder, tokenizer, num_best, tuple(formats)
        self.chunk_seconds, self.context_seconds = chunk_seconds, context_seconds
        self.unit, self.fields = unit, tuple(fields)
        self.phases: dict[str, float] = {}

    def __call__(self, model: AsrModel, batch: Mapping[str, Any]) -> list[Record]:
        """A record for each utterance of a batch with `id`, `waveform [B, 1, T]`, `audio_lens`, and `text` if known."""
        lens, rate = batch["audio_lens"], model.frontend.sample_rate
        longest = float(lens.max()) / rate
        if self.chunk_seconds is not None and longest > self.chunk_seconds + 2 * self.context_seconds:
            found = [self._long(model, row[0, :length]) for row, length in zip(batch["waveform"], lens.tolist())]
        else:
            begun = time.perf_counter()
            encoded = model.encode(batch)
            heard = time.perf_counter()
            found = self.decoder(model, encoded)
            self.phases = {"encode": heard - begun, "decode": time.perf_counter() - heard}
        return [self._record(batch, i, best, int(lens[i]) / rate) for i, best in enumerate(found)]

    def _long(self, model: AsrModel, waveform: Any) -> list[Hypothesis]:
        join = "frames" if set(self.decoder.needs) <= _FRAME_BY_FRAME else "tokens"
        return transcribe_long(model, self.decoder, waveform, self.chunk_seconds, self.context_seconds, join)

    def _record(self, batch: Mapping[str, Any], i: int, hypotheses: Sequence[Hypothesis], duration: float) -> Record:
        best = hypotheses[0] if hypotheses else Hypothesis([], 0.0)
        record: Record = {"id": batch["id"][i], "hypothesis": self.tokenizer.decode(best.tokens)}
        if "text" in batch:
            record["reference"] = batch["text"][i]
        record |= {"score": best.score, "duration": duration}
        record |= {name: batch[name][i] for name in self.fields if name in batch}
        words = words_of(best, self.tokenizer)
        record["words"] = [
            {"word": word.text, "begin": word.begin, "end": word.end, "confidence": word.confidence} for word in words
        ]
        record["n_best"] = [self._described(one) for one in hypotheses[: self.num_best]]
        return record

    def _described(self, one: Hypothesis) -> Record:
        told: Record = {"text": self.tokenizer.decode(one.tokens), "score": one.score, "scores": one.scores}
        return told | {"tokens": one.tokens, "times": one.times, "confidences": one.confidences}

    def score(self, records: Sequence[Record]) -> dict[str, float]:
        """Error rates in words and characters, or in tokens, over the utterances whose truth is known."""
        known = [record for record in records if "reference" in record]
        if not known:
            return {}
        references, hypotheses = ([record[key] for record in known] for key in ("reference", "hypothesis"))
        units = ("token",) if self.unit == "token" else ("word", "char")
        counts = {unit: error_counts(references, hypotheses, unit) for unit in units}
        rates = {RATE_NAMES[unit]: found.rate for unit, found in counts.items()}
        return rates | {"ser": counts[units[0]].item_rate, "utterances": len(known)}

    def leave(self, records: Sequence[Record], folder: Path) -> list[Path]:
        """Write the files of `formats` into `folder`."""
        if not self.formats:
            return []
        transcripts = [
            Transcript(record["id"], [_hypothesis(one) for one in record["n_best"]], record["duration"])
            for record in records
        ]
        return write_transcripts(folder, transcripts, self.tokenizer, self.formats)

    def evaluate(self, made: Any, options: Mapping[str, Any]) -> str:
        """Errors with intervals, by the fields of the records and by duration; the report lies beside the records."""
        known = [record for record in made.records if "reference" in record]
        if not known:
            return f"{made.name}: no reference is known, there is nothing to score"
        report = RecognitionReport(known, self.unit, slices=(*self.fields, "duration"))
        folder = made.output.records.with_suffix(".report")
        report.write(folder)
        return f"{report}\n-> {folder}"


def _hypothesis(described: Mapping[str, Any]) -> Hypothesis:
    times = described["times"] and [tuple(span) for span in described["times"]]
    return Hypothesis(described["tokens"], described["score"], times, described["confidences"], described["scores"])
