"""The one exception for bad input, and the "did you mean" that goes into its message."""

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(Exception):
    """Bad input. The message is one sentence: what is wrong, where, and what to do about it.

    Commands print it without a traceback and exit with status 2.
    """


def nearest(word: str, words: Iterable[str]) -> str:
    """' (did you mean X?)' with the most similar of `words`, or '' when none is similar."""
    matches = get_close_matches(word, list(words), n=1)
    return f" (did you mean {matches[0]}?)" if matches else ""
