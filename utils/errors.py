"""The one kind of error that is meant for the person at the prompt."""


class UserError(ValueError):
    """A mistake the user can mend: shown as one sentence, without a traceback."""
