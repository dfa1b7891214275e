"""Small things to learn: a network with its samples, and an LDM of the real stage on latents that are given."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from tests.tiny import tiny_images, tiny_vae
from train.config.schema import Config
from train.config.sections import MixedPrecision
from train.engine.optim import make_adamw
from train.engine.precision import autocast_to
from train.engine.step import Learner, mean_losses
from train.stages.ldm import LDMStage

CPU = torch.device("cpu")
NO_LIMIT = 1e9


class Problem:
    """A network, `batch` samples, and their losses."""

    def __init__(self, batch: int, seed: int = 0):
        torch.manual_seed(seed)
        self.batch = batch
        self.model = nn.Sequential(nn.Linear(5, 16), nn.SiLU(), nn.LayerNorm(16), nn.Linear(16, 3))
        self.x, self.y = torch.randn(batch, 5), torch.randn(batch, 3)

    def losses(self, rows: slice | Tensor) -> dict[str, Tensor]:
        error = self.model(self.x[rows]) - self.y[rows]
        squared = error.float().square().mean(1)
        return {"loss": squared, "absolute": error.float().abs().mean(1)}

    def parameters(self) -> list[nn.Parameter]:
        return list(self.model.parameters())

    def weights(self) -> Tensor:
        return torch.cat([p.detach().flatten() for p in self.parameters()])

    def gradient(self) -> Tensor:
        return torch.cat([p.grad.flatten() for p in self.parameters()])

    def true_gradient(self) -> Tensor:
        """Of the mean loss of all the samples, in float64."""
        model = copy.deepcopy(self.model).double()
        (model(self.x.double()) - self.y.double()).square().mean().backward()
        return torch.cat([p.grad.flatten() for p in model.parameters()])


@dataclass(frozen=True)
class Taken:
    """What came of an optimizer step."""

    taken: bool
    losses: dict[str, float]
    grad_norm: float


def scaler(enabled: bool = True, **options) -> torch.amp.GradScaler:
    return torch.amp.GradScaler("cpu", enabled=enabled, **options)


def learner_of(
    problem: Problem, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, max_grad_norm: float = NO_LIMIT,
    precision: MixedPrecision = "no",
) -> Learner:  # fmt: skip
    return Learner(problem.parameters(), optimizer, scaler, autocast_to(CPU, precision), max_grad_norm)


def adamw_learner(problem: Problem, config, scaler: torch.amp.GradScaler, **options) -> Learner:
    return learner_of(problem, make_adamw(problem.parameters(), config), scaler, **options)


def take_step(learner: Learner, losses: Callable[[slice], dict], batch: int, micro_batch: int = 4) -> Taken:
    """What the trainer does with a batch that fits."""
    totals = learner.accumulate(losses, batch, micro_batch)
    grad_norm = learner.clip()
    means = mean_losses(totals)
    return Taken(learner.step(means["loss"], grad_norm), means, grad_norm)


def latent_stage(config: Config, latents: Tensor, users: Tensor | None = None) -> LDMStage:
    """The LDM stage, built, where these (N, Z, h, w) are the latents of N images; of three users in turn."""
    data = tiny_images(len(latents), config.data.resolution)
    if users is not None:
        data = replace(data, user_index=users)
    stage = LDMStage(config, data, tiny_vae(config, scaling_factor=1.0))
    stage.build(CPU, "no")
    stage.use_latents(torch.stack([latents, torch.zeros_like(latents)], dim=1))
    return stage
