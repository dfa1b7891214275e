"""A discriminator that learns to tell images from reconstructions, and the VAE's adversarial loss.

Hinge losses and the adaptive weight of Esser et al. 2021, eq. 7, which makes the term's gradient at the decoder's last
layer as long as the reconstruction's. The ratio of the two is measured over a whole batch and used in the next one, so
that micro-batches add up to the full batch's gradient.

Shapes: B batch, I image channels, H W image.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nets.discriminator import PatchDiscriminator
from train.base.processes import gather
from train.config.sections import MixedPrecision, OptimConfig, VAELossConfig
from train.engine.micro_batch import MicroBatch
from train.engine.parallel import share
from train.engine.step import NotFinite, make_learner, mean_losses
from train.runs.checkpoint import Stateful


class Adversary:
    """The discriminator with its optimizer, and the adaptive weight."""

    def __init__(
        self, image_channels: int, config: VAELossConfig, optim: OptimConfig, device: torch.device,
        precision: MixedPrecision, lean: bool = True,
    ):  # fmt: skip
        self.config = config
        self.discriminator = PatchDiscriminator(image_channels).to(device)
        self.learner = make_learner(list(self.discriminator.parameters()), optim, False, device, precision, lean)
        self.adaptive_weight = 0.0
        self.begin_batch()

    def begin_batch(self) -> None:
        """Discard what was collected from an earlier batch, which may have been abandoned."""
        self.reconstruction_gradient: Tensor | float = 0.0
        self.adversarial_gradient: Tensor | float = 0.0
        self.fakes: list[Tensor] = []

    def generator_loss(self, reconstruction: Tensor, error: Tensor, last_layer: nn.Parameter, scale: float) -> Tensor:
        """The VAE's loss (B,) for reconstructions (B, I, H, W) that the discriminator recognises as such.

        `error` (B,) is the reconstruction loss that it is balanced against, and `scale` the loss scale of fp16.
        The discriminator is frozen meanwhile, so its gradients do not change.
        """
        self.discriminator.requires_grad_(False)
        loss = -self.discriminator(reconstruction).float().flatten(1).mean(1)  # B; in fp16 the weight could overflow
        self.reconstruction_gradient += _gradient(error.sum(), last_layer, scale)
        self.adversarial_gradient += _gradient(loss.sum(), last_layer, scale)
        self.fakes.append(reconstruction.detach())
        return self.config.adversarial_weight * self.adaptive_weight * loss

    def learn(self, images: Tensor, learning_rate: float, micro_batch: MicroBatch) -> dict[str, float]:
        """After the VAE's step on images (B, I, H, W): the discriminator's step, and the weight for the next batch."""
        fakes, start = torch.cat(self.fakes or [images[:0]]), share(len(images)).start
        self.discriminator.requires_grad_(True)
        self.learner.set_learning_rate(learning_rate)

        def losses(rows: slice) -> dict[str, Tensor]:
            fake = fakes[rows.start - start : rows.stop - start]  # those of this process's share only
            real, fake = self.discriminator(images[rows]), self.discriminator(fake)
            return {"loss": 0.5 * (F.relu(1 - real) + F.relu(1 + fake)).flatten(1).mean(1)}

        attempt, accumulate, clip = micro_batch.attempt, self.learner.accumulate, self.learner.clip
        while (
            (totals := attempt(accumulate, losses, len(images), micro_batch.size)) is None
            or (grad_norm := attempt(clip)) is None
        ):  # fmt: skip
            micro_batch.halve()
        loss = mean_losses(totals)["loss"]
        try:
            self.learner.step(loss, grad_norm)
        except NotFinite as error:
            raise NotFinite(f"the discriminator's {error}") from None
        self._update_weight(len(images))
        self.begin_batch()
        return {"discriminator": loss, "adaptive_weight": self.adaptive_weight}

    def _update_weight(self, batch: int) -> None:
        gradients = self.reconstruction_gradient, self.adversarial_gradient
        reconstruction, adversarial = (sum(gather(torch.as_tensor(gradient).cpu())).norm() for gradient in gradients)
        ratio = float(reconstruction / (adversarial + 1e-4 * batch))  # the paper's 1e-4 is for means; these are sums
        if math.isfinite(ratio):  # fp16 may overflow
            self.adaptive_weight = min(ratio, 1e4)

    def _parts(self) -> dict[str, Stateful]:
        return {"discriminator": self.discriminator, "optimizer": self.learner.optimizer, "scaler": self.learner.scaler}

    def state_dict(self) -> dict:
        states = {name: part.state_dict() for name, part in self._parts().items()}
        return {**states, "adaptive_weight": self.adaptive_weight}

    def load_state_dict(self, state: dict) -> None:
        for name, part in self._parts().items():
            part.load_state_dict(state[name])
        self.adaptive_weight = state["adaptive_weight"]


def _gradient(loss: Tensor, parameter: nn.Parameter, scale: float) -> Tensor:
    """The gradient of the loss, computed from scale * loss as fp16 needs it."""
    return torch.autograd.grad(scale * loss, parameter, retain_graph=True)[0].float() / scale
