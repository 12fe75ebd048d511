"""The one exception that means: the user can mend this."""


class InputError(ValueError):
    """What was wrong, where, and what to do, in one line. Jobs print it without a traceback."""
