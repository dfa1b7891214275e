"""The VAE's losses in their stated units."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from nets.perceptual import LAYERS, VGG16Distance
from nets.vae import AutoencoderKL, DiagonalGaussian, VAEConfig
from tests.float64 import float64
from tests.tiny import tiny, tiny_vae
from train.base.errors import UserError
from train.config.sections import VAELossConfig
from train.stages.vae_loss import border_weights, load_vgg16, reconstruction_and_kl, spectral_distance, vae_losses

LOSS = VAELossConfig(kl_weight=1e-3)


# ---- reconstruction and KL


def posterior(batch: int = 2, channels: int = 4, side: int = 32) -> DiagonalGaussian:
    return DiagonalGaussian(torch.randn(batch, 2 * channels, side, side))


@pytest.mark.parametrize(("kind", "expected"), [("l1", [0.5, 3.0]), ("l2", [0.25, 9.0])])
@float64()
def test_reconstruction_is_the_mean_over_an_images_values(kind, expected):
    x = torch.randn(2, 3, 8, 8)
    decoded = x + torch.tensor([0.5, -3.0]).view(2, 1, 1, 1)
    terms = reconstruction_and_kl(x, decoded, posterior(), VAELossConfig(reconstruction=kind))
    assert terms["reconstruction"].tolist() == pytest.approx(expected, rel=1e-5)


def test_corners_count_as_the_square_of_the_border():
    weights = border_weights(5, 7, 4.0)
    inside = weights[1, 1]
    assert float(weights.mean()) == pytest.approx(1)
    assert (weights[1:-1, 1:-1] / inside - 1).abs().max() < 1e-6
    for border in (weights[0, 1:-1], weights[-1, 1:-1], weights[1:-1, 0], weights[1:-1, -1]):
        assert (border / inside - 4).abs().max() < 1e-5
    assert (weights[[0, 0, -1, -1], [0, -1, 0, -1]] / inside - 16).abs().max() < 1e-5
    assert torch.equal(border_weights(5, 7, 1.0), torch.ones(5, 7))


@float64()
def test_an_error_in_a_corner_costs_its_weight():
    x = torch.zeros(2, 3, 6, 6)
    decoded = x.clone()
    decoded[0, :, 2, 3], decoded[1, :, 0, -1] = 0.5, 0.5
    inside, corner = reconstruction_and_kl(x, decoded, posterior(), VAELossConfig(border_weight=3))["reconstruction"]
    assert float(corner / inside) == pytest.approx(9)


# ---- local spectra


@float64()
def test_the_magnitudes_are_those_of_a_windowed_fourier_transform():
    x, window = torch.randn(2, 3, 8, 8), torch.hann_window(8)
    expected = torch.fft.rfft2(x * window * window[:, None], norm="ortho").abs()
    assert torch.allclose(spectral_distance(torch.zeros_like(x), x), expected.flatten(1).mean(1))


@float64()
def test_a_wave_costs_its_amplitude_whatever_its_phase():
    at = torch.arange(32)
    waves = [torch.cos(2 * torch.pi * at / 4 + phase).expand(1, 1, 32, 32) for phase in (0.0, 1.0, 2.5)]
    nothing = torch.zeros(1, 1, 32, 32)
    cost = [float(spectral_distance(nothing, wave)) for wave in waves]
    assert cost == pytest.approx([cost[0]] * 3, rel=0.02)
    assert float(spectral_distance(nothing, 3 * waves[0])) == pytest.approx(3 * cost[0])
    assert float(spectral_distance(waves[0], waves[1])) < 0.1 * cost[0]


def test_of_two_errors_alike_texture_of_the_right_power_costs_less_than_none():
    texture, another = torch.randn(2, 4, 1, 64, 64)
    grey, right = torch.zeros(4, 1, 64, 64), another
    assert ((texture - right) ** 2).mean() > 1.5 * ((texture - grey) ** 2).mean()
    assert (spectral_distance(texture, right) < 0.7 * spectral_distance(texture, grey)).all()


def test_the_spectral_term_is_per_image_and_part_of_the_loss():
    x, decoded = torch.randn(2, 3, 3, 32, 32)
    alone = torch.cat([spectral_distance(x[i : i + 1], decoded[i : i + 1]) for i in range(3)])
    assert torch.allclose(spectral_distance(x, decoded), alone)
    vae, noise = tiny_vae(tiny()), torch.randn(3, 4, 16, 16)
    terms = vae_losses(vae, x, noise, replace(LOSS, spectral_weight=0.5))
    assert torch.allclose(terms["loss"], terms["reconstruction"] + 1e-3 * terms["kl"] + 0.5 * terms["spectral"])


def spots(count: int, side: int = 32) -> torch.Tensor:
    """Images (count, 3, side, side) of a bright ground with one dark spot each."""
    at, grid = torch.rand(count, 2, 1, 1) * side, torch.arange(side)
    squared = (grid.view(-1, 1) - at[:, :1]).square() + (grid - at[:, 1:]).square()
    return (0.5 - torch.exp(-squared / 40)).expand(-1, 3, -1, -1)


def corner_bias(border_weight: float) -> float:
    """How far (levels) the mean of a short-trained VAE's corner pixels is off."""
    loss = VAELossConfig(reconstruction="l2", border_weight=border_weight)
    torch.manual_seed(2)
    vae = AutoencoderKL(VAEConfig(channels=(8, 16), norm_groups=4))
    optimizer = torch.optim.Adam(vae.parameters(), lr=5e-3)
    for _ in range(120):
        optimizer.zero_grad()
        vae_losses(vae, spots(2), torch.randn(2, 4, 16, 16), loss)["loss"].mean().backward()
        optimizer.step()
    x = spots(64)
    with torch.no_grad():
        off = 127.5 * (vae.decode(vae.encode(x).mean) - x).mean(0)  # I H W
    return float(off[:, [0, 0, -1, -1], [0, -1, 0, -1]].square().mean().sqrt())


def test_corners_are_learnt_sooner_than_from_a_plain_mean():
    plain, weighted = corner_bias(1.0), corner_bias(4.0)
    assert plain > 8  # zero padding leaves a mark
    assert weighted < 0.75 * plain


def test_kl_is_the_mean_over_a_samples_latent_components_in_nats():
    moments = torch.zeros(2, 8, 5, 5)
    moments[1, :4] = 2.0  # a shift by 2 is 2 nats for each component
    x = torch.zeros(2, 3, 8, 8)
    assert reconstruction_and_kl(x, x, DiagonalGaussian(moments), LOSS)["kl"].tolist() == [0.0, 2.0]


def test_the_loss_is_reconstruction_plus_weighted_kl_per_sample():
    x, decoded = torch.randn(2, 2, 3, 8, 8)
    terms = reconstruction_and_kl(x, decoded, posterior(), replace(LOSS, kl_weight=0.125))
    assert terms["loss"].shape == (2,)
    torch.testing.assert_close(terms["loss"], terms["reconstruction"] + 0.125 * terms["kl"])


@float64()
def test_the_papers_weight_of_1e_6_on_sums_is_8_3e_8_on_means():
    """Rombach et al.: |x - y| summed over 49,152 values plus 1e-6 of the KL summed over 4,096 components."""
    x, decoded = torch.randn(2, 2, 3, 128, 128)
    gaussian = posterior()
    theirs = (decoded - x).abs().sum(dim=(1, 2, 3)) + 1e-6 * gaussian.kl()
    ours = reconstruction_and_kl(x, decoded, gaussian, VAELossConfig(kl_weight=8.333333e-8, border_weight=1))["loss"]
    torch.testing.assert_close(49_152 * ours, theirs)
    assert pytest.approx(8.3e-8, rel=0.01) == 1e-6 * 4096 / 49_152


def test_a_half_precision_reconstruction_is_compared_in_float32():
    x = torch.rand(2, 3, 8, 8)
    terms = reconstruction_and_kl(x, (x + 1).half(), posterior(), LOSS)
    assert {term.dtype for term in terms.values()} == {torch.float32}


# ---- the perceptual distance


@pytest.fixture(scope="module")
def vgg16() -> VGG16Distance:
    """Random weights that keep the size of activations, so that every stage has something to say."""
    torch.manual_seed(0)
    model = VGG16Distance()
    for module in model.features:
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
    return model


def test_the_perceptual_term_has_gradients_to_images_not_weights(vgg16):
    a = (torch.rand(2, 3, 16, 16) * 2 - 1).requires_grad_()
    b = torch.rand(2, 3, 16, 16) * 2 - 1
    vgg16(a, b).sum().backward()
    assert torch.isfinite(a.grad).all()
    assert (a.grad.flatten(1).norm(dim=1) > 0).all()
    assert all(p.grad is None and not p.requires_grad for p in vgg16.parameters())


@float64()
def test_the_perceptual_gradient_is_proportional_to_its_weight(vgg16):
    vgg16 = copy.deepcopy(vgg16).double()
    vae, x, noise = tiny_vae(tiny()).train(), torch.rand(2, 3, 16, 16) * 2 - 1, torch.randn(2, 4, 8, 8)
    found = []
    for weight in (0.0, 1.0, 2.0):
        loss = replace(LOSS, perceptual_weight=weight, perceptual_weights="x")
        total = vae_losses(vae, x, noise, loss, vgg16)["loss"].sum()
        found.append(torch.cat([g.flatten() for g in torch.autograd.grad(total, list(vae.parameters()))]))
    plain, once, twice = found
    assert (once - plain).norm() > 0.01 * plain.norm()
    assert ((twice - plain) - 2 * (once - plain)).norm() < 1e-9 * (once - plain).norm()


@float64()
def test_the_perceptual_distance_is_of_unit_features_of_5_stages(vgg16):
    """LPIPS, eq. 1, written with the functional layers; ImageNet's mean and deviation of pixels in [0, 1]."""
    vgg16 = copy.deepcopy(vgg16).double()
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]).view(2, 3, 1, 1)
    convolutions = iter([m for m in vgg16.features if isinstance(m, nn.Conv2d)])
    a, b = torch.rand(2, 2, 3, 32, 32) * 2 - 1
    ha, hb = ((x * 0.5 + 0.5 - mean) / std for x in (a, b))
    expected = torch.zeros(2)
    for stage, convs in enumerate((2, 2, 3, 3, 3)):
        if stage:
            ha, hb = F.max_pool2d(ha, 2), F.max_pool2d(hb, 2)
        for _ in range(convs):
            conv = next(convolutions)
            ha, hb = (F.relu(F.conv2d(h, conv.weight, conv.bias, padding=1)) for h in (ha, hb))
        expected += (F.normalize(ha, dim=1) - F.normalize(hb, dim=1)).square().sum(1).mean((1, 2))
    torch.testing.assert_close(vgg16(a, b), expected, rtol=1e-6, atol=0)


def test_distance_to_itself_is_zero_and_grey_counts_as_colour(vgg16):
    grey, other = torch.rand(2, 2, 1, 16, 16) * 2 - 1
    assert vgg16(grey, grey).abs().max() == 0
    colour = vgg16(grey.expand(-1, 3, -1, -1), other.expand(-1, 3, -1, -1))
    torch.testing.assert_close(vgg16(grey, other), colour)


def test_the_perceptual_distance_survives_fp16(vgg16):
    """Features of some hundreds have squares that fp16 cannot hold, and 1e-10 is zero in it."""
    loud = copy.deepcopy(vgg16)
    nn.init.kaiming_normal_(loud.features[0].weight)
    loud.features[0].weight.mul_(300)
    dark = torch.full((1, 3, 16, 16), -1.0)
    a, b = (torch.rand(1, 3, 16, 16) * 2 - 1).requires_grad_(), torch.cat([dark[:, :, :8], -dark[:, :, :8]], dim=2)
    expected = loud(a, b)
    with torch.autocast("cpu", dtype=torch.float16):
        distance = loud(a, b)
    distance.sum().backward()
    # Thirteen layers round their features to 2^-11, 0.6% if all were to add up, and the distance squares them.
    torch.testing.assert_close(distance, expected, rtol=0.02, atol=0)
    assert torch.isfinite(a.grad).all()


def test_torchvisions_vgg16_loads_without_its_classifier(tmp_path, vgg16):
    weights = dict(vgg16.state_dict())
    path = tmp_path / "vgg16.pth"
    torch.save(weights | {"classifier.0.weight": torch.zeros(2, 2)}, path)
    loaded = load_vgg16(str(path))
    x, y = torch.rand(2, 1, 3, 16, 16)
    assert torch.equal(loaded(x, y), vgg16(x, y))
    numbers = [i for i, m in enumerate(vgg16.features) if isinstance(m, nn.Conv2d)]
    assert numbers == [0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28]  # torchvision's
    assert [layer for layer in LAYERS if layer != "M"] == [weights[f"features.{i}.bias"].numel() for i in numbers]


@pytest.mark.parametrize(
    "change",
    [
        lambda w: w.pop("features.0.weight"),
        lambda w: w.update({"features.0.weight": torch.zeros(1)}),
        lambda w: w.update({"features.99.weight": torch.zeros(1)}),
        lambda w: w.clear(),
        lambda w: w.update({"features.0.weight": "text"}),
    ],
)
def test_a_file_of_other_weights_is_refused_by_name(tmp_path, vgg16, change):
    weights = {name: torch.zeros(1).expand(w.shape) for name, w in vgg16.state_dict().items()}  # small files
    change(weights)
    torch.save(weights, tmp_path / "vgg16.pth")
    with pytest.raises(UserError, match=r"vgg16\.pth: .*VGG16"):
        load_vgg16(str(tmp_path / "vgg16.pth"))
