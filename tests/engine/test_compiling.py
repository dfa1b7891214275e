"""Compiled blocks: the same training, and a sentence where there can be none."""

import shutil

import pytest
import torch

from nets.resnet import ResnetBlock
from tests.engine.problem import CPU, latent_stage
from tests.tiny import tiny
from train.base.errors import UserError
from train.engine.compiling import compile_blocks
from train.memory.models import blank_stage
from train.memory.scenario import Scenario


def gradients(compiled: bool) -> list[torch.Tensor]:
    stage = latent_stage(tiny(f"ldm_training.compile={compiled}"), torch.randn(4, 4, 8, 8, generator=torch.Generator()))
    blocks = [m for m in stage.model.modules() if isinstance(m, ResnetBlock)]
    assert all((block._compiled_call_impl is not None) == compiled for block in blocks)
    batch = stage.draw(0, torch.arange(4))
    stage.learner.accumulate(lambda rows: stage.losses(batch, rows), 4, 4)
    return [p.grad for p in stage.model.trained_parameters()]


def test_a_training_with_compiled_blocks_has_the_same_gradients(monkeypatch):
    """By the compiler's front end, which is where a model can go wrong; what it makes of one block is below."""
    whole = torch.compile
    monkeypatch.setattr(torch, "compile", lambda call, **options: whole(call, backend="aot_eager", **options))
    for found, expected in zip(gradients(True), gradients(False), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.skipif(not shutil.which("g++"), reason="there is no C++ compiler")
def test_what_the_compiler_makes_of_a_block_computes_the_same():
    torch.manual_seed(0)
    block, x, embedding = ResnetBlock(8, 8, 4, 1e-5, 8), torch.randn(2, 8, 6, 6), torch.randn(2, 8)
    with torch.no_grad():
        expected = block(x, embedding)
        compile_blocks(block, CPU)
        torch.testing.assert_close(block(x, embedding), expected, rtol=1e-5, atol=1e-5)


def test_a_card_that_the_compiler_has_no_kernels_for_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (6, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "P100")
    with pytest.raises(UserError, match=r"P100 has compute capability 6\.0, .* needs 7\.0; set compile to false"):
        compile_blocks(torch.nn.Identity(), torch.device("cuda"))


def test_the_cpu_without_a_compiler_of_c_is_refused(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(UserError, match="needs one of C"):
        compile_blocks(torch.nn.Identity(), CPU)


def test_the_account_looks_at_the_model_that_is_not_compiled():
    stage = blank_stage(Scenario(tiny("ldm_training.compile=true")))
    assert not any(module._compiled_call_impl for module in stage.model.modules())
