"""Errors that are the user's to mend."""


class UserError(Exception):
    """A mistake in what the user gave. Its text says what was given, what was expected and what to
    do; the commands print it as one line, without a traceback, and exit with status 2."""
