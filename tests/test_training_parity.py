"""Twenty training steps of ours are twenty of the same step written with `diffusers` models."""

import contextlib
import copy

import diffusers
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from diffusion.schedule import make_schedule
from tests.oracle import diffusers_unet, diffusers_vae
from tests.tiny import tiny, tiny_denoiser, tiny_vae
from train.base.randomness import generator
from train.engine.optim import OptimConfig, learning_rate, make_adamw, set_learning_rate
from train.engine.step import optimizer_step
from train.stages.denoising import UserDenoiser, denoising_loss, draw_training_window
from train.stages.vae_loss import reconstruction_and_kl

CPU = torch.device("cpu")
STEPS, BATCH, WARMUP, CLIP = 20, 6, 5, 1.0
OPTIM = OptimConfig(1e-3, "constant", WARMUP, (0.9, 0.99), weight_decay=0.02, max_grad_norm=CLIP)


def train_ours(model: nn.Module, parameters: list[nn.Parameter], losses_of) -> list[float]:
    """losses_of(step) is the function of a slice that `optimizer_step` takes; two micro-batches, 4 + 2."""
    optimizer, found = make_adamw(parameters, OPTIM), []
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    for step in range(STEPS):
        set_learning_rate(optimizer, learning_rate(OPTIM, step, STEPS))
        result = optimizer_step(
            losses_of(step), BATCH, 4, parameters, optimizer, scaler, contextlib.nullcontext, CLIP
        )
        found.append(result.losses["loss"])
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
    assert ours == pytest.approx(theirs, rel=1e-5)


def assert_close_weights(ours: nn.Module, theirs: nn.Module, idle: set[str] = frozenset()) -> None:
    expected = theirs.state_dict()
    assert ours.state_dict().keys() == expected.keys()
    for name, weight in ours.state_dict().items():
        if name not in idle:
            error = (weight - expected[name]).norm() / expected[name].norm()
            assert error <= 1e-3, f"{name}: {error:.1e}"


@pytest.mark.parametrize("tokens", [1, 2])
@pytest.mark.parametrize(
    ("prediction", "their_prediction"), [("noise", "epsilon"), ("x0", "sample"), ("velocity", "v_prediction")]
)
def test_twenty_ldm_steps_have_the_losses_and_weights_of_the_same_steps_with_diffusers(
    prediction, their_prediction, tokens
):
    config = tiny(
        f"schedule.prediction={prediction}",
        f"user_encoder.tokens_per_user={tokens}",
        "user_encoder.dropout=0",
    )
    model = tiny_denoiser(config).train()
    unet = diffusers_unet(model.unet.config).train()
    unet.load_state_dict(model.unet.state_dict(), strict=True)
    users = copy.deepcopy(model.user_encoder.embedding)
    unconditional = copy.deepcopy(model.user_encoder.unconditional)
    torch.manual_seed(1)
    latents, who = torch.randn(STEPS, BATCH, 4, 8, 8), torch.randint(3, (STEPS, BATCH))
    chances = [generator(0, "draws", step) for step in range(STEPS)]
    shape = latents[0].shape
    draws = [draw_training_window(shape, 1000, 0.3, model.user_encoder, chance, CPU) for chance in chances]
    schedule = make_schedule(config.schedule)

    def our_losses(step):
        def losses(part):
            x0, users = latents[step, part], who[step, part]
            return {"loss": denoising_loss(model, schedule, config.ldm_loss, x0, users, draws[step][part])}

        return losses

    scheduler = diffusers.DDPMScheduler(
        num_train_timesteps=1000, beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012,
        prediction_type=their_prediction,
    )  # fmt: skip

    def their_loss(step):
        x0, chance = latents[step], draws[step].diffusion
        condition = torch.where(chance.dropped[:, None], unconditional, users(who[step]))
        condition = condition.view(BATCH, tokens, -1)
        noisy = scheduler.add_noise(x0, chance.noise, chance.t)
        target = {
            "epsilon": chance.noise,
            "sample": x0,
            "v_prediction": scheduler.get_velocity(x0, chance.noise, chance.t),
        }[their_prediction]
        return F.mse_loss(unet(noisy, chance.t, condition).sample, target)

    parameters = [*unet.parameters(), *users.parameters(), unconditional]
    ours = train_ours(model, model.trained_parameters(), our_losses)
    assert_same_training(ours, train_theirs(parameters, their_loss))
    assert_close_weights(model.unet, unet, idle_weights(model))
    torch.testing.assert_close(model.user_encoder.embedding.weight, users.weight, rtol=0, atol=1e-5)
    torch.testing.assert_close(model.user_encoder.unconditional, unconditional, rtol=0, atol=1e-5)


def idle_weights(model: UserDenoiser) -> set[str]:
    """What has no effect with one token: we do not train it, AdamW over there makes it decay."""
    trained = {id(p) for p in model.trained_parameters()}
    return {name for name, p in model.unet.named_parameters() if id(p) not in trained}


@pytest.mark.parametrize(("reconstruction", "criterion"), [("l1", F.l1_loss), ("l2", F.mse_loss)])
def test_twenty_vae_steps_have_the_losses_and_weights_of_the_same_steps_with_diffusers(
    reconstruction, criterion
):
    config = tiny(f"vae_loss.reconstruction={reconstruction}", "vae_loss.kl_weight=0.01")
    vae = tiny_vae(config).train()
    other = diffusers_vae(vae.config).train()
    other.load_state_dict(vae.state_dict(), strict=True)
    torch.manual_seed(1)
    images = 0.5 * torch.randn(STEPS, BATCH, 3, 16, 16)
    noise = torch.randn(STEPS, BATCH, 4, 8, 8)

    def our_losses(step):
        def losses(part):
            posterior = vae.encode(images[step, part])
            decoded = vae.decode(posterior.mean + posterior.std * noise[step, part])
            return reconstruction_and_kl(images[step, part], decoded, posterior, config.vae_loss)

        return losses

    def their_loss(step):
        posterior = other.encode(images[step]).latent_dist
        decoded = other.decode(posterior.mean + posterior.std * noise[step]).sample
        kl = posterior.kl().sum() / posterior.mean.numel()
        return criterion(decoded, images[step]) + 0.01 * kl

    ours = train_ours(vae, list(vae.parameters()), our_losses)
    assert_same_training(ours, train_theirs(list(other.parameters()), their_loss))
    assert_close_weights(vae, other)
