"""From manifests to the survey: every line read, what it says checked on its own."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from components.data.checks.problems import Problem
from components.data.checks.survey import Split, Survey, classes_of
from components.data.checks.text import Vocabulary, check_text
from components.data.faults import near_miss
from components.data.manifest import Record
from components.data.readers import iterate_records
from utils.errors import UserError

_FEWEST_KEYS_SHARE = 0.5


@dataclass
class Inventory:
    """The characters of all texts.

    Attributes:
        clips: character -> texts that have it.
        first: character -> id of the first clip that has it.
        num_texts: texts seen.
        swapped_case: texts whose every character would be in the vocabulary in the other case.
    """

    clips: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)
    num_texts: int = 0
    swapped_case: int = 0

    def add(self, text: str, identifier: str) -> None:
        """Count the characters of one text."""
        self.num_texts += 1
        for character in set(text):
            if character not in self.first:
                self.first[character] = identifier
            self.clips[character] += 1


def list_manifest(survey: Survey, split: Split, inventory: Inventory, vocabulary: Vocabulary | None) -> None:
    """Read one manifest into the survey; a manifest that can't be read at all is a bad line of its own."""
    folder = os.path.join(os.path.abspath(split.path if Path(split.path).is_dir() else Path(split.path).parent), "")

    def on_bad(bad: dict[str, Any]) -> None:
        split.num_bad_lines += 1
        survey.add_bad_line(split, bad)

    try:
        for record in iterate_records(split.path, on_bad=on_bad, fill=False):
            split.num_clips += 1
            number = survey.add_clip(split, record)
            split.keys.update(record.keys())
            split.classes.update(classes_of(record))
            if not split.is_reference:
                survey.add_problems(number, _check_record(record, folder))
                survey.add_problems(number, _check_its_text(record, inventory, vocabulary))
    except UserError as error:
        if not split.num_bad_lines:  # else they say it
            on_bad({"source": split.path, "reason": "unusable manifest", "detail": str(error)})
    _forgive_common_keys(survey, split)
    _find_missing_texts(survey, split)


def _check_record(record: Record, folder: str) -> list[Problem]:
    problems = []
    if not os.path.normpath(record["audio_path"]).startswith(folder):
        problems.append(Problem("outside_folder", os.path.normpath(record["audio_path"])))
    for key in record:
        if meant := near_miss(key):
            problems.append(Problem("suspicious_key", f"{key!r}: did you mean {meant!r}?"))
    return problems


def _check_its_text(record: Record, inventory: Inventory, vocabulary: Vocabulary | None) -> list[Problem]:
    text = record.get("text")
    if not isinstance(text, str):
        return []
    problems = check_text(text, vocabulary)
    inventory.add(text, record["id"])
    strange = any(problem.code == "out_of_vocabulary" for problem in problems)
    if strange and set(text.swapcase()) <= vocabulary.characters:
        inventory.swapped_case += 1
    return problems


def _forgive_common_keys(survey: Survey, split: Split) -> None:
    """A key that half of the clips have is no slip."""
    for key, count in split.keys.items():
        if (meant := near_miss(key)) and count >= _FEWEST_KEYS_SHARE * split.num_clips:
            detail = f"{key!r}: did you mean {meant!r}?"
            survey.execute("DELETE FROM problems WHERE code = 'suspicious_key' AND detail = ?", (detail,))


def _find_missing_texts(survey: Survey, split: Split) -> None:
    """Where most clips have a text, one without is a mistake; tagging data have none at all."""
    if split.is_reference or 2 * split.keys["text"] < split.num_clips:
        return
    rows = survey.execute("SELECT n FROM clips WHERE split = ? AND chars IS NULL", (split.number,)).fetchall()
    for (number,) in rows:
        if "text" not in survey.record(number):
            survey.add_problems(number, [Problem("missing_text", "the key 'text' is missing or null")])
