"""The models agree with those of `diffusers`: names, shapes, outputs, gradients."""

import math
from dataclasses import replace

import pytest
import torch

from nets.checkpointing import set_checkpointing
from nets.condition import UserConditionEncoder, UserEncoderConfig
from nets.unet import UNet2DConditionModel, UNetConfig
from nets.vae import AutoencoderKL, DiagonalGaussian, VAEConfig
from tests.float64 import float64
from tests.oracle import (
    PRESETS,
    VAE_PRESETS,
    assert_equal_gradients,
    assert_equal_outputs,
    diffusers_unet,
    diffusers_vae,
    unet_pair,
    vae_pair,
)

SMALL = UNetConfig((32, 64, 64), (True, True, False), 24, num_heads=4, norm_groups=8)
UNETS = {
    "linear projections": SMALL,
    "convolutional projections": replace(SMALL, linear_projection=False),
    "heads per level": replace(SMALL, num_heads=(2, 4, 8)),
    "one level": UNetConfig((32,), (True,), 24, num_heads=4, norm_groups=8),
    "plain first, three layers": replace(SMALL, cross_attention=(False, True, True), layers_per_block=3),
    "no cross-attention but in the middle": replace(SMALL, cross_attention=(False, False, False), layers_per_block=1),
    "five levels": UNetConfig((16, 16, 32, 32, 48), (False, True, False, True, False), 8, num_heads=2, norm_groups=8),
}  # fmt: skip
VAES = {
    "colour": VAEConfig((16, 32, 32), norm_groups=8),
    "grey": VAEConfig((16, 32), norm_groups=8, image_channels=1),
    "no quant convolutions": VAEConfig((16, 32), norm_groups=8, quant_conv=False, post_quant_conv=False),
    "two layers, eight latent channels": VAEConfig((16, 16, 32), layers_per_block=2, latent_channels=8, norm_groups=4),
}  # fmt: skip


def count(model) -> int:
    return sum(p.numel() for p in model.parameters())


def shapes(model) -> dict:
    return {name: tuple(t.shape) for name, t in model.state_dict().items()}


@pytest.mark.parametrize("name", PRESETS)
def test_unet_presets_have_names_shapes_and_count_of_diffusers(name):
    config, parameters = PRESETS[name]
    with torch.device("meta"):
        ours, theirs = UNet2DConditionModel(config), diffusers_unet(config)
    assert count(ours) == count(theirs) == parameters
    assert shapes(ours) == shapes(theirs)
    ours.load_state_dict(theirs.state_dict(), strict=True, assign=True)
    theirs.load_state_dict(ours.state_dict(), strict=True, assign=True)


@pytest.mark.parametrize("name", VAE_PRESETS)
def test_vae_presets_have_names_shapes_and_count_of_diffusers(name):
    config, parameters = VAE_PRESETS[name]
    with torch.device("meta"):
        ours, theirs = AutoencoderKL(config), diffusers_vae(config)
    assert count(ours) == count(theirs) == parameters
    assert shapes(ours) == shapes(theirs)
    ours.load_state_dict(theirs.state_dict(), strict=True, assign=True)
    theirs.load_state_dict(ours.state_dict(), strict=True, assign=True)


@pytest.mark.parametrize("tokens", [1, 7])
@pytest.mark.parametrize("name", UNETS)
@float64()
def test_unet_outputs_and_gradients_are_those_of_diffusers(name, tokens):
    config = UNETS[name]
    ours, theirs = unet_pair(config)
    sample = torch.randn(3, 4, 16, 24)  # an odd batch, a grid that is not square
    context = torch.randn(3, tokens, config.cross_attention_dim)
    timestep = torch.tensor([0, 37, 999])
    target = torch.randn_like(sample)
    a, b = ours(sample, timestep, context), theirs(sample, timestep, context).sample
    assert_equal_outputs(a, b)
    (a - target).square().mean().backward()
    (b - target).square().mean().backward()
    assert_equal_gradients(ours, theirs)


@pytest.mark.parametrize("grid", [(9, 14), (5, 5), (1, 3)])
@float64()
def test_unet_takes_grids_that_do_not_halve(grid):
    ours, theirs = unet_pair(SMALL)
    sample, context = torch.randn(1, 4, *grid), torch.randn(1, 2, 24)
    with torch.no_grad():
        assert_equal_outputs(ours(sample, 5, context), theirs(sample, 5, context).sample)


def test_unet_takes_a_number_for_the_whole_batch():
    unet = UNet2DConditionModel(SMALL)
    sample, context = torch.randn(3, 4, 8, 8), torch.randn(3, 1, 24)
    with torch.no_grad():
        torch.testing.assert_close(
            unet(sample, 7, context), unet(sample, torch.tensor([7, 7, 7]), context), rtol=0, atol=0
        )


@float64()
def test_condition_in_time_embedding_equals_that_of_diffusers():
    ours, theirs = unet_pair(replace(SMALL, condition_in_time_embedding=True))
    sample, context = torch.randn(3, 4, 8, 8), torch.randn(3, 5, 24)
    a = ours(sample, 11, context)
    b = theirs(sample, 11, context, class_labels=context.mean(dim=1)).sample
    assert_equal_outputs(a, b)
    a.square().mean().backward()
    b.square().mean().backward()
    assert_equal_gradients(ours, theirs)


def test_parameters_idle_on_one_token_are_those_without_gradient():
    unet = UNet2DConditionModel(SMALL)
    unet(torch.randn(2, 4, 8, 8), 3, torch.randn(2, 1, 24)).square().mean().backward()
    without = {name for name, p in unet.named_parameters() if p.grad is None}
    idle = {id(p) for p in unet.parameters_without_effect_on_one_token()}
    assert without == {name for name, p in unet.named_parameters() if id(p) in idle}
    with torch.device("meta"):
        medium = UNet2DConditionModel(PRESETS["medium"][0])
    assert sum(p.numel() for p in medium.parameters_without_effect_on_one_token()) == 4_548_352


@pytest.mark.parametrize("name", VAES)
@float64()
def test_vae_outputs_and_gradients_are_those_of_diffusers(name):
    config = VAES[name]
    ours, theirs = vae_pair(config)
    x = torch.randn(3, config.image_channels, 16, 24)
    a, b = ours.encode(x), theirs.encode(x).latent_dist
    assert_equal_outputs(a.mean, b.mean)
    assert_equal_outputs(a.logvar, b.logvar)
    assert_equal_outputs(a.kl(), b.kl())
    assert a.mode() is a.mean
    za = a.sample(torch.Generator().manual_seed(1))
    zb = b.sample(torch.Generator().manual_seed(1))
    assert_equal_outputs(za, zb)
    decoded_a, decoded_b = ours.decode(za), theirs.decode(zb).sample
    assert_equal_outputs(decoded_a, decoded_b)
    ((decoded_a - x).square().mean() + 1e-3 * a.kl().mean()).backward()
    ((decoded_b - x).square().mean() + 1e-3 * b.kl().mean()).backward()
    assert_equal_gradients(ours, theirs)


def test_kl_is_half_the_square_of_a_shift_from_standard_normal():
    standard = torch.zeros(2, 8, 3, 3)
    assert DiagonalGaussian(standard).kl().tolist() == [0, 0]
    shifted = standard.clone()
    shifted[:, :4] = 2.0
    assert DiagonalGaussian(shifted).kl().tolist() == [72, 72]  # 4 x 3 x 3 components, each 2^2 / 2


def test_kl_of_fp16_moments_is_computed_in_float32():
    moments = torch.full((1, 8, 16, 16), 10.0, dtype=torch.float16)  # e^10 a component: fp16 ends at 65504
    gaussian = DiagonalGaussian(moments)
    assert gaussian.kl().item() == pytest.approx(0.5 * 4 * 256 * (100 + math.exp(10) - 1 - 10), rel=1e-6)
    assert gaussian.std.dtype == torch.float32


@pytest.mark.parametrize("model", ["unet", "vae"])
def test_checkpointing_changes_neither_output_nor_gradient(model):
    torch.manual_seed(0)
    if model == "unet":
        net = UNet2DConditionModel(SMALL)
        inputs = torch.randn(2, 4, 8, 8), 3, torch.randn(2, 7, 24)
        call = net
    else:
        net = AutoencoderKL(VAES["colour"])
        inputs = (torch.randn(2, 3, 16, 16),)
        call = lambda x: net.decode(net.encode(x).mode())  # noqa: E731
    results = []
    for enabled in (False, True):
        set_checkpointing(net, enabled)
        net.zero_grad()
        out = call(*inputs)
        out.square().mean().backward()
        results.append([out.detach(), *(p.grad.clone() for p in net.parameters() if p.grad is not None)])
    for kept, recomputed in zip(*results, strict=True):
        torch.testing.assert_close(kept, recomputed, rtol=0, atol=0)


def test_checkpointing_keeps_fewer_tensors_for_backward():
    unet = UNet2DConditionModel(SMALL)
    kept = []
    for enabled in (False, True):
        set_checkpointing(unet, enabled)
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, s=sizes: s.append(t.numel()) or t, lambda t: t):
            unet(torch.randn(1, 4, 16, 16), 3, torch.randn(1, 1, 24))
        kept.append(sum(sizes))
    assert kept[1] < kept[0] / 3


def test_user_encoder_gives_own_tokens_or_the_unconditional_ones():
    encoder = UserConditionEncoder(UserEncoderConfig(dim=6, num_users=31, tokens_per_user=2)).eval()
    tokens = encoder(torch.tensor([3, 30, 3]), torch.tensor([False, False, True]))
    assert tokens.shape == (3, 2, 6)
    assert torch.equal(tokens[0].flatten(), encoder.embedding.weight[3])
    assert torch.equal(tokens[1].flatten(), encoder.embedding.weight[30])
    assert torch.equal(tokens[2].flatten(), encoder.unconditional[0])
    tokens.sum().backward()
    assert encoder.unconditional.grad.abs().sum() > 0
    assert encoder.embedding.weight.grad[[i for i in range(31) if i not in (3, 30)]].abs().sum() == 0


def test_user_encoder_of_the_design_has_the_stated_parameters():
    encoder = UserConditionEncoder(UserEncoderConfig(dim=512, num_users=31))
    assert encoder.embedding.weight.numel() == 15_872
    assert count(encoder) == 15_872 + 512


def test_user_encoder_drops_components_only_while_training():
    encoder = UserConditionEncoder(UserEncoderConfig(dim=1000, num_users=2, dropout=0.1))
    index = torch.tensor([1])
    assert 50 < (encoder.train()(index) == 0).sum() < 150
    assert (encoder.eval()(index) == 0).sum() == 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"cross_attention": (True,)}, "cross_attention has 1 entries for 3 channels"),
        ({"num_heads": (1, 2)}, "num_heads has 2 entries for 3 channels"),
        ({"norm_groups": 5}, "channels 32 cannot be divided into 5 norm_groups"),
        ({"num_heads": 5}, "channels 32 cannot be divided among 5 num_heads"),
        ({"num_heads": 0}, "at least 1"),
        ({"channels": (), "cross_attention": ()}, "at least 1"),
        ({"channels": (9, 18, 18), "norm_groups": 3, "num_heads": 3}, "must be even"),
    ],
)
def test_impossible_unets_are_refused_in_a_sentence(change, words):
    with pytest.raises(ValueError, match=words):
        replace(SMALL, **change)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"norm_groups": 5}, "channels 16 cannot be divided into 5 norm_groups"),
        ({"image_channels": 2}, "image_channels must be 1 .* or 3"),
        ({"scaling_factor": 0.0}, "scaling_factor must be from 1e-6 to 1e6"),
        ({"scaling_factor": 1e300}, "scaling_factor must be from 1e-6 to 1e6"),
        ({"channels": ()}, "at least 1"),
    ],
)
def test_impossible_vaes_are_refused_in_a_sentence(change, words):
    with pytest.raises(ValueError, match=words):
        replace(VAES["colour"], **change)
