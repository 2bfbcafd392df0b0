"""The kinds of error that are meant for the person at the prompt."""


class UserError(ValueError):
    """A mistake the user can mend: shown as one sentence, without a traceback."""


class BadSample(UserError):
    """An item of a dataset that can not be used; the Trainer leaves it out and counts it, or stops, as it is told to.

    Attributes:
        sample_id: the item's id, where it has one.
        source: the file it comes from.
        reason: a few words that come back for every item of the kind, for counting.
    """

    def __init__(self, message: str, *, sample_id: str | None = None, source: str | None = None, reason: str = ""):
        super().__init__(message)
        self.sample_id, self.source, self.reason = sample_id, source, reason or message

    def __reduce__(self) -> tuple:  # it comes out of data workers
        return _bad_sample, (str(self), self.sample_id, self.source, self.reason)


def _bad_sample(message: str, sample_id: str | None, source: str | None, reason: str) -> BadSample:
    return BadSample(message, sample_id=sample_id, source=source, reason=reason)
