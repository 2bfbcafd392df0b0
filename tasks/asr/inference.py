"""From a batch to transcripts that a person can read, and to files of them.  Shapes: B batch, T samples."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from components.decoding import FORMATS, Transcript, transcribe_long, words_of, write_transcripts
from components.metrics.error_rates import RATE_NAMES, error_counts
from components.metrics.recognition_report import RecognitionReport
from components.models.asr import AsrModel, Hypothesis
from tasks.asr.decoders import check_heads, named_decoder
from utils.errors import UserError

Record = dict[str, Any]

_FRAME_BY_FRAME = {"ctc", "transducer"}  # heads for which chunks can be put together before they are decoded


class AsrPredictor:
    """Recognises, and scores what was recognised where the truth is known.

    A record is `{"id", "hypothesis", "reference"?, "score", "duration": seconds, "words": [{"word", "begin", "end",
    "confidence"}], "n_best": [{"text", "score", "scores", "tokens", "times", "confidences"}], <field>: ...}`. Times are
    seconds; with `unit="token"` the reference is what the tokenizer makes of the text, phones say.

    Args:
        decoder: `(model, encoded) -> n-best hypotheses of each utterance`; or a name, see `named_decoder`.
        tokenizer: the model's.
        num_best: hypotheses that a record keeps.
        formats: files beside the records, of `text`, `n_best`, `ctm`, `srt`, `textgrid`.
        chunk_seconds: recordings longer than this and twice the context are heard in chunks of it; None: whole.
        context_seconds: that a chunk hears more on either side.
        unit: of `python inference.py evaluate=true`: `word`, `char`, `token`.
        fields: of the batch, that records keep; errors are told apart by them, and by duration.

    Attributes:
        phases: seconds of the last call: `encode` and `decode`; of a long recording, where they alternate, `chunks`.

    Raises:
        UserError: an unknown format or unit, or no such decoder.
    """

    def __init__(
        self,
        decoder: Callable[..., list[list[Hypothesis]]] | str | Mapping[str, Any],
        tokenizer: Any,
        num_best: int = 1,
        formats: Sequence[str] = (),
        chunk_seconds: float | None = 30.0,
        context_seconds: float = 4.0,
        unit: str = "word",
        fields: Sequence[str] = (),
    ) -> None:
        if unknown := [name for name in formats if name not in FORMATS]:
            raise UserError(f"formats: {unknown[0]!r} is none of {', '.join(FORMATS)}")
        if unit not in RATE_NAMES:
            raise UserError(f"unit: {unit!r} is none of {', '.join(RATE_NAMES)}")
        is_named = isinstance(decoder, (str, Mapping))
        self.decoder: Any = named_decoder(decoder, tokenizer) if is_named else decoder
        self.tokenizer, self.num_best, self.formats = tokenizer, num_best, tuple(formats)
        self.chunk_seconds, self.context_seconds = chunk_seconds, context_seconds
        self.unit, self.fields = unit, tuple(fields)
        self.phases: dict[str, float] = {}

    def page(self, model: AsrModel, config: Any) -> Any:
        """A page on which to let the model listen to recordings; see `tasks.asr.page`."""
        from tasks.asr.page import build_page

        return build_page(model, self)

    def prepare(self, model: AsrModel) -> None:
        """Refuse a decoder for a model without what it reads.

        Raises:
            UserError: the model lacks a head.
        """
        check_heads(self.decoder, model)

    def __call__(self, model: AsrModel, batch: Mapping[str, Any]) -> list[Record]:
        """A record for each utterance of a batch with `id`, `waveform [B, 1, T]`, `audio_lens`, and `text` if known."""
        lens, rate = batch["audio_lens"], model.frontend.sample_rate
        longest, begun = float(lens.max()) / rate, time.perf_counter()
        if self.chunk_seconds is not None and longest > self.chunk_seconds + 2 * self.context_seconds:
            found = [self._long(model, row[0, :length]) for row, length in zip(batch["waveform"], lens.tolist())]
            self.phases = {"chunks": time.perf_counter() - begun}
        else:
            encoded = model.encode(batch)
            if encoded.hidden.is_cuda:
                torch.cuda.synchronize(encoded.hidden.device)
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
            in_tokens = self.unit == "token"
            record["reference"] = self.tokenizer.decode(batch["tokens"][i].tolist()) if in_tokens else batch["text"][i]
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
        times = one.times and [list(span) for span in one.times]
        return told | {"tokens": one.tokens, "times": times, "confidences": one.confidences}

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

    def leave(self, made: Any) -> str | None:
        """Write the files of `formats` of a `trainer.prediction.MadeSet`; says where they are."""
        if not self.formats:
            return None
        transcripts = [
            Transcript(record["id"], [_hypothesis(one) for one in record["n_best"]], record["duration"])
            for record in made.records
        ]
        folder = made.output.records.with_suffix("")
        write_transcripts(folder, transcripts, self.tokenizer, self.formats)
        return f"{made.name}: {', '.join(self.formats)} -> {folder}"

    def evaluate(self, made: Any, options: Mapping[str, Any]) -> str:
        """Errors with intervals, by the fields of the records and by duration; the report lies beside the records.

        Args:
            made: a `trainer.prediction.MadeSet`.
            options: `unit`, if it is to be another than the predictor's.
        """
        known = [record for record in made.records if "reference" in record]
        if not known:
            return f"{made.name}: no reference is known, there is nothing to score"
        report = RecognitionReport(known, options.get("unit") or self.unit, slices=(*self.fields, "duration"))
        folder = made.output.records.with_suffix(".report")
        report.write(folder)
        return f"{report}\n-> {folder}"


def _hypothesis(described: Mapping[str, Any]) -> Hypothesis:
    times = described["times"] and [tuple(span) for span in described["times"]]
    return Hypothesis(described["tokens"], described["score"], times, described["confidences"], described["scores"])
