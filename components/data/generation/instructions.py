"""Instructions in many wordings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from string import Formatter
from typing import Any

from components.augment.draws import index_below
from components.data.generation.clip import Clip
from utils.errors import UserError


class Instructions:
    """Wordings of a task, filled in with what a clip's record says: "say the word {text} in the voice of {speaker}".

    Args:
        templates: wordings; or a text file of them, one a line, with `#` before what is none. A field in braces is one
            of the record, or of its labels.
        wording: None draws one for each clip from torch's global generator; a number takes that template always, from
            0 on; a text is a wording by itself.

    Raises:
        UserError: there is no template, one is no template, or `wording` is not among them.
    """

    def __init__(self, templates: str | Path | Sequence[str], wording: int | str | None = None) -> None:
        self.templates = _read(templates) if isinstance(templates, (str, Path)) else [str(one) for one in templates]
        if isinstance(wording, str):
            self.templates = [wording]
        elif wording is not None:
            if not 0 <= wording < len(self.templates):
                raise UserError(f"wording: there is no template {wording}, there are {len(self.templates)}, from 0 on")
            self.templates = [self.templates[wording]]
        if not self.templates:
            raise UserError("templates: there is no wording in them")
        self._fields = [_fields(template) for template in self.templates]

    def __call__(self, clip: Clip) -> str:
        """An instruction for the clip.

        Raises:
            BadSample: its record lacks what the template needs; names it.
        """
        drawn = index_below(len(self.templates)) if len(self.templates) > 1 else 0
        values: dict[str, Any] = {field: clip.get(field) for field in self._fields[drawn]}
        return self.templates[drawn].format(**values)


def _fields(template: str) -> list[str]:
    try:
        fields = [field for _, field, _, _ in Formatter().parse(template) if field is not None]
    except ValueError as error:
        raise UserError(f"templates: {template!r} is none: {error}") from None
    if odd := [field for field in fields if not field.isidentifier()]:
        raise UserError(f"templates: {template!r} has a field {odd[0]!r}, which is no name of a field")
    return fields


def _read(path: str | Path) -> list[str]:
    try:
        lines = Path(path).expanduser().read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"templates: cannot read {path}: {getattr(error, 'strerror', None) or error}") from None
    return [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
