"""The update rules from x at one noise level to x at the next; none of them calls the network.

Each takes x (B, ...) at `now.level`, the network's evaluation `now`, the next level `to`, the `previous` evaluation
(None in the first step) and standard normal `noise` shaped like x (None for deterministic rules, and in the step to
clean data).
"""

from torch import Tensor

from diffusion.prediction import Evaluation
from diffusion.schedule import Level


def ddpm(x: Tensor, now: Evaluation, to: Level, previous: Evaluation | None, noise: Tensor | None) -> Tensor:
    """Ancestral sampling (DDPM, Ho et al. 2020), over any subsequence of the timesteps.

    Draws x_s from the posterior q(x_s | x_t, x_0) at the estimated x_0 (eqs. 6, 7), with the "fixed small" variance.
    """
    t = now.level
    abar_t, abar_s = t.alpha**2, to.alpha**2
    alpha = abar_t / abar_s  # the paper's alpha_t, for a step from s to t
    beta = 1 - alpha
    mean = (to.alpha * beta * now.x0 + alpha**0.5 * to.sigma**2 * x) / t.sigma**2
    variance = beta * (to.sigma / t.sigma) ** 2
    return mean if noise is None else mean + variance**0.5 * noise


def ddim(
    x: Tensor, now: Evaluation, to: Level, previous: Evaluation | None, noise: Tensor | None, eta: float = 0.0
) -> Tensor:
    """DDIM (Song et al. 2021, eq. 12, with the sigma of eq. 16).

    eta = 0 is deterministic and needs no noise; eta = 1 is DDPM.
    """
    t = now.level
    sigma_eta = eta * (to.sigma / t.sigma) * (1 - (t.alpha / to.alpha) ** 2) ** 0.5
    direction = max(0.0, to.sigma**2 - sigma_eta**2) ** 0.5  # with eta = 1 rounding may make the difference negative
    x = to.alpha * now.x0 + direction * now.noise
    return x if noise is None else x + sigma_eta * noise


def dpm_solver(x: Tensor, now: Evaluation, to: Level, previous: Evaluation | None, noise: Tensor | None) -> Tensor:
    """DPM-Solver++(2M): second order with one network call a step (Lu et al. 2022b, algorithm 2).

    Without a previous evaluation, and in the step to clean data, it is first order, which is DDIM. `weight` is the
    paper's -alpha_t (exp(-h) - 1), in a form that stays finite at both ends of the schedule.
    """
    ratio = to.sigma / now.level.sigma
    weight = to.alpha - now.level.alpha * ratio
    D = now.x0
    if previous is not None and to.sigma > 0:
        # The paper's h are differences of lambda = log_snr / 2; only their ratio r matters.
        h_previous = now.level.log_snr - previous.level.log_snr
        h = to.log_snr - now.level.log_snr
        r = h_previous / h
        D = now.x0 + (now.x0 - previous.x0) / (2 * r)
    return ratio * x + weight * D


def euler(x: Tensor, now: Evaluation, to: Level, previous: Evaluation | None, noise: Tensor | None) -> Tensor:
    """Euler's method on the probability-flow ODE in the coordinates of Karras et al. 2022.

    The ODE is d(x/alpha) / d(sigma/alpha) = noise estimate (eq. 1). As x/alpha = x0 + ratio * noise, Euler's step
    x/alpha + (new ratio - ratio) * noise is x0 + new ratio * noise. In this form no two large numbers cancel near zero
    SNR. It is the same as DDIM with eta = 0 (Song et al. 2021, eq. 14).
    """
    return to.alpha * now.x0 + to.sigma * now.noise


def correct_by_heun(x: Tensor, now: Evaluation, predicted: Evaluation) -> Tensor:
    """The second half of Heun's method (Karras et al. 2022, algorithm 1, without churn), after Euler's step.

    It replaces the slope at the start of the step by the mean of the slopes at both ends, for second order. `predicted`
    is the evaluation at Euler's x.
    """
    start, end = now.level, predicted.level
    # At a terminal SNR of (nearly) zero, sigma/alpha is (nearly) infinite, and the correction would multiply a small
    # difference of slopes by thousands. Keep Euler's step there: it is a single step, whose error is of second order
    # in the end's alpha.
    if start.alpha < 1e-3:
        return x
    ratio_step = end.noise_ratio - start.noise_ratio
    return x + end.alpha * ratio_step * (predicted.noise - now.noise) / 2
