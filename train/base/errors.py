"""The errors that end a command with one sentence, and helpers to write that sentence."""

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches

import torch

# Characters that break a line or cannot be written: control codes, line separators, surrogates (bytes not in UTF-8).
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
LONGEST = 2000  # characters of a sentence: three names of files at their longest, and what is said of them
SEE_MEMCHECK = "python -m train.memcheck shows what takes how much"
CPU_ALLOCATOR = "DefaultCPUAllocator: "


class UserError(Exception):
    """Bad input. Commands print the message, one sentence that says what is wrong, where, and what to do about it.

    It is bounded, whatever stands in a file or is given as a value.
    """

    def __init__(self, sentence: str):
        super().__init__(shortened(sentence))


class Stopped(Exception):
    """A run has saved its state and stops before its last step. Commands print the message and exit with `status`."""

    def __init__(self, message: str, status: int):
        super().__init__(message)
        self.status = status


def require(holds: object, sentence: str) -> None:
    """Raise UserError with this sentence unless `holds` is true."""
    if not holds:
        raise UserError(sentence)


def out_of_memory(error: BaseException) -> str:
    """The first line of an out-of-memory error of a GPU, of torch on the CPU or of Python; "" for other errors."""
    if not isinstance(error, torch.OutOfMemoryError | MemoryError) and CPU_ALLOCATOR not in str(error):
        return ""
    return "out of memory: " + str(error).rpartition(CPU_ALLOCATOR)[2].partition("\n")[0]


@contextmanager
def explaining_out_of_memory(sentence: str) -> Iterator[None]:
    """While entered, a GPU that runs out of memory raises UserError with this sentence; {} in it is torch's reason."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise UserError(sentence.format(str(error).partition("\n")[0])) from None


def nearest(word: str, words: Iterable[str]) -> str:
    """' (did you mean X?)' with the most similar of `words`, ignoring case, or '' when none is similar."""
    in_any_case = {other.casefold(): other for other in words}
    matches = get_close_matches(word.casefold(), in_any_case, n=1)
    return f" (did you mean {in_any_case[matches[0]]}?)" if matches else ""


def some(names: list[str], most: int = 3) -> str:
    """At most `most` of the names, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def shortened(text: str, most: int = LONGEST) -> str:
    """The text without its middle, where it has more than `most` characters."""
    return text if len(text) <= most else f"{text[: most // 2]} ... {text[-most // 2 :]}"


def one_line(text: str) -> str:
    """The text with control characters and line breaks, which a file's name may hold, written as escapes."""
    return CONTROL.sub(lambda match: ascii(match[0])[1:-1], text)
