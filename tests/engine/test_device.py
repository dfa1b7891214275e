"""A GPU is used where this build of torch has kernels for it, and refused with what to install where not."""

from pathlib import Path

import pytest
import torch

from train.base.errors import UserError
from train.engine.device import own_card, peak_memory, pick_device

STATUS = Path("/proc/self/status")
CU126 = ["sm_50", "sm_60", "sm_70", "sm_75", "sm_80", "sm_86", "sm_90"]
CU128 = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120", "compute_120"]


@pytest.fixture
def gpu(monkeypatch):
    """Pretend that a GPU of this compute capability is there."""

    def pretend(capability, archs):
        monkeypatch.setattr("torch.cuda.is_available", lambda: True)
        monkeypatch.setattr("torch.cuda.get_device_capability", lambda *_: capability)
        monkeypatch.setattr("torch.cuda.get_device_name", lambda *_: "GPU")
        monkeypatch.setattr("torch.cuda.get_arch_list", lambda: archs)

    return pretend


@pytest.mark.parametrize(
    ("capability", "archs"),
    [
        ((6, 0), CU126),
        ((7, 5), CU128),
        ((8, 9), CU128),  # runs the binary of 8.6
        ((9, 0), ["sm_90a"]),
        ((12, 1), CU128),
        ((13, 0), CU128),  # compiles compute_120
    ],
)
def test_a_gpu_with_kernels_is_picked(gpu, capability, archs, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    gpu(capability, archs)
    assert pick_device().type == "cuda"
    assert torch.backends.cudnn.conv.fp32_precision != "tf32"  # fp32 where it is asked for


@pytest.mark.parametrize(
    ("capability", "archs"),
    [((6, 0), CU128), ((7, 0), CU128), ((6, 0), ["sm_61"]), ((9, 0), ["sm_80", "sm_86"]), ((6, 0), [])],
)
def test_a_gpu_without_kernels_is_refused_before_any_kernel_runs(gpu, capability, archs):
    gpu(capability, archs)
    with pytest.raises(UserError, match=rf"sm_{capability[0]}{capability[1]}.*no kernels.*cu126"):
        pick_device()


def test_without_a_gpu_the_cpu_is_picked(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert pick_device().type == "cpu"


@pytest.mark.skipif(not STATUS.is_file(), reason="only Linux tells it here")
def test_the_cpus_peak_is_in_bytes():
    (line,) = (line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM"))
    assert peak_memory(torch.device("cpu")) == pytest.approx(1024 * int(line.split()[1]), rel=0.05)


@pytest.mark.parametrize(("asked", "card"), [("cuda", "cuda:1"), ("cuda:0", "cuda:0"), ("cpu", "cpu")])
def test_a_card_without_a_number_is_the_process_own(monkeypatch, asked, card):
    for name, value in (("TORCHELASTIC_RUN_ID", "none"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    assert own_card(torch.device(asked)) == torch.device(card)
