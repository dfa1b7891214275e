"""The VAE's losses in their stated units, and an adversary that keeps to its own side."""

import contextlib
import copy
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from nets.discriminator import PatchDiscriminator
from nets.perceptual import LAYERS, VGG16Distance
from nets.vae import DiagonalGaussian
from tests.tiny import tiny, tiny_vae
from train.base.errors import UserError
from train.engine.optim import OptimConfig, make_adamw
from train.engine.step import optimizer_step
from train.stages.vae_loss import Adversary, VAELossConfig, load_vgg16, reconstruction_and_kl, vae_losses

CPU = torch.device("cpu")
OPTIM = OptimConfig(learning_rate=1e-3, warmup_steps=0, lr_schedule="constant")
LOSS = VAELossConfig(kl_weight=1e-3, adversarial_weight=0.5)
WINDOW = 6


# ---- reconstruction and KL


def posterior(batch: int = 2, channels: int = 4, side: int = 32) -> DiagonalGaussian:
    return DiagonalGaussian(torch.randn(batch, 2 * channels, side, side))


@pytest.mark.parametrize(("kind", "expected"), [("l1", [0.5, 3.0]), ("l2", [0.25, 9.0])])
def test_reconstruction_is_the_mean_over_an_images_values(kind, expected):
    x = torch.randn(2, 3, 8, 8)
    decoded = x + torch.tensor([0.5, -3.0]).view(2, 1, 1, 1)
    terms = reconstruction_and_kl(x, decoded, posterior(), VAELossConfig(reconstruction=kind))
    assert terms["reconstruction"].tolist() == pytest.approx(expected, rel=1e-5)


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


def test_the_papers_weight_of_1e_6_on_sums_is_8_3e_8_on_means():
    """Rombach et al.: |x - y| summed over 49,152 values plus 1e-6 of the KL summed over 4,096 components."""
    x, decoded = torch.randn(2, 2, 3, 128, 128)
    gaussian = posterior()
    theirs = (decoded - x).abs().sum(dim=(1, 2, 3)) + 1e-6 * gaussian.kl()
    ours = reconstruction_and_kl(x, decoded, gaussian, VAELossConfig(kl_weight=8.333333e-8))["loss"]
    torch.testing.assert_close(49_152 * ours, theirs)
    assert pytest.approx(8.3e-8, rel=0.01) == 1e-6 * 4096 / 49_152


def test_a_half_precision_reconstruction_is_compared_in_float32():
    x = torch.rand(2, 3, 8, 8)
    terms = reconstruction_and_kl(x, (x + 1).half(), posterior(), LOSS)
    assert {term.dtype for term in terms.values()} == {torch.float32}


@pytest.mark.parametrize(
    "change",
    [
        {"kl_weight": -1.0},
        {"adversarial_weight": -1.0},
        {"adversarial_start": -1},
        {"perceptual_weight": -1.0},
        {"perceptual_weight": 1.0},
    ],
)
def test_impossible_weights_are_refused_by_name(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        replace(LOSS, **change)


# ---- the adversary


@pytest.fixture(autouse=True)
def _small_discriminators(monkeypatch):
    monkeypatch.setattr("train.vae_loss.PatchDiscriminator", partial(PatchDiscriminator, channels=4))


class Training:
    """VAE steps with an adversary, as train/vae.py takes them."""

    def __init__(self, loss: VAELossConfig = LOSS):
        self.vae = tiny_vae(tiny()).train()
        self.optimizer = make_adamw(self.vae.parameters(), OPTIM)
        torch.manual_seed(1)
        self.adversary = Adversary(3, replace(loss), OPTIM, CPU, "no")
        self.images = torch.rand(WINDOW, 3, 24, 24) * 2 - 1
        self.noise = torch.randn(WINDOW, 4, 12, 12)
        self.last_layer = self.vae.decoder.conv_out.weight

    def losses(self, part: slice, scale: float = 1.0) -> dict[str, torch.Tensor]:
        x = self.images[part]
        gaussian = self.vae.encode(x)
        decoded = self.vae.decode(gaussian.mean + gaussian.std * self.noise[part])
        terms = reconstruction_and_kl(x, decoded, gaussian, self.adversary.config)
        term = self.adversary.generator_loss(decoded, terms["loss"], self.last_layer, scale)
        return terms | {"adversarial": term, "loss": terms["loss"] + term}

    def step_of_the_vae(self, micro_batch: int = WINDOW) -> None:
        parameters, scaler = list(self.vae.parameters()), torch.amp.GradScaler("cpu", enabled=False)
        optimizer_step(
            self.losses, WINDOW, micro_batch, parameters, self.optimizer, scaler, contextlib.nullcontext, 1.0
        )

    def finish(self, micro_batch: int = WINDOW) -> dict[str, float]:
        return self.adversary.finish_window(self.images, micro_batch, contextlib.nullcontext)


def gradients(model: nn.Module) -> list[torch.Tensor | None]:
    return [None if p.grad is None else p.grad.clone() for p in model.parameters()]


def same(before: list, after: list) -> bool:
    return all(a is b is None or torch.equal(a, b) for a, b in zip(before, after, strict=True))


def flat(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_the_generators_pass_leaves_the_discriminators_gradients_and_weights_untouched():
    run = Training()
    for parameter in run.adversary.discriminator.parameters():
        parameter.grad = torch.randn_like(parameter)
    before, weights = gradients(run.adversary.discriminator), flat(run.adversary.discriminator)
    run.adversary.adaptive_weight = 1.0
    run.step_of_the_vae()
    assert same(before, gradients(run.adversary.discriminator))
    assert torch.equal(weights, flat(run.adversary.discriminator))


def test_the_discriminators_pass_leaves_the_vaes_gradients_and_weights_untouched():
    run = Training()
    run.step_of_the_vae()
    before, weights, own = gradients(run.vae), flat(run.vae), flat(run.adversary.discriminator)
    assert all(gradient is not None for gradient in before)
    run.finish()
    assert same(before, gradients(run.vae))
    assert torch.equal(weights, flat(run.vae))
    assert not torch.equal(own, flat(run.adversary.discriminator))


def test_the_adversarial_term_reaches_the_vae():
    with_it, without = Training(), Training(replace(LOSS, adversarial_weight=0.0))
    for run in (with_it, without):
        run.adversary.adaptive_weight = 1.0
        run.losses(slice(None))["loss"].sum().backward()
    assert not torch.equal(with_it.last_layer.grad, without.last_layer.grad)


def test_the_adaptive_weight_balances_the_two_gradients_at_the_last_layer_one_window_later():
    """Esser et al. 2021, eq. 7, of means over the window."""
    run = Training()
    gaussian = run.vae.encode(run.images)
    decoded = run.vae.decode(gaussian.mean + gaussian.std * run.noise)
    error = reconstruction_and_kl(run.images, decoded, gaussian, LOSS)["loss"].mean()
    fooled = -run.adversary.discriminator(decoded).mean()
    wanted, adversarial = (
        torch.autograd.grad(loss, run.last_layer, retain_graph=True)[0].norm() for loss in (error, fooled)
    )
    expected = float(wanted / (adversarial + 1e-4))
    terms = run.losses(slice(None))
    assert terms["adversarial"].abs().max() == 0  # in the first window it is only measured
    assert run.finish()["adaptive_weight"] == pytest.approx(expected, rel=1e-5)
    logits = run.adversary.discriminator(decoded).flatten(1).mean(1)
    torch.testing.assert_close(run.losses(slice(None))["adversarial"], -0.5 * expected * logits)


@pytest.mark.parametrize("scale", [1.0, 2.0**16])
@pytest.mark.parametrize("micro_batch", [1, 4, 6])
def test_the_adaptive_weight_depends_neither_on_micro_batches_nor_on_the_loss_scale(micro_batch, scale):
    expected, run = Training(), Training()
    expected.losses(slice(None))
    for start in range(0, WINDOW, micro_batch):
        run.losses(slice(start, start + micro_batch), scale)
    assert run.finish()["adaptive_weight"] == pytest.approx(expected.finish()["adaptive_weight"], rel=1e-5)


@pytest.mark.parametrize("micro_batch", [1, 2, 4])
def test_any_cut_of_a_window_trains_vae_and_discriminator_alike(micro_batch):
    whole, cut = Training(), Training()
    start = flat(whole.vae)
    for run, size in ((whole, WINDOW), (cut, micro_batch)):
        for _ in range(4):
            run.step_of_the_vae(size)
            run.finish(size)
    assert whole.adversary.adaptive_weight > 0
    for name, a, b in (
        ("vae", whole.vae, cut.vae),
        ("discriminator", whole.adversary.discriminator, cut.adversary.discriminator),
    ):
        assert (flat(a) - flat(b)).norm() <= 1e-5 * flat(a).norm(), name
    assert (flat(whole.vae) - start).norm() > 1e-3 * start.norm()


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_a_measurement_that_overflowed_leaves_the_adaptive_weight_as_it_was(value):
    run = Training()
    run.adversary.adaptive_weight = 0.75
    run.losses(slice(None))
    run.adversary.reconstruction_gradient *= value
    assert run.finish()["adaptive_weight"] == 0.75


def test_a_window_that_was_given_up_leaves_nothing_to_the_next():
    once, twice = Training(), Training()
    twice.losses(slice(0, 3))
    twice.adversary.begin_window()
    for run in (once, twice):
        run.losses(slice(None))
    assert once.finish() == twice.finish()
    assert torch.equal(flat(once.adversary.discriminator), flat(twice.adversary.discriminator))


@pytest.mark.parametrize(("logit", "expected"), [(0.0, 1.0), (0.5, 1.0), (3.0, 2.0), (-3.0, 2.0)])
def test_the_discriminator_loses_the_hinge(logit, expected):
    """A discriminator that always says c loses (max(0, 1 - c) + max(0, 1 + c)) / 2."""
    run = Training()
    last = run.adversary.discriminator.layers[-1]
    nn.init.zeros_(last.weight)
    nn.init.constant_(last.bias, logit)
    run.losses(slice(None))
    assert run.finish()["discriminator"] == pytest.approx(expected)


def test_an_adversary_that_is_restored_goes_on_as_if_never_stopped():
    whole = Training()
    for _ in range(2):
        whole.step_of_the_vae()
        whole.finish()
    resumed = Training()
    for name in ("vae", "optimizer", "adversary"):
        getattr(resumed, name).load_state_dict(copy.deepcopy(getattr(whole, name).state_dict()))
    for run in (whole, resumed):
        run.step_of_the_vae()
        run.finish()
    assert torch.equal(flat(whole.vae), flat(resumed.vae))
    assert torch.equal(flat(whole.adversary.discriminator), flat(resumed.adversary.discriminator))
    assert whole.adversary.adaptive_weight == resumed.adversary.adaptive_weight


# ---- the discriminator


def test_a_logit_judges_a_patch_of_70_pixels():
    """Of the convolutions; the norms also see the whole image's mean and variance."""
    discriminator = PatchDiscriminator(3, channels=4)
    convolutions = nn.Sequential(*(m for m in discriminator.layers if not isinstance(m, nn.GroupNorm)))
    x = torch.randn(1, 3, 128, 128, requires_grad=True)
    logits = convolutions(x)
    assert logits.shape == discriminator(x).shape == (1, 1, 14, 14)
    logits[0, 0, 7, 7].backward()
    seen = x.grad[0].abs().sum(dim=0) > 0
    for axis in (0, 1):
        touched = seen.any(dim=1 - axis).nonzero().flatten()
        assert touched[-1] - touched[0] + 1 == 70


def test_an_image_is_judged_by_itself_whatever_its_batch():
    discriminator = PatchDiscriminator(1, channels=8).train()
    x = torch.randn(3, 1, 32, 32)
    with torch.no_grad():
        together = discriminator(x)
        alone = torch.cat([discriminator(image[None]) for image in x])
    torch.testing.assert_close(together, alone)


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


def test_the_perceptual_term_has_a_gradient_to_the_images_and_none_to_its_weights(vgg16):
    a = (torch.rand(2, 3, 16, 16) * 2 - 1).requires_grad_()
    b = torch.rand(2, 3, 16, 16) * 2 - 1
    vgg16(a, b).sum().backward()
    assert torch.isfinite(a.grad).all()
    assert (a.grad.flatten(1).norm(dim=1) > 0).all()
    assert all(p.grad is None and not p.requires_grad for p in vgg16.parameters())


def test_the_perceptual_term_has_a_gradient_to_the_vae_as_long_as_its_weight(vgg16):
    vae, x, noise = tiny_vae(tiny()).train(), torch.rand(2, 3, 16, 16) * 2 - 1, torch.randn(2, 4, 8, 8)
    found = []
    for weight in (0.0, 1.0, 2.0):
        loss = replace(LOSS, perceptual_weight=weight, perceptual_weights="x", adversarial_weight=0.0)
        total = vae_losses(vae, x, noise, loss, vgg16)["loss"].sum()
        found.append(torch.cat([g.flatten() for g in torch.autograd.grad(total, list(vae.parameters()))]))
    plain, once, twice = found
    assert (once - plain).norm() > 0.01 * plain.norm()
    assert ((twice - plain) - 2 * (once - plain)).norm() < 1e-4 * (once - plain).norm()


def test_the_perceptual_distance_is_that_of_unit_features_at_the_end_of_five_stages(vgg16):
    """LPIPS, eq. 1, written with the functional layers; ImageNet's mean and deviation of pixels in [0, 1]."""
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
    torch.testing.assert_close(vgg16(a, b), expected, rtol=1e-4, atol=1e-6)


def test_an_image_is_at_distance_zero_of_itself_and_grey_counts_as_colour(vgg16):
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
    torch.testing.assert_close(distance, expected, rtol=0.02, atol=0)
    assert torch.isfinite(a.grad).all()


def test_a_file_of_torchvisions_vgg16_loads_and_its_classifier_is_left_out(tmp_path, vgg16):
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
