"""The VAE's loss: reconstruction and KL divergence, and optionally a spectral, a perceptual and an adversarial term.

Shapes: B batch, I image channels, H W image, Z h w latents. Every loss is per sample, (B,).

Units: reconstruction is the mean over the I*H*W values of an image, with weights at its border; KL is the mean over
the Z*h*w components of its latents, in nats. The code of Rombach et al. 2022 sums both, without weights: its KL weight
of 1e-6 at 3x128x128 images and 4x32x32 latents is 1e-6 * 4096 / 49152 = 8.3e-8 here.
"""

from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from nets.perceptual import VGG16Distance
from nets.vae import AutoencoderKL, DiagonalGaussian
from train.base.errors import require
from train.base.files import load_tensors
from train.config.sections import VAELossConfig
from train.stages.adversary import Adversary

PATCH = 8  # pixels, of a local spectrum


def reconstruction_and_kl(
    x: Tensor, reconstruction: Tensor, posterior: DiagonalGaussian, config: VAELossConfig
) -> dict[str, Tensor]:
    """The two terms of every VAE (Kingma and Welling 2014, eq. 7), per sample, and their weighted sum."""
    error = reconstruction.float() - x
    error = (error.abs() if config.reconstruction == "l1" else error.square()).mean(1)  # B H W
    weights = border_weights(*error.shape[1:], config.border_weight).to(error.device)
    error = (error * weights).mean((1, 2))  # B
    kl = posterior.kl() / posterior.mean[0].numel()  # B
    return {"loss": error + config.kl_weight * kl, "reconstruction": error, "kl": kl}


def spectral_distance(x: Tensor, reconstruction: Tensor) -> Tensor:
    """The mean difference of the magnitudes of local spectra, per sample (B,), for images (B, I, H, W).

    A texture that the latents cannot describe is grey in the reconstruction of least error. Its magnitudes can be
    right where its phases are not, so this term keeps its power, as the multi-resolution STFT loss does for sound
    (Yamamoto et al. 2020, section 2.2). The local spectra are those of overlapping patches, under a Hann window.
    """
    basis = local_waves(PATCH).to(x.device)

    def magnitudes(images: Tensor) -> Tensor:
        """B I waves rows columns"""
        spectra = F.conv2d(images.flatten(0, 1)[:, None], basis, stride=PATCH // 2)  # B*I 2*waves rows columns
        return spectra.float().unflatten(1, (2, -1)).norm(dim=1).unflatten(0, images.shape[:2])

    return (magnitudes(reconstruction) - magnitudes(x)).abs().flatten(1).mean(1)


def local_waves(size: int) -> Tensor:
    """The waves of a patch's Fourier transform as kernels (2 * waves, 1, size, size): cosines, then sines."""
    at = torch.arange(size)
    cycles = at[:, None, None, None] * at[:, None] + at[: size // 2 + 1, None, None] * at  # down, across, y, x
    phase = 2 * torch.pi * cycles.flatten(0, 1) / size
    window = torch.hann_window(size)
    return (torch.cat([phase.cos(), phase.sin()]) * window[:, None] * window / size)[:, None]


def border_weights(height: int, width: int, border_weight: float) -> Tensor:
    """Weights (H, W) of the pixels' errors, 1 on average; at the border `border_weight` times those inside.

    At a corner, its square. Zero padding takes 3 of a convolution's 9 taps from a pixel at the border and 5 from one
    in a corner. The decoder has to learn what is missing there from these few pixels alone, and in a plain mean they
    are too few: corners stay off by many levels, at the same place in every image.
    """
    rows, columns = torch.ones(height), torch.ones(width)
    for side in (rows, columns):
        side[[0, -1]] = border_weight
        side /= side.mean()
    return rows[:, None] * columns  # H W


def vae_losses(
    vae: AutoencoderKL, x: Tensor, noise: Tensor, config: VAELossConfig, vgg16: VGG16Distance | None = None,
    adversary: Adversary | None = None, scale: float = 1.0,
) -> dict[str, Tensor]:  # fmt: skip
    """The terms of the loss on images x (B, I, H, W), and "loss", their weighted sum.

    `noise` (B, Z, h, w), standard normal, samples the latents; `scale` is the loss scale of fp16, for the adversary's
    adaptive weight.
    """
    posterior = vae.encode(x)
    reconstruction = vae.decode(posterior.mean + posterior.std * noise)  # B I H W
    terms = reconstruction_and_kl(x, reconstruction, posterior, config)
    if config.spectral_weight:
        terms["spectral"] = spectral_distance(x, reconstruction)
        terms["loss"] = terms["loss"] + config.spectral_weight * terms["spectral"]
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
    fits = {k: getattr(v, "shape", None) for k, v in weights.items()} == expected
    require(fits, f"{path}: does not hold the layers of torchvision's VGG16 (features.0.weight, ...)")
    model.load_state_dict(weights)
    return model
