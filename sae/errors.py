"""The exception for errors that the user can correct."""


class InputError(ValueError):
    """An error that the user can correct: one line on its place, its cause and its remedy. Jobs print no traceback."""

    def __init__(self, message: str):
        super().__init__(plain(message))


def plain(text: str) -> str:
    """Returns a text as one line that any terminal and log can show.

    Names of files may hold line breaks, commands to a terminal and bytes that are no UTF-8: these become Python's
    escapes, such as `\\n`.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
