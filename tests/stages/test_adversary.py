"""An adversary that keeps to its own side, whatever pieces a batch is cut into."""

import copy
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn

from nets.discriminator import PatchDiscriminator
from tests.float64 import float64
from tests.tiny import tiny, tiny_vae
from train.base.errors import UserError
from train.config.sections import OptimConfig, TrainingConfig, VAELossConfig
from train.engine.micro_batch import MicroBatch
from train.engine.step import NotFinite, make_learner, mean_losses
from train.stages.adversary import Adversary
from train.stages.vae_loss import reconstruction_and_kl, vae_losses

CPU = torch.device("cpu")
OPTIM = OptimConfig(learning_rate=1e-3, warmup_steps=0, lr_schedule="constant")
LOSS = VAELossConfig(kl_weight=1e-3, adversarial_weight=0.5)
BATCH = 6


@pytest.fixture(autouse=True)
def _small_discriminators(monkeypatch):
    monkeypatch.setattr("train.stages.adversary.PatchDiscriminator", partial(PatchDiscriminator, channels=4))


class Training:
    """Steps of a VAE and its adversary, as the VAE's stage takes them."""

    def __init__(self, loss: VAELossConfig = LOSS):
        self.vae = tiny_vae(tiny()).train()
        self.learner = make_learner(list(self.vae.parameters()), OPTIM, False, CPU, "no")
        torch.manual_seed(1)
        self.adversary = Adversary(3, loss, OPTIM, CPU, "no")
        self.images = torch.rand(BATCH, 3, 24, 24) * 2 - 1
        self.noise = torch.randn(BATCH, 4, 12, 12)
        self.last_layer = self.vae.decoder.conv_out.weight

    def losses(self, part: slice, scale: float = 1.0) -> dict[str, torch.Tensor]:
        config = self.adversary.config
        return vae_losses(self.vae, self.images[part], self.noise[part], config, None, self.adversary, scale)

    def step_of_the_vae(self, micro_batch: int = BATCH) -> None:
        totals = self.learner.accumulate(self.losses, BATCH, micro_batch)
        grad_norm = self.learner.clip()
        assert self.learner.step(mean_losses(totals)["loss"], grad_norm)

    def learn(self, micro_batch: int = BATCH) -> dict[str, float]:
        return self.adversary.learn(self.images, OPTIM.learning_rate, pieces_of(micro_batch))


def pieces_of(size: int, auto: bool = True) -> MicroBatch:
    return MicroBatch(TrainingConfig("runs/x", BATCH, num_epochs=1, auto_batch=auto), size)


def gradients(model: nn.Module) -> list[torch.Tensor | None]:
    return [None if p.grad is None else p.grad.clone() for p in model.parameters()]


def same(before: list, after: list) -> bool:
    return all(a is b is None or torch.equal(a, b) for a, b in zip(before, after, strict=True))


def flat(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_the_generators_pass_leaves_the_discriminator_untouched():
    run = Training()
    for parameter in run.adversary.discriminator.parameters():
        parameter.grad = torch.randn_like(parameter)
    before, weights = gradients(run.adversary.discriminator), flat(run.adversary.discriminator)
    run.adversary.adaptive_weight = 1.0
    run.step_of_the_vae()
    assert same(before, gradients(run.adversary.discriminator))
    assert torch.equal(weights, flat(run.adversary.discriminator))


def test_the_discriminators_pass_leaves_the_vae_untouched():
    run = Training()
    run.step_of_the_vae()
    before, weights, own = gradients(run.vae), flat(run.vae), flat(run.adversary.discriminator)
    assert all(gradient is not None for gradient in before)
    run.learn()
    assert same(before, gradients(run.vae))
    assert torch.equal(weights, flat(run.vae))
    assert not torch.equal(own, flat(run.adversary.discriminator))


def test_the_adversarial_term_reaches_the_vae():
    with_it, without = Training(), Training(replace(LOSS, adversarial_weight=0.0))
    for run in (with_it, without):
        run.adversary.adaptive_weight = 1.0
        run.losses(slice(None))["loss"].sum().backward()
    assert not torch.equal(with_it.last_layer.grad, without.last_layer.grad)


@float64()
def test_the_adaptive_weight_balances_gradients_one_batch_later():
    """Esser et al. 2021, eq. 7, of means over the batch."""
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
    assert terms["adversarial"].abs().max() == 0  # in the first batch it is only measured
    assert run.learn()["adaptive_weight"] == pytest.approx(expected, rel=1e-9)
    logits = run.adversary.discriminator(decoded).flatten(1).mean(1)
    torch.testing.assert_close(run.losses(slice(None))["adversarial"], -0.5 * expected * logits)


@pytest.mark.parametrize("scale", [1.0, 2.0**16])
@pytest.mark.parametrize("micro_batch", [1, 4, 6])
@float64()
def test_the_adaptive_weight_ignores_micro_batch_and_loss_scale(micro_batch, scale):
    expected, run = Training(), Training()
    expected.losses(slice(None))
    for start in range(0, BATCH, micro_batch):
        run.losses(slice(start, start + micro_batch), scale)
    assert run.learn()["adaptive_weight"] == pytest.approx(expected.learn()["adaptive_weight"], rel=1e-9)


@pytest.mark.parametrize("micro_batch", [1, 2, 4])
@float64()
def test_any_micro_batch_trains_vae_and_discriminator_alike(micro_batch):
    whole, cut = Training(), Training()
    start = flat(whole.vae)
    for run, size in ((whole, BATCH), (cut, micro_batch)):
        for _ in range(4):
            run.step_of_the_vae(size)
            run.learn(size)
    assert whole.adversary.adaptive_weight > 0
    for name, a, b in (
        ("vae", whole.vae, cut.vae),
        ("discriminator", whole.adversary.discriminator, cut.adversary.discriminator),
    ):
        assert (flat(a) - flat(b)).norm() <= 1e-9 * flat(a).norm(), name
    assert (flat(whole.vae) - start).norm() > 1e-3 * start.norm()


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_an_overflow_leaves_the_adaptive_weight_as_it_was(value):
    run = Training()
    run.adversary.adaptive_weight = 0.75
    run.losses(slice(None))
    run.adversary.reconstruction_gradient *= value
    assert run.learn()["adaptive_weight"] == 0.75


def test_a_batch_that_was_given_up_leaves_nothing_to_the_next():
    once, twice = Training(), Training()
    twice.losses(slice(0, 3))
    twice.adversary.begin_batch()
    for run in (once, twice):
        run.losses(slice(None))
    assert once.learn() == twice.learn()
    assert torch.equal(flat(once.adversary.discriminator), flat(twice.adversary.discriminator))


@pytest.mark.parametrize(("logit", "expected"), [(0.0, 1.0), (0.5, 1.0), (3.0, 2.0), (-3.0, 2.0)])
def test_the_discriminator_loses_the_hinge(logit, expected):
    """A discriminator that always says c loses (max(0, 1 - c) + max(0, 1 + c)) / 2."""
    run = Training()
    last = run.adversary.discriminator.layers[-1]
    nn.init.zeros_(last.weight)
    nn.init.constant_(last.bias, logit)
    run.losses(slice(None))
    assert run.learn()["discriminator"] == pytest.approx(expected)


def test_a_restored_adversary_goes_on_as_if_never_stopped():
    whole = Training()
    for _ in range(2):
        whole.step_of_the_vae()
        whole.learn()
    resumed = Training()
    for ours, theirs in (
        (resumed.vae, whole.vae), (resumed.learner.optimizer, whole.learner.optimizer),
        (resumed.adversary, whole.adversary),
    ):  # fmt: skip
        ours.load_state_dict(copy.deepcopy(theirs.state_dict()))
    for run in (whole, resumed):
        run.step_of_the_vae()
        run.learn()
    assert torch.equal(flat(whole.vae), flat(resumed.vae))
    assert torch.equal(flat(whole.adversary.discriminator), flat(resumed.adversary.discriminator))
    assert whole.adversary.adaptive_weight == resumed.adversary.adaptive_weight


def test_the_discriminator_learns_at_the_rate_that_it_is_given():
    run = Training()
    before = flat(run.adversary.discriminator)
    run.losses(slice(None))
    run.adversary.learn(run.images, 0.0, pieces_of(BATCH))
    assert torch.equal(flat(run.adversary.discriminator), before)


def out_of_memory_above(monkeypatch, size: int) -> list[int]:
    """Pretend that the discriminator's own pass has room for so many images; the sizes that it is asked for."""
    asked, true_forward = [], PatchDiscriminator.forward

    def forward(self, x):
        if next(self.parameters()).requires_grad:  # it learns
            asked.append(len(x))
            if len(x) > size:
                raise torch.OutOfMemoryError("tried to allocate 9 GiB")
        return true_forward(self, x)

    monkeypatch.setattr(PatchDiscriminator, "forward", forward)
    return asked


@float64()
def test_a_discriminator_out_of_memory_learns_the_same_in_pieces(monkeypatch):
    whole, cut = Training(), Training()
    for run in (whole, cut):
        run.losses(slice(None))
    expected = whole.learn()
    asked, micro_batch = out_of_memory_above(monkeypatch, 2), pieces_of(BATCH)
    found = cut.adversary.learn(cut.images, OPTIM.learning_rate, micro_batch)
    assert micro_batch.size == 2
    assert set(asked) == {6, 3, 2}
    assert found == pytest.approx(expected, rel=1e-9)
    torch.testing.assert_close(flat(cut.adversary.discriminator), flat(whole.adversary.discriminator))


def test_without_auto_batch_its_out_of_memory_is_an_error(monkeypatch):
    run = Training()
    run.losses(slice(None))
    out_of_memory_above(monkeypatch, 2)
    with pytest.raises(UserError, match="out of memory with a batch_size of 6"):
        run.adversary.learn(run.images, OPTIM.learning_rate, pieces_of(BATCH, auto=False))


def test_a_loss_not_finite_is_told_and_changes_no_weight():
    run = Training()
    run.losses(slice(None))
    run.images[2] = float("nan")
    before = flat(run.adversary.discriminator)
    with pytest.raises(NotFinite, match="the discriminator's loss nan"):
        run.learn()
    assert torch.equal(flat(run.adversary.discriminator), before)


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


@float64()
def test_an_image_is_judged_by_itself_whatever_its_batch():
    discriminator = PatchDiscriminator(1, channels=8).train()
    x = torch.randn(3, 1, 32, 32)
    with torch.no_grad():
        together = discriminator(x)
        alone = torch.cat([discriminator(image[None]) for image in x])
    torch.testing.assert_close(together, alone)
