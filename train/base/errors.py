"""The one exception for bad input, and the "did you mean" that goes into its message."""

import re
from collections.abc import Iterable
from difflib import get_close_matches

# What ends a line or is no character at all: control codes, line separators, surrogates (bytes that are no UTF-8).
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


class UserError(Exception):
    """Bad input. The message is one sentence: what is wrong, where, and what to do about it.

    Commands print it without a traceback and exit with status 2.
    """


def nearest(word: str, words: Iterable[str]) -> str:
    """' (did you mean X?)' with the most similar of `words`, in whatever case, or '' when none is similar."""
    in_any_case = {other.casefold(): other for other in words}
    matches = get_close_matches(word.casefold(), in_any_case, n=1)
    return f" (did you mean {in_any_case[matches[0]]}?)" if matches else ""


def one_line(text: str) -> str:
    """The text with what would break its line, as a file's name may hold it, written out as an escape."""
    return CONTROL.sub(lambda match: ascii(match[0])[1:-1], text)
