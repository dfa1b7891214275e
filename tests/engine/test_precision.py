"""Half precision is used where it is fast, and what it needs is kept with a run."""

import pytest
import torch

from train.base.errors import UserError
from train.config.sections import OptimConfig
from train.engine.precision import GradScaler, autocast_to, native_precision
from train.engine.step import make_learner


@pytest.fixture
def gpu(monkeypatch):
    """Pretend that a GPU of this compute capability is there."""

    def pretend(capability):
        monkeypatch.setattr("torch.cuda.get_device_capability", lambda *_: capability)
        monkeypatch.setattr("torch.cuda.get_device_name", lambda *_: "GPU")

    return pretend


@pytest.mark.parametrize(("capability", "refused"), [((6, 0), True), ((7, 5), True), ((8, 0), False)])
def test_bf16_is_refused_where_a_gpu_only_emulates_it(gpu, capability, refused):
    gpu(capability)
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
def test_precision_sets_the_dtype_and_whether_losses_are_scaled(precision, dtype, scaled):
    cpu, layer = torch.device("cpu"), torch.nn.Linear(2, 2)
    half = autocast_to(cpu, precision)
    for _ in range(2):  # each time a new context
        with half():
            assert layer(torch.zeros(1, 2)).dtype == dtype
    learner = make_learner(list(layer.parameters()), OptimConfig(), False, cpu, precision)
    assert learner.scaler.is_enabled() == scaled


@pytest.mark.parametrize(("saved", "loaded"), [("no", "fp16"), ("fp16", "no"), ("fp16", "fp16"), ("no", "no")])
def test_an_fp16_run_resumes_from_cpu_to_gpu_and_the_reverse(saved, loaded):
    """On the CPU it is computed in fp32: no loss scale is saved, and a new one stays what it is."""
    before, after = (GradScaler("cpu", enabled=precision == "fp16") for precision in (saved, loaded))
    if saved == "fp16":
        before.load_state_dict(before.state_dict() | {"scale": 8.0})
    begun_with = after.state_dict()
    after.load_state_dict(before.state_dict())
    assert after.state_dict() == (before.state_dict() if saved == loaded else begun_with)
