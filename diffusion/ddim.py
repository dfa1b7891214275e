"""DDIM (Song et al. 2021)."""

from torch import Tensor

from diffusion.prediction import Evaluation
from diffusion.schedule import Level


def step(
    x: Tensor,
    now: Evaluation,
    to: Level,
    previous: Evaluation | None,
    noise: Tensor | None,
    eta: float = 0.0,
) -> Tensor:
    """Eq. 12, with its sigma from eq. 16: "predicted x_0" + "direction pointing to x_t" + "random noise".

    eta = 0 is deterministic, and eta = 1 is DDPM. x: (B, ...). noise: standard normal, shaped like x, or None
    where eta is 0 and in the step to clean data.
    """
    t = now.level
    sigma_eta = eta * (to.sigma / t.sigma) * (1 - (t.alpha / to.alpha) ** 2) ** 0.5
    direction = max(0.0, to.sigma**2 - sigma_eta**2) ** 0.5  # rounding may take it below 0 where eta = 1
    x = to.alpha * now.x0 + direction * now.noise
    return x if noise is None else x + sigma_eta * noise
