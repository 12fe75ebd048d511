"""The exception for errors that the user can correct, and the words for those that libraries raise."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path

_ROOM, _RIGHTS = (errno.ENOSPC, errno.EDQUOT), (errno.EACCES, errno.EPERM, errno.EROFS)


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


def shortage(error: BaseException, output: str | Path) -> str | None:
    """Returns one line for the user if the machine is at fault: too little room or memory, or no permission.

    Args:
        output: the file that the job writes; the place of an error that names no file.

    Returns:
        None for all other errors.
    """
    text = str(error)
    number = error.errno if isinstance(error, OSError) else None
    if told := re.search(r"\(os error (\d+)\)", text):  # safetensors
        number = int(told[1])
    elif isinstance(error, OSError) and re.search(r"\d+ requested and \d+ written", text):  # NumPy
        number = errno.ENOSPC
    if isinstance(error, MemoryError) or number == errno.ENOMEM or re.search(r"out of memory|allocate memory", text):
        return (
            "out of memory; run fewer jobs at once (--cores), or lower extraction.batch, training.batch or threads; "
            "then run the same command again"
        )
    named = re.search(r"file '(.+?)'", text)  # PyArrow
    path = getattr(error, "filename", None) or (named[1] if named else output)
    if number in _ROOM:
        return f"{path}: {os.strerror(number)}; make room, then run the same command again"
    if number in _RIGHTS:
        return f"{path}: {os.strerror(number)}; correct its permissions, then run the same command again"
    return None if error.__cause__ is None else shortage(error.__cause__, output)
