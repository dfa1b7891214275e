"""Recipes in place of activations: the gradients of the plain path, bit for bit, wherever they are followed."""

import gc
import weakref
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nets.checkpointing import set_checkpointing
from nets.discriminator import PatchDiscriminator
from nets.linear import Linear
from nets.resnet import ResnetBlock
from nets.unet import UNet2DConditionModel, UNetConfig
from nets.vae import AutoencoderKL, VAEConfig
from tests.engine.problem import CPU, latent_stage
from tests.tiny import tiny
from train.engine.lean import Lean, Recipe
from train.engine.precision import DTYPES, autocast_to

UNET = UNetConfig(channels=(8, 16), cross_attention=(True, False), cross_attention_dim=8, num_heads=2,
                  layers_per_block=1, norm_groups=4)  # fmt: skip
VAE = VAEConfig(channels=(8, 16), norm_groups=4)


def unet(tokens: int = 1, linear_projection: bool = True, seed: int = 0) -> tuple[nn.Module, tuple]:
    torch.manual_seed(seed)
    net = UNet2DConditionModel(replace(UNET, linear_projection=linear_projection))
    return net, (torch.randn(2, 4, 7, 8), torch.tensor([3, 500]), torch.randn(2, tokens, 8, requires_grad=True))


class Autoencoder(AutoencoderKL):
    def forward(self, x: Tensor) -> Tensor:
        return self.decode(self.encode(x).mean)


def vae() -> tuple[nn.Module, tuple]:
    torch.manual_seed(0)
    return Autoencoder(VAE), (torch.randn(2, 3, 16, 16),)


def discriminator() -> tuple[nn.Module, tuple]:
    torch.manual_seed(0)
    return PatchDiscriminator(3, 8, 2), (torch.randn(2, 3, 32, 32),)


def gradients(net: nn.Module, inputs: tuple, lean: bool = True, precision: str = "no") -> list[Tensor]:
    net.zero_grad()
    with autocast_to(CPU, precision)(), Lean() if lean else nullcontext():
        loss = net(*inputs).float().square().sum()
    loss.backward()
    return [p.grad.clone() for p in net.parameters() if p.grad is not None]


def assert_equal(found: list[Tensor], expected: list[Tensor]) -> None:
    assert len(found) == len(expected) > 0
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


NETWORKS = {
    "one-token": unet, "tokens": lambda: unet(tokens=4), "1x1-convolutions": lambda: unet(linear_projection=False),
    "vae": vae, "discriminator": discriminator,
}  # fmt: skip


@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointing"])
@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_are_those_of_the_plain_path_bit_for_bit(name, precision, checkpointing):
    """So in half precision they are no farther from the true ones, either."""
    net, inputs = NETWORKS[name]()
    set_checkpointing(net, checkpointing)
    assert_equal(gradients(net, inputs, True, precision), gradients(net, inputs, False, precision))


def test_a_module_that_is_used_twice_has_both_gradients():
    torch.manual_seed(0)
    norm, layer = nn.LayerNorm(8), nn.Linear(8, 8)
    net, x = nn.Sequential(norm, nn.SiLU(), layer, norm, nn.SiLU(), layer), torch.randn(3, 8)
    assert_equal(*(gradients(net, (x,), lean) for lean in (True, False)))


def test_several_backward_passes_through_one_graph_agree():
    """As the VAE's adaptive weight needs them, within the forward pass."""
    net, inputs = vae()
    parameters, found = list(net.parameters()), []
    for lean in (True, False):
        with Lean() if lean else nullcontext():
            loss = net(*inputs).square().sum()
            early = torch.autograd.grad(loss, net.decoder.conv_out.weight, retain_graph=True)
            twice = [torch.autograd.grad(loss, parameters, retain_graph=True) for _ in range(2)]
        found.append([*early, *twice[0], *twice[1], *torch.autograd.grad(loss, parameters)])
    assert_equal(*found)


def test_without_gradients_nothing_is_marked_or_kept():
    with Lean(), torch.no_grad():
        result = F.silu(torch.ones(3, requires_grad=True))
    assert not hasattr(result, "recipe")


def test_lean_reaches_no_further_than_its_block():
    with Lean():
        pass
    x = torch.ones(3, requires_grad=True) * 2
    assert not hasattr(F.silu(x), "recipe")
    node = F.silu(x).grad_fn
    assert node._saved_self.data_ptr() == x.data_ptr()


# ---- what is kept


def alive(*tensors: Tensor) -> list:
    return [weakref.ref(t.untyped_storage()) for t in tensors]


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_of_a_chain_of_cheap_functions_the_first_value_is_kept(precision):
    torch.manual_seed(0)
    norm, layer, conv = nn.GroupNorm(2, 4), nn.Linear(5, 20), nn.Conv2d(4, 4, 3)
    first = nn.Conv2d(4, 4, 1)
    with autocast_to(CPU, precision)(), Lean():
        x = first(torch.randn(2, 4, 5, 5))
        n = norm(x)
        s = F.silu(n)
        wide = layer(s)
        a, gate = wide.chunk(2, dim=-1)
        gelu = F.gelu(gate)
        product = torch.cat([a * gelu, n], dim=3)
        loss = conv(product).float().sum()
    kept, dead = alive(x), alive(n, s, wide, gelu, product)
    del x, n, s, wide, a, gate, gelu, product
    assert all(ref() is not None for ref in kept)
    assert all(ref() is None for ref in dead)
    loss.backward()
    assert all(ref() is None for ref in kept)


@pytest.mark.parametrize("positions", [3, 2])
def test_a_linear_layer_is_made_again_where_positions_are_many(positions):
    torch.manual_seed(0)
    norm, layer = nn.LayerNorm(8), Linear(8, 16)
    with Lean():
        x = torch.randn(5, positions, 8, requires_grad=True) * 2.0
        wide = layer(norm(x))
        loss = wide.square().sum()
    (ref,) = alive(wide)
    del wide
    assert (ref() is None) == (positions == 3)
    loss.backward()


def test_a_value_that_two_users_need_is_made_once(monkeypatch):
    torch.manual_seed(0)
    conv, made = nn.Conv2d(4, 4, 3), []
    with Lean():
        x = torch.randn(2, 4, 5, 5, requires_grad=True) + 1.0
        loss = conv(F.silu(F.group_norm(x, 2))).sum()
    follow = Recipe.value

    def counted(self):
        made.extend([self.function] if self.made is None else [])
        return follow(self)

    monkeypatch.setattr(Recipe, "value", counted)
    loss.backward()
    assert made == [F.silu, F.group_norm]


def test_a_graph_without_backward_pass_dies_with_its_loss():
    """No saved result holds the node that saved it."""
    net, inputs = unet()
    gc.collect()
    gc.disable()
    try:
        with Lean():
            hidden = net.conv_in(inputs[0]).repeat(1, 2, 1, 1)
            loss = net.mid_block.attentions[0](hidden, inputs[2]).sum()
        (ref,) = alive(hidden)
        del hidden, loss
        assert ref() is None
    finally:
        gc.enable()


# ---- changes in place


def test_a_value_changed_in_place_is_kept_as_it_is():
    def gradient(lean: bool) -> Tensor:
        weight = torch.full((3,), 2.0, requires_grad=True)
        with Lean() if lean else nullcontext():
            y = torch.cat([weight * 3.0, weight])
            y.add_(1.0)  # no derivative needs the sum's operands
            loss = y.square().sum() + (y * y.detach()).sum()
        return torch.autograd.grad(loss, weight)[0]

    assert torch.equal(gradient(True), gradient(False))


@pytest.mark.parametrize("lean", [True, False])
def test_an_operand_changed_in_place_afterwards_is_an_error(lean):
    weight = torch.full((3,), 2.0, requires_grad=True)
    with Lean() if lean else nullcontext():
        x = weight + 1.0
        loss = F.silu(x).square().sum()
    with torch.no_grad():
        x.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


# ---- in a training


@pytest.mark.parametrize("key", ["lean_activations=false", "lean_activations=true"])
def test_one_key_of_the_config_decides(key):
    config = tiny(f"ldm_training.{key}")
    stage = latent_stage(config, torch.randn(4, 4, 8, 8))
    assert tiny().ldm_training.lean_activations  # by default
    seen = []

    def losses(rows: slice) -> dict[str, Tensor]:
        seen.append(hasattr(F.silu(torch.ones(1, requires_grad=True)), "recipe"))
        return stage.losses(stage.draw(0, torch.arange(4)), rows)

    stage.learner.accumulate(losses, 4, 4)
    assert seen == [key.endswith("true")]


def test_compiled_blocks_have_the_same_gradients():
    torch.manual_seed(0)
    inner, x, embedding = ResnetBlock(8, 8, 4, 1e-5, 8), torch.randn(2, 8, 6, 6), torch.randn(2, 8)
    net = nn.ModuleList([inner, nn.Conv2d(8, 8, 3)])
    net.forward = lambda x: net[1](F.silu(inner(x, embedding)))
    plain = gradients(net, (x,), lean=False)
    inner.compile(backend="aot_eager")
    assert_equal(gradients(net, (x,)), plain)
