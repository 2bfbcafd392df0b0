"""Everything the doctor can find: how grave it is, what it is called, what a person does about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from utils.errors import UserError

ERROR, WARNING, NOTE = "error", "warning", "note"
SEVERITIES = (ERROR, WARNING, NOTE)

# A problem the manifest reader found with a line is `line/<the reader's reason>`.
LINE = "line/"


class Problem(NamedTuple):
    """One thing wrong with one clip: a key of `KINDS`, and what was seen."""

    code: str
    detail: str


@dataclass(frozen=True)
class Kind:
    """A kind of problem: `error` drops the clip, `warning` keeps and lists it, `note` is only counted."""

    severity: str
    title: str
    remedy: str


KINDS = {
    # the manifest
    "bad_offset": Kind(ERROR, "segment lies outside of its file", "check offset and duration against the file"),
    "suspicious_key": Kind(WARNING, "key that looks misspelt", "rename it; as it stands nothing reads it"),
    "duration_differs": Kind(WARNING, "duration differs from the audio", "write the decoded length into the manifest"),
    "rate_differs": Kind(WARNING, "rate differs from the audio", "correct the manifest; training goes by the file"),
    "outside_folder": Kind(NOTE, "audio outside of the manifest's folder", "nothing, if you meant it"),
    # the file
    "missing_file": Kind(ERROR, "audio file missing", "check the path and whether the copy is complete"),
    "not_a_file": Kind(ERROR, "a folder or device, not an audio file", "point to a file"),
    "unreadable": Kind(ERROR, "cannot be opened as audio", "replace the file, or convert it to FLAC or WAV"),
    "decoder_failed": Kind(ERROR, "breaks off while decoding", "the file is damaged: fetch it again"),
    "decoder_died": Kind(ERROR, "kills the process that decodes it", "the file is damaged: fetch it again"),
    "no_samples": Kind(ERROR, "holds no samples", "record or fetch it again"),
    "truncated": Kind(ERROR, "shorter than its header or manifest says", "an interrupted copy: fetch it again"),
    "implausible_rate": Kind(ERROR, "implausible sample rate", "the header is damaged: write the true rate"),
    "no_channel": Kind(ERROR, "channel that the file has not", "correct `channel` in the manifest"),
    "header_size": Kind(WARNING, "header claims more than there is", "rewrite it; the header's duration is wrong"),
    "suffix_differs": Kind(WARNING, "suffix is not that of the content", "rename it; some libraries go by the suffix"),
    "decoder_complains": Kind(WARNING, "decoder complained but went on", "listen to it: parts may be damaged"),
    # the sound
    "non_finite": Kind(ERROR, "NaN or infinite samples", "export it again: one of them spoils a whole batch"),
    "near_empty": Kind(ERROR, "shorter than one 25 ms window", "leave it out, or record it again"),
    "too_short": Kind(ERROR, "shorter than --min-duration", "left out as you asked"),
    "too_long": Kind(ERROR, "longer than --max-duration", "left out as you asked; or cut it into segments"),
    "silent_with_text": Kind(ERROR, "a text, but silence", "the audio was lost or muted: fetch it again"),
    "silent": Kind(WARNING, "silence", "leave it out unless silence is one of your classes"),
    "mostly_silent": Kind(WARNING, "nearly all silence", "trim it, or leave it out"),
    "quiet": Kind(WARNING, "very quiet", "normalise the level, or check the recording"),
    "dc_offset": Kind(WARNING, "constant offset", "subtract the mean, or use a high-pass filter"),
    "clipped": Kind(WARNING, "clipped", "expect distortion; find a version with head room"),
    "over_unity": Kind(WARNING, "peak above full scale", "scale it down before writing it as integers"),
    "antiphase": Kind(WARNING, "channels cancel each other", "choose one: their mean is all but silence"),
    "dead_channel": Kind(WARNING, "a channel without sound", "choose a channel: the mean of all is too quiet"),
    "low_bandwidth": Kind(WARNING, "far less bandwidth than its rate allows", "upsampled or coded: find the original"),
    "low_rate": Kind(NOTE, "sample rate below that of the model", "the upper band will be empty"),
    # the text
    "missing_text": Kind(ERROR, "no text, where most clips have one", "transcribe it, or leave it out"),
    "blank_text": Kind(ERROR, "blank text", "transcribe it, or leave it out"),
    "control_characters": Kind(ERROR, "control characters in the text", "remove them; check how the text was made"),
    "out_of_vocabulary": Kind(ERROR, "characters outside of the vocabulary", "normalise it, or extend the vocabulary"),
    "ctc_infeasible": Kind(ERROR, "too few frames for its text (CTC)", "its loss is infinite: check text and segment"),
    "too_much_text": Kind(ERROR, "more text than anyone can say in that time", "text and audio do not belong together"),
    "chars_per_second": Kind(WARNING, "unusual number of characters a second", "listen: text and audio may not match"),
    "invisible_characters": Kind(WARNING, "invisible characters in the text", "remove zero-width and direction marks"),
    "replacement_character": Kind(WARNING, "U+FFFD in the text", "it was decoded wrongly once: go back to the source"),
    "not_nfc": Kind(WARNING, "text not in NFC", "normalise: one letter may be two characters now"),
    "untidy_spaces": Kind(WARNING, "odd spaces in the text", "single plain spaces, none at the ends"),
    # other clips, other splits
    "leaked_audio": Kind(ERROR, "the same audio is in --against", "keep it in one split only"),
    "shared_audio": Kind(WARNING, "the same audio is in another manifest", "keep it in one split only"),
    "duplicate_audio": Kind(WARNING, "the same audio as another clip", "keep one of them"),
    "conflicting_targets": Kind(WARNING, "the same audio with another text or label", "find out which is right"),
}  # fmt: skip


class Catalogue:
    """The kinds with the severities a person chose.

    Args:
        severities: code -> "error", "warning", "note" or "off"; what is not named keeps its own.

    Raises:
        UserError: there is no such code or severity.
    """

    def __init__(self, severities: Mapping[str, str] | None = None) -> None:
        self._chosen = dict(severities or {})
        for code, severity in self._chosen.items():
            if code not in KINDS:
                raise UserError(f"--severity: there is no problem called {code!r}, only {', '.join(KINDS)}")
            if severity not in (*SEVERITIES, "off"):
                raise UserError(f"--severity {code}={severity}: expected error, warning, note or off")

    def severity(self, code: str) -> str:
        """What a problem of this kind does to a clip."""
        return self._chosen.get(code, self.kind(code).severity)

    @staticmethod
    def kind(code: str) -> Kind:
        """What is known of a code; the reader's reasons are errors of a manifest's line."""
        if code.startswith(LINE):
            return Kind(ERROR, f"manifest line: {code.removeprefix(LINE)}", "mend or remove the line")
        return KINDS[code]
