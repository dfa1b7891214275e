"""Twenty training steps of ours are twenty of the same step written with `diffusers` models."""

import copy
from functools import partial

import diffusers
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from nets.denoiser import UserDenoiser
from tests.engine.problem import CPU, latent_stage, take_step
from tests.float64 import float64
from tests.oracle import diffusers_unet, diffusers_vae
from tests.tiny import tiny, tiny_images, tiny_vae
from train.config.sections import OptimConfig
from train.engine.optim import learning_rate
from train.engine.step import make_learner
from train.stages.vae import VAEBatch, VAEStage

STEPS, BATCH, WARMUP, CLIP = 20, 6, 5, 1.0
OPTIM = OptimConfig(1e-3, "constant", WARMUP, (0.9, 0.99), weight_decay=0.02, max_grad_norm=CLIP)
TOLERANCE = 1e-9  # far above what roundings of 1e-16 grow to in twenty steps


@pytest.fixture(autouse=True)
def _float64():
    with float64():
        yield


def train_ours(stage, parameters: list[nn.Parameter], batches: list) -> list[float]:
    """The losses of a stage's steps; two micro-batches, 4 + 2."""
    learner, found = make_learner(parameters, OPTIM, False, CPU, "no"), []
    for step, batch in enumerate(batches):
        learner.set_learning_rate(learning_rate(OPTIM, step, STEPS))
        found.append(take_step(learner, partial(stage.losses, batch), BATCH, 4).losses["loss"])
    return found


def train_theirs(parameters: list[nn.Parameter], loss_of) -> list[float]:
    """The step as a script has it: one batch, PyTorch's own warm-up, clipping and AdamW."""
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, betas=(0.9, 0.99), weight_decay=0.02)
    warmup = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min((step + 1) / WARMUP, 1.0))
    found = []
    for step in range(STEPS):
        loss = loss_of(step)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, CLIP)
        optimizer.step()
        warmup.step()
        found.append(loss.item())
    return found


def assert_same_training(ours: list[float], theirs: list[float]) -> None:
    assert min(theirs[-3:]) < 0.98 * theirs[0]  # something was learned, or the rest says little
    assert ours == pytest.approx(theirs, rel=TOLERANCE)


def assert_close_weights(ours: nn.Module, theirs: nn.Module, idle: set[str] = frozenset()) -> None:
    expected = theirs.state_dict()
    assert ours.state_dict().keys() == expected.keys()
    for name, weight in ours.state_dict().items():
        if name not in idle:
            error = (weight - expected[name]).norm() / expected[name].norm()
            assert error <= TOLERANCE, f"{name}: {error:.1e}"


@pytest.mark.parametrize("tokens", [1, 2])
@pytest.mark.parametrize(
    ("prediction", "their_prediction"), [("noise", "epsilon"), ("x0", "sample"), ("velocity", "v_prediction")]
)
def test_twenty_ldm_steps_have_losses_and_weights_of_diffusers(prediction, their_prediction, tokens):
    config = tiny(
        f"schedule.prediction={prediction}",
        f"user_encoder.tokens_per_user={tokens}",
        "user_encoder.dropout=0",
        "ldm_loss.condition_dropout=0.3",
    )
    torch.manual_seed(1)
    latents, who = torch.randn(STEPS, BATCH, 4, 8, 8), torch.randint(3, (STEPS, BATCH))
    stage = latent_stage(config, latents.flatten(0, 1), who.flatten())
    model = stage.model
    assert model.training
    unet = diffusers_unet(model.unet.config).train()
    unet.load_state_dict(model.unet.state_dict(), strict=True)
    users = copy.deepcopy(model.user_encoder.embedding)
    unconditional = copy.deepcopy(model.user_encoder.unconditional)
    rows = torch.arange(STEPS * BATCH).split(BATCH)
    batches = [stage.draw(step, rows[step]) for step in range(STEPS)]
    assert any(batch.diffusion.dropped.any() for batch in batches)

    scheduler = diffusers.DDPMScheduler(
        num_train_timesteps=1000, beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012,
        prediction_type=their_prediction,
    )  # fmt: skip

    def their_loss(step):
        x0, draws = latents[step], batches[step].diffusion
        condition = torch.where(draws.dropped[:, None], unconditional, users(who[step]))
        condition = condition.view(BATCH, tokens, -1)
        noisy = scheduler.add_noise(x0, draws.noise, draws.t)
        target = {
            "epsilon": draws.noise,
            "sample": x0,
            "v_prediction": scheduler.get_velocity(x0, draws.noise, draws.t),
        }[their_prediction]
        return F.mse_loss(unet(noisy, draws.t, condition).sample, target)

    parameters = [*unet.parameters(), *users.parameters(), unconditional]
    ours = train_ours(stage, model.trained_parameters(), batches)
    assert_same_training(ours, train_theirs(parameters, their_loss))
    assert_close_weights(model.unet, unet, idle_weights(model))
    torch.testing.assert_close(model.user_encoder.embedding.weight, users.weight, rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(model.user_encoder.unconditional, unconditional, rtol=0, atol=TOLERANCE)


def idle_weights(model: UserDenoiser) -> set[str]:
    """What has no effect with one token: we do not train it, AdamW over there makes it decay."""
    trained = {id(p) for p in model.trained_parameters()}
    return {name for name, p in model.unet.named_parameters() if id(p) not in trained}


@pytest.mark.parametrize(("reconstruction", "criterion"), [("l1", F.l1_loss), ("l2", F.mse_loss)])
def test_twenty_vae_steps_have_losses_and_weights_of_diffusers(reconstruction, criterion):
    config = tiny(f"vae_loss.reconstruction={reconstruction}", "vae_loss.kl_weight=0.01", "vae_loss.border_weight=1")
    vae = tiny_vae(config).train()
    other = diffusers_vae(vae.config).train()
    other.load_state_dict(vae.state_dict(), strict=True)
    torch.manual_seed(1)
    images = 0.5 * torch.randn(STEPS, BATCH, 3, 16, 16)
    noise = torch.randn(STEPS, BATCH, 4, 8, 8)
    stage = VAEStage(config, tiny_images(), vae, None)
    stage.build(CPU, "no")
    batches = [VAEBatch(images[step], noise[step], None) for step in range(STEPS)]

    def their_loss(step):
        posterior = other.encode(images[step]).latent_dist
        decoded = other.decode(posterior.mean + posterior.std * noise[step]).sample
        kl = posterior.kl().sum() / posterior.mean.numel()
        return criterion(decoded, images[step]) + 0.01 * kl

    ours = train_ours(stage, list(vae.parameters()), batches)
    assert_same_training(ours, train_theirs(list(other.parameters()), their_loss))
    assert_close_weights(vae, other)
