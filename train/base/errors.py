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
FULL = "out of memory: "
# Where memory has run out: what errors say that are neither torch.OutOfMemoryError nor MemoryError, and who says it.
NO_MEMORY = {
    "DefaultCPUAllocator: ": "torch, c10/core/impl/alloc_cpu.cpp",
    "std::bad_alloc": "C++, within an operator on the CPU",
    "CUDA error: out of memory": "torch, c10/cuda/CUDAException.cpp: a call of CUDA has failed; an AcceleratorError",
    "CUDA driver error: out of memory": "torch, c10/cuda/driver_api.h: one of the driver, for expandable segments",
    'CUDACachingAllocator.cpp":': "torch: it cannot tell how full the card is (pytorch/pytorch, issue 112377)",
    "_STATUS_ALLOC_FAILED": "cuBLAS, cuDNN, cuSOLVER, cuSPARSE: torch, aten/src/ATen/cuda/Exceptions.h",
    "_ALLOCATION_FAILED": "cuDNN 9: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED, or HOST",
    "CUFFT_ALLOC_FAILED": "cuFFT: torch, aten/src/ATen/native/cuda/CuFFTUtils.h",
    "CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate": "cuBLAS, which has no room for what it works with",
    "CUDNN_STATUS_NOT_INITIALIZED": "cuDNN, likewise: torch, aten/src/ATen/cudnn/Handle.cpp",
    "unable to find an engine to execute this computation": "torch, aten/src/ATen/native/cudnn/Conv_v8.cpp: no kernel "
    "for a convolution has room for what it works with (pytorch/pytorch, issue 108645)",
    "Cuda failure 'out of memory'": "NCCL, src/include/checks.h",
    "Cuda failure 2 'out of memory'": "NCCL, of later releases",
}


class UserError(Exception):
    """Bad input. Commands print the message, one sentence that says what is wrong, where, and what to do about it.

    It is bounded, whatever stands in a file or is given as a value.
    """

    def __init__(self, sentence: str):
        super().__init__(shortened(sentence))


class BadArgument(UserError):
    """The same of a function's argument, with whose name the sentence begins. A command says it of the flag."""


class Stopped(Exception):
    """A run has saved its state and stops before its last step. Commands print the message and exit with `status`."""

    def __init__(self, message: str, status: int):
        super().__init__(message)
        self.status = status


class Interrupted(BaseException):
    """A signal has come, and what is done just now can be left undone."""


def require(holds: object, sentence: str, error: type[UserError] = UserError) -> None:
    """Raise UserError, or this kind of it, with this sentence unless `holds` is true."""
    if not holds:
        raise error(sentence)


def out_of_memory(error: BaseException | None) -> str:
    """One line that begins "out of memory: ", for memory of a GPU, or of the CPU, that has run out; "" otherwise.

    Some forms have other causes as well, such as a cuDNN that is not whole, so the line has the error's own words.
    """
    lines = str(error).splitlines()
    if not isinstance(error, torch.OutOfMemoryError | MemoryError):
        lines = [line for line in lines if any(form in line for form in NO_MEMORY)]
        if not isinstance(error, RuntimeError) or not lines:
            return ""
    return FULL + "".join(lines[:1]).rpartition("DefaultCPUAllocator: ")[2]


@contextmanager
def explaining_out_of_memory(sentence: str) -> Iterator[None]:
    """While entered, memory that runs out raises UserError with this sentence; {} in it is the error's own line."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        reason = out_of_memory(error)
        if not reason:
            raise
        raise UserError(sentence.format(reason.removeprefix(FULL))) from None


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
