"""The exception for errors that the user can correct."""


class InputError(ValueError):
    """An error that the user can correct: one line on its place, its cause and its remedy. Jobs print no traceback."""
