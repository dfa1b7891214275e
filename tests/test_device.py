"""A card is used where this build of torch has kernels for it, and refused with what to install where not."""

from pathlib import Path

import pytest
import torch

from train.base.errors import UserError
from train.engine.device import autocast, grad_scaler, native_precision, peak_memory, pick_device

STATUS = Path("/proc/self/status")
CU126 = ["sm_50", "sm_60", "sm_70", "sm_75", "sm_80", "sm_86", "sm_90"]
CU128 = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120", "compute_120"]


@pytest.fixture
def card(monkeypatch):
    """Pretend that a card of this compute capability is there."""

    def pretend(capability, archs):
        monkeypatch.setattr("torch.cuda.is_available", lambda: True)
        monkeypatch.setattr("torch.cuda.get_device_capability", lambda *_: capability)
        monkeypatch.setattr("torch.cuda.get_device_name", lambda *_: "Card")
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
def test_a_card_with_kernels_is_picked(card, capability, archs):
    card(capability, archs)
    assert pick_device().type == "cuda"


@pytest.mark.parametrize(
    ("capability", "archs"),
    [((6, 0), CU128), ((7, 0), CU128), ((6, 0), ["sm_61"]), ((9, 0), ["sm_80", "sm_86"]), ((6, 0), [])],
)
def test_a_card_without_kernels_is_refused_before_the_first_one_runs(card, capability, archs):
    card(capability, archs)
    with pytest.raises(UserError, match=rf"sm_{capability[0]}{capability[1]}.*no kernels.*cu126"):
        pick_device()


def test_without_a_card_the_cpu_is_picked(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert pick_device().type == "cpu"


@pytest.mark.parametrize(("capability", "refused"), [((6, 0), True), ((7, 5), True), ((8, 0), False)])
def test_bf16_is_refused_where_a_card_only_emulates_it(card, capability, refused):
    card(capability, CU126)
    cuda = torch.device("cuda")
    for precision in ("no", "fp16"):
        assert native_precision(cuda, precision) == precision
    if refused:
        with pytest.raises(UserError, match="only emulates it"):
            native_precision(cuda, "bf16")
    else:
        assert native_precision(cuda, "bf16") == "bf16"


def test_the_cpu_computes_fp16_in_fp32_and_says_so(capsys):
    cpu = torch.device("cpu")
    for precision in ("no", "bf16"):
        assert native_precision(cpu, precision) == precision
    assert capsys.readouterr().err == ""
    assert native_precision(cpu, "fp16") == "no"
    assert "mixed_precision fp16: this CPU only emulates it" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("precision", "dtype", "scaled"),
    [("no", torch.float32, False), ("bf16", torch.bfloat16, False), ("fp16", torch.float16, True)],
)
def test_a_precision_says_what_is_computed_in_and_whether_losses_are_scaled(precision, dtype, scaled):
    cpu, layer = torch.device("cpu"), torch.nn.Linear(2, 2)
    with autocast(cpu, precision):
        assert layer(torch.zeros(1, 2)).dtype == dtype
    assert grad_scaler(cpu, precision).is_enabled() == scaled


@pytest.mark.skipif(not STATUS.is_file(), reason="only Linux tells it here")
def test_the_cpus_peak_is_in_bytes():
    (line,) = (line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM"))
    assert peak_memory(torch.device("cpu")) == pytest.approx(1024 * int(line.split()[1]), rel=0.05)


@pytest.mark.parametrize(("saved", "loaded"), [("no", "fp16"), ("fp16", "no"), ("fp16", "fp16"), ("no", "no")])
def test_an_fp16_run_goes_on_from_the_cpu_on_a_card_and_the_reverse(saved, loaded):
    """On the CPU it is computed in fp32: no loss scale is saved, and a new one stays what it is."""
    before, after = (grad_scaler(torch.device("cpu"), precision) for precision in (saved, loaded))
    if saved == "fp16":
        before.load_state_dict(before.state_dict() | {"scale": 8.0})
    begun_with = after.state_dict()
    after.load_state_dict(before.state_dict())
    assert after.state_dict() == (before.state_dict() if saved == loaded else begun_with)
