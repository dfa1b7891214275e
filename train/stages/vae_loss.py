"""What the VAE is trained on: reconstruction, KL divergence, and perhaps what a classifier or adversary sees.

Shapes: B batch, I image channels, H W image, Z h w latents. Every loss is per sample, (B,).

Units: reconstruction is the mean over the I*H*W values of an image, KL the mean over the Z*h*w components of
its latents, in nats. The code of Rombach et al. 2022 sums both: its KL weight of 1e-6 at 3x128x128 images and
4x32x32 latents is 1e-6 * 4096 / 49152 = 8.3e-8 here.
"""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nets.discriminator import PatchDiscriminator
from nets.perceptual import VGG16Distance
from nets.vae import AutoencoderKL, DiagonalGaussian
from train.base import processes as parallel
from train.base.errors import UserError
from train.base.files import load_tensors
from train.engine.device import MixedPrecision, grad_scaler
from train.engine.optim import OptimConfig, make_adamw
from train.engine.step import NotFinite, optimizer_step


@dataclass(frozen=True)
class VAELossConfig:
    reconstruction: Literal["l1", "l2"] = "l1"
    kl_weight: float = 1e-6
    """Of the mean KL per latent component, beside the mean error per pixel value."""
    perceptual_weight: float = 0.0
    perceptual_weights: str | None = None
    """A file of torchvision's VGG16 weights (`vgg16-397923af.pth`), needed for a perceptual_weight."""
    adversarial_weight: float = 0.0
    """Of the adversarial term, on top of its adaptive weight; 0 trains without a discriminator."""
    adversarial_start: int = 0
    """Optimizer step from which the discriminator learns and the VAE tries to fool it."""

    def __post_init__(self):
        if min(self.kl_weight, self.perceptual_weight, self.adversarial_weight, self.adversarial_start) < 0:
            raise ValueError(
                "kl_weight, perceptual_weight, adversarial_weight and adversarial_start must not be negative"
            )
        if self.perceptual_weight > 0 and self.perceptual_weights is None:
            raise ValueError("perceptual_weight needs perceptual_weights, the path of a VGG16 weights file")


def reconstruction_and_kl(
    x: Tensor, reconstruction: Tensor, posterior: DiagonalGaussian, config: VAELossConfig
) -> dict[str, Tensor]:
    """The two terms of every VAE (Kingma and Welling 2014, eq. 7), per sample, and their weighted sum."""
    error = reconstruction.float() - x
    error = error.abs() if config.reconstruction == "l1" else error.square()
    error = error.flatten(1).mean(1)  # B
    kl = posterior.kl() / posterior.mean[0].numel()  # B
    return {"loss": error + config.kl_weight * kl, "reconstruction": error, "kl": kl}


def vae_losses(
    vae: AutoencoderKL, x: Tensor, noise: Tensor, config: VAELossConfig, vgg16: VGG16Distance | None = None,
    adversary: "Adversary | None" = None, scale: float = 1.0,
) -> dict[str, Tensor]:  # fmt: skip
    """All that the VAE loses on images x (B, I, H, W), their latents sampled by `noise` (B, Z, h, w): the terms and
    "loss", their sum.

    `scale` is the loss scale of fp16, for the adversary's adaptive weight.
    """
    posterior = vae.encode(x)
    reconstruction = vae.decode(posterior.mean + posterior.std * noise)  # B I H W
    terms = reconstruction_and_kl(x, reconstruction, posterior, config)
    if vgg16:
        terms["perceptual"] = vgg16(reconstruction, x)
        terms["loss"] = terms["loss"] + config.perceptual_weight * terms["perceptual"]
    if adversary:
        last_layer = vae.decoder.conv_out.weight
        terms["adversarial"] = adversary.generator_loss(reconstruction, terms["loss"], last_layer, scale)
        terms["loss"] = terms["loss"] + terms["adversarial"]
    return terms


def load_vgg16(path: str) -> VGG16Distance:
    """The perceptual distance with weights from a file of torchvision's `vgg16`."""
    weights = {k: v for k, v in load_tensors(Path(path)).items() if k.startswith("features.")}
    model = VGG16Distance()
    expected = {k: v.shape for k, v in model.state_dict().items()}
    if {k: getattr(v, "shape", None) for k, v in weights.items()} != expected:
        raise UserError(f"{path}: does not hold the layers of torchvision's VGG16 (features.0.weight, ...)")
    model.load_state_dict(weights)
    return model


class Adversary:
    """A discriminator that learns to tell images from reconstructions, and what it makes the VAE lose.

    Hinge losses and the adaptive weight of Esser et al. 2021, eq. 7: the term's gradient at the decoder's
    last layer is made as long as the reconstruction's. Their ratio is measured over a whole window and used
    in the next one, so that micro-batches add up to the full batch's gradient.
    """

    def __init__(
        self, image_channels: int, config: VAELossConfig, optim: OptimConfig, device: torch.device,
        precision: MixedPrecision,
    ):  # fmt: skip
        self.config, self.optim = config, optim
        self.discriminator = PatchDiscriminator(image_channels).to(device)
        self.optimizer = make_adamw(self.discriminator.parameters(), optim)
        self.everyone = parallel.add_gradients(self.discriminator.parameters())
        self.scaler = grad_scaler(device, precision)
        self.adaptive_weight = 0.0
        self.begin_window()

    def begin_window(self) -> None:
        """Forget what was seen of a window before: it may have been given up."""
        self.reconstruction_gradient: Tensor | float = 0.0
        self.adversarial_gradient: Tensor | float = 0.0
        self.fakes: list[Tensor] = []

    def generator_loss(
        self, reconstruction: Tensor, error: Tensor, last_layer: nn.Parameter, scale: float
    ) -> Tensor:
        """What the VAE loses (B,) for reconstructions (B, I, H, W) that do not pass as images.

        `error` (B,) is the reconstruction loss to be balanced against; `scale` the loss scale of fp16.
        The discriminator is frozen meanwhile: no gradient of it is touched.
        """
        self.discriminator.requires_grad_(False)
        loss = -self.discriminator(reconstruction).float().flatten(1).mean(1)  # B; fp16 has no room for the weights
        self.reconstruction_gradient += _gradient(error.sum(), last_layer, scale)
        self.adversarial_gradient += _gradient(loss.sum(), last_layer, scale)
        self.fakes.append(reconstruction.detach())
        return self.config.adversarial_weight * self.adaptive_weight * loss

    def finish_window(
        self, images: Tensor, micro_batch: int, autocast: Callable[[], AbstractContextManager]
    ) -> dict[str, float]:
        """After the VAE's step on images (B, I, H, W): take the discriminator's own, and weigh the next window."""
        fakes, start = torch.cat(self.fakes or [images[:0]]), parallel.share(len(images)).start
        self.discriminator.requires_grad_(True)

        def losses(rows: slice) -> dict[str, Tensor]:
            fake = fakes[rows.start - start : rows.stop - start]  # they are of this process's share only
            real, fake = self.discriminator(images[rows]), self.discriminator(fake)
            return {"loss": 0.5 * (F.relu(1 - real) + F.relu(1 + fake)).flatten(1).mean(1)}

        try:
            result = optimizer_step(
                losses, len(images), micro_batch, list(self.discriminator.parameters()), self.optimizer,
                self.scaler, autocast, self.optim.max_grad_norm, self.everyone,
            )  # fmt: skip
        except NotFinite as error:
            raise NotFinite(f"the discriminator's {error}") from None
        wanted, adversarial = (
            sum(parallel.gather(torch.as_tensor(gradient).cpu())).norm()
            for gradient in (self.reconstruction_gradient, self.adversarial_gradient)
        )
        ratio = float(wanted / (adversarial + 1e-4 * len(images)))  # sums over the window; 1e-4 is for means
        if math.isfinite(ratio):  # fp16 may overflow
            self.adaptive_weight = min(ratio, 1e4)
        self.begin_window()
        return {"discriminator": result.losses["loss"], "adaptive_weight": self.adaptive_weight}

    def state_dict(self) -> dict:
        return {
            "discriminator": self.discriminator.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "adaptive_weight": self.adaptive_weight,
        }

    def load_state_dict(self, state: dict) -> None:
        self.discriminator.load_state_dict(state["discriminator"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.adaptive_weight = state["adaptive_weight"]


def _gradient(loss: Tensor, parameter: nn.Parameter, scale: float) -> Tensor:
    """The gradient, computed of scale * loss."""
    return torch.autograd.grad(scale * loss, parameter, retain_graph=True)[0].float() / scale
