"""The sentences of errors: raised where they hold, on one line, with the nearest word, and of memory only of memory."""

import pickle

import pytest
import torch

from train.base.errors import (
    NO_MEMORY,
    UserError,
    explaining_out_of_memory,
    nearest,
    one_line,
    out_of_memory,
    require,
    shortened,
    some,
)


def cpu_out_of_memory() -> RuntimeError:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**50)
    return caught.value


@pytest.mark.parametrize(("holds", "raises"), [(True, False), ("x", False), (0, True), ("", True), (None, True)])
def test_what_does_not_hold_is_raised_as_its_sentence(holds, raises):
    if raises:
        with pytest.raises(UserError, match=r"^it is so$"):
            require(holds, "it is so")
    else:
        require(holds, "it is so")


@pytest.mark.parametrize(
    ("error", "begins"),
    [
        (torch.OutOfMemoryError("CUDA out of memory.\nTried"), "out of memory: CUDA out of memory."),
        (MemoryError(), "out of memory: "),
        (cpu_out_of_memory(), "out of memory: can't allocate memory"),
    ],
    ids=["GPU", "Python", "CPU"],
)
def test_memory_that_runs_out_is_told_in_a_line_whosever_it_is(error, begins):
    said = out_of_memory(error)
    assert said.startswith(begins)
    assert "\n" not in said
    assert "DefaultCPUAllocator" not in said


# Whole messages, as public reports quote them.
FULL_CARDS = [
    torch.AcceleratorError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
    RuntimeError("CUDA driver error: out of memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
    RuntimeError("cuDNN error: CUDNN_STATUS_NOT_INITIALIZED"),
    RuntimeError("cuFFT error: CUFFT_ALLOC_FAILED"),
    RuntimeError("cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling `cusolverDnCreate(handle)`"),
    RuntimeError("GET was unable to find an engine to execute this computation"),
    RuntimeError("FIND was unable to find an engine to execute this computation"),
    RuntimeError('NVML_SUCCESS == r INTERNAL ASSERT FAILED at "../c10/cuda/CUDACachingAllocator.cpp":830, please'),
    torch.distributed.DistBackendError("NCCL error in: x.cpp:1\nLast error:\nCuda failure 2 'out of memory'"),
    torch.distributed.DistBackendError("NCCL error in: x.cpp:1\nLast error:\nCuda failure 'out of memory'"),
    RuntimeError("std::bad_alloc"),
    RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes."),
]


@pytest.mark.parametrize("error", FULL_CARDS, ids=lambda error: str(error)[-50:].replace("\n", " "))
def test_every_form_in_which_memory_runs_out_is_known(error):
    said = out_of_memory(error)
    assert said.startswith("out of memory: ")
    assert said.removeprefix("out of memory: ") in str(error)
    assert any(form.removeprefix("DefaultCPUAllocator: ") in said for form in NO_MEMORY)
    assert "\n" not in said
    with pytest.raises(UserError, match="no room"), explaining_out_of_memory("no room ({})"):
        raise error


def test_every_form_of_the_table_is_tried():
    assert all(any(form in str(error) for error in FULL_CARDS) for form in NO_MEMORY)


@pytest.mark.parametrize(
    "error",
    [RuntimeError("out of memory"), ValueError("x"), OSError("x"), UserError("x"), None,
     torch.AcceleratorError("CUDA error: an illegal memory access was encountered"),
     RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm( handle)`"),
     ValueError("std::bad_alloc"), RuntimeError("cuDNN error: CUDNN_STATUS_BAD_PARAM")],
)  # fmt: skip
def test_an_error_of_another_kind_is_not_one_of_memory(error):
    assert out_of_memory(error) == ""


def test_a_gpu_out_of_memory_is_explained_and_no_other_error():
    with pytest.raises(UserError, match=r"^no room \(9 GiB\); go$"), explaining_out_of_memory("no room ({}); go"):
        raise torch.OutOfMemoryError("9 GiB\nand more")
    with pytest.raises(RuntimeError, match="a bug"), explaining_out_of_memory("no room ({})"):
        raise RuntimeError("a bug")


@pytest.mark.parametrize(
    ("word", "found"), [("mediun", "medium"), ("MEDIUM", "medium"), ("sD", "SD"), ("xyzzy", None), ("", None)]
)
def test_the_nearest_word_is_asked_for_in_any_case(word, found):
    assert nearest(word, iter(["light", "medium", "SD"])) == (f" (did you mean {found}?)" if found else "")


@pytest.mark.parametrize(("count", "said"), [(0, ""), (1, "a"), (3, "a, b, c"), (4, "a, b, c and 1 more")])
def test_of_many_names_three_are_named_and_the_others_counted(count, said):
    assert some(list("abcdef")[:count]) == said
    assert some(list("ab"), most=1) == "a and 1 more"


@pytest.mark.parametrize(
    ("text", "line"),
    [("a\nb", r"a\nb"), ("\x1b[0m", r"\x1b[0m"), ("\u2028", r"\u2028"), ("\udcff", r"\udcff"), ("\x85", r"\x85"),
     ("Žofie 张伟 🚶 it's \\n", "Žofie 张伟 🚶 it's \\n")],
)  # fmt: skip
def test_what_breaks_a_line_is_escaped_and_nothing_else(text, line):
    assert one_line(text) == line
    assert len(line.splitlines()) == 1
    line.encode()


@pytest.mark.parametrize("length", [3, 10, 11, 100])
def test_a_long_text_keeps_its_ends(length):
    text = "".join(chr(ord("a") + i % 26) for i in range(length))
    short = shortened(text, 10)
    assert short == (text if length <= 10 else f"{text[:5]} ... {text[-5:]}")


def test_no_sentence_is_longer_than_a_screen():
    """What stands in a file or on the command line is quoted in it, whatever its length."""
    error = UserError(f"config.json: act_fn='{'x' * 10**6}' is not implemented here (only 'silu' is)")
    assert len(str(error)) < 2100
    assert str(error).startswith("config.json: act_fn='xxx")
    assert str(error).endswith("xxx' is not implemented here (only 'silu' is)")
    assert str(pickle.loads(pickle.dumps(error))) == str(error)  # as one process sends it to another
