"""The one exception that callers need to know."""

import difflib
from collections.abc import Iterable

__all__ = ["HatlibError", "describe_error", "first_line", "similar_names"]


class HatlibError(ValueError):
    """Input that hatlib can't work with; the message is one sentence that says what to do about it."""


def first_line(error: BaseException) -> str:
    """What another library's exception says, for our sentences: its first line without a full stop, or its class."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(". ")


def describe_error(error: BaseException) -> str:
    """An exception that nobody foresaw, for our sentences: its class and, if it says anything, its first line."""
    return type(error).__name__ + (f": {first_line(error)}" if str(error).strip() else "")


def similar_names(name: str, known: Iterable[str], n: int = 5) -> str:
    """A phrase for error messages: the `n` known names nearest to `name`, or an empty string if none is near."""
    near = difflib.get_close_matches(name, list(known), n=n, cutoff=0.5)
    return f" Did you mean {', '.join(near)}?" if near else ""
