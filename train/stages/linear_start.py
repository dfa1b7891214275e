"""A VAE begins as the best linear one of its shape.

From random weights, a VAE spends its first thousand steps on getting to where principal components are without any:
four of them for each 4x4 patch of a spectrogram are better than eight latent channels after 1,400 steps. So before the
first step all residual branches are silent, as in Goyal et al. 2017 (section 5.1), and what is left of encoder and
decoder, a chain of convolutions, is set:

- Encoder: each halving of the grid turns the 2x2 patches of what it is given, its *features*, into as many of their
  principal components as there is room for. The latents are the components of the last level, the strong and the weak
  ones brought halfway together: of one variance, all details would be as hard to generate as large structures, and as
  they are, the weakest would vary less than the noise that the last steps of a sampler take away.
- Decoder: each convolution is the one of least squares that leads back to the encoder's features of its level. It
  follows a nearest-neighbour upsampling, so that this is not without loss; the blocks learn the rest.

Both end in a GroupNorm and a SiLU, which are not linear. So the features come to them in pairs, x and -x, beside two
constants in each group, 10 and -10: then the norm divides by nearly the same number for all images, and
silu(x) - silu(-x) = x. Everything else is weights of the models of `diffusers`, whose forward pass is what it was.

Shapes: N images, F features, H W grid, Z latent channels.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nets.attention import GridSelfAttention
from nets.resnet import ResnetBlock
from nets.vae import AutoencoderKL, Decoder, Encoder, VAEConfig

CONSTANT = 10.0  # features are of the images' size, about 1: of a group's variance they are a hundredth
RIDGE = 1e-6  # in units of the mean square of what a convolution sees


class Pairs:
    """Where a GroupNorm's input has the features (`plus`), their negatives (`minus`), and the constants 10 and -10."""

    def __init__(self, norm: nn.GroupNorm):
        self.norm, self.size = norm, norm.num_channels // norm.num_groups
        starts = range(0, norm.num_channels, self.size)
        self.plus = [start + at for start in starts for at in range(0, self.size - 3, 2)]
        self.minus = [at + 1 for at in self.plus]
        self.constants = [[start + self.size - 2 for start in starts], [start + self.size - 1 for start in starts]]

    def begin(self, layer: nn.Conv2d, weight: Tensor, bias: Tensor) -> None:
        """Let the layer, the last one before residual blocks that are silent, compute features in pairs."""
        count = len(weight)
        layer.weight.zero_()
        layer.bias.zero_()
        put(layer, weight, bias, self.plus[:count])
        put(layer, -weight, -bias, self.minus[:count])

    def end(self, block: ResnetBlock, layer: nn.Conv2d, weight: Tensor, bias: Tensor) -> None:
        """Add the constants at the end of the last block; let the layer after norm and SiLU be linear in the features.

        weight (O, F): of the layer's first O outputs.
        """
        for channels, constant in zip(self.constants, (CONSTANT, -CONSTANT), strict=True):
            block.conv2.bias[channels] = constant
        self.norm.weight.fill_(CONSTANT * math.sqrt(2 / self.size))  # what the norm divides by
        rows, count = torch.arange(len(weight))[:, None], weight.shape[1]
        put(layer, torch.zeros(len(weight), layer.in_channels, 1, 1), bias)
        weight = weight.to(layer.weight)
        layer.weight[rows, self.plus[:count], 1, 1] = weight
        layer.weight[rows, self.minus[:count], 1, 1] = -weight


def has_room(config: VAEConfig) -> bool:
    """Whether there is room for constants, and for an image's channels in pairs, wherever they are needed."""
    return all(
        (channels // config.norm_groups - 2) // 2 * config.norm_groups >= config.image_channels
        for channels in (config.channels[0], config.channels[-1])
    )


@torch.no_grad()
def start_linear(vae: AutoencoderKL, images: Tensor, kl_weight: float) -> None:
    """Set the weights of a new VAE that has room for it, by images (N, I, H, W) in [-1, 1], on the CPU."""
    silence(vae)
    features = start_encoder(vae.encoder, images)
    latents = start_latents(vae, features[-1], kl_weight)
    start_decoder(vae.decoder, latents, features)


def silence(vae: AutoencoderKL) -> None:
    """Every residual block, and every attention, adds nothing to what it is given."""
    for module in vae.modules():
        last = module.conv2 if isinstance(module, ResnetBlock) else None
        last = module.to_out[0] if isinstance(module, GridSelfAttention) else last
        if last is not None:
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)


def start_encoder(encoder: Encoder, images: Tensor) -> list[Tensor]:
    """Returns the features (N, F, H, W) of each level, the images first."""
    pairs, features = Pairs(encoder.conv_norm_out), [images]
    layers = linear_layers(encoder)
    for layer in layers:
        x, last = features[-1], layer is layers[-1]
        room = len(pairs.plus) if last else layer.out_channels
        if layer.stride == (2, 2):
            patches = F.pixel_unshuffle(x, 2)  # N 4F H/2 W/2
            directions, mean, _ = principal_components(patches, room)
            directions = directions / 2  # so that the mean of four pixels is of the pixels' size
            bias = -directions @ mean
            weight = F.pad(directions.unflatten(1, (-1, 2, 2)), (0, 1, 0, 1))  # 3x3, without its last row and column
            features.append(F.conv2d(patches, directions[:, :, None, None], bias))
        else:
            features[-1] = x[:, :room]
            weight, bias = copy_of(features[-1].shape[1], layer), torch.zeros(features[-1].shape[1])
        (pairs.begin if last else put)(layer, weight, bias)
    return features


def start_latents(vae: AutoencoderKL, features: Tensor, kl_weight: float) -> Tensor:
    """Returns the latents (N, at most Z, h, w): principal components over the square roots of their deviations.

    Their posterior has the variance at which squared error, as a mean over an image, and KL divergence, over its
    latents, have their least sum: an error of a latent is one of `scale` in the features.
    """
    config, encoder = vae.config, vae.encoder
    directions, mean, deviation = principal_components(features, config.latent_channels)
    scale = deviation.sqrt()
    directions = directions / scale[:, None]
    precision = 1 + 2 * config.latent_channels * scale.square() / (max(kl_weight, 1e-12) * config.image_channels)
    none = torch.zeros(config.latent_channels - len(directions), features.shape[1])
    weight = torch.cat([directions, none, torch.zeros_like(directions)])
    bias = torch.cat([-directions @ mean, torch.zeros(len(none)), -precision.log()])  # means and log variances
    Pairs(encoder.conv_norm_out).end(encoder.mid_block.resnets[-1], encoder.conv_out, weight, bias)
    for layer in (vae.quant_conv, vae.post_quant_conv):
        if isinstance(layer, nn.Conv2d):
            put(layer, copy_of(layer.out_channels, layer), torch.zeros(layer.out_channels))
    return F.conv2d(features, directions[:, :, None, None], -directions @ mean)


def start_decoder(decoder: Decoder, latents: Tensor, features: list[Tensor]) -> None:
    pairs, x, level = Pairs(decoder.conv_norm_out), latents, len(features) - 1
    layers = linear_layers(decoder)
    for layer in layers:
        last = layer is layers[-1]
        room = len(pairs.plus) if last else layer.out_channels
        if layer.kernel_size == (1, 1):
            x = x[:, :room]
            weight, bias = copy_of(x.shape[1], layer), torch.zeros(x.shape[1])
        else:
            if layer is not decoder.conv_in:
                x, level = F.interpolate(x, scale_factor=2, mode="nearest"), level - 1
            weight, bias = least_squares(x, features[level][:, :room])
            x = F.conv2d(x, weight, bias, padding=1)
        (pairs.begin if last else put)(layer, weight, bias)
    channels = decoder.conv_out.out_channels
    pairs.end(decoder.up_blocks[-1].resnets[-1], decoder.conv_out, torch.eye(channels), torch.zeros(channels))


# ---- layers


def linear_layers(half: Encoder | Decoder) -> list[nn.Conv2d]:
    """The convolutions that are left of it when its residual branches are silent, but for the last one."""
    layers = [half.conv_in]
    for block in half.down_blocks if isinstance(half, Encoder) else half.up_blocks:
        layers += [resnet.conv_shortcut for resnet in block.resnets if resnet.conv_shortcut is not None]
        layers += [change.conv for change in (block.downsamplers if isinstance(half, Encoder) else block.upsamplers)]
    return layers


def put(layer: nn.Conv2d, weight: Tensor, bias: Tensor, rows: Sequence[int] | None = None) -> None:
    """Let the first outputs, or those in `rows`, be convolutions of the first inputs only, weight (rows, F, k, k)."""
    rows = list(rows or range(len(weight)))
    layer.weight[rows] = 0.0
    layer.weight[rows, : weight.shape[1]] = weight.to(layer.weight)
    layer.bias[rows] = bias.to(layer.bias)


def copy_of(count: int, layer: nn.Conv2d) -> Tensor:
    """The weight (count, count, k, k) that copies as many features."""
    weight = torch.zeros(count, count, *layer.kernel_size)
    weight[range(count), range(count), layer.kernel_size[0] // 2, layer.kernel_size[1] // 2] = 1.0
    return weight


# ---- algebra


def principal_components(features: Tensor, most: int) -> tuple[Tensor, Tensor, Tensor]:
    """Directions (C, F), the strongest first, the mean (F,), and the deviations along the directions (C,).

    None is below 0.3% of the strongest: of what does not vary, such as the colours of grey images, nothing is made.
    """
    x = features.movedim(1, -1).flatten(0, -2).double()  # NHW F
    mean = x.mean(0)
    variance, directions = torch.linalg.eigh((x - mean).T @ (x - mean) / len(x))
    variance, directions = variance.flip(0)[:most], directions.T.flip(0)[:most]
    deviation = variance.clamp(min=1e-5 * float(variance[0]) + 1e-12).sqrt()
    return directions.float(), mean.float(), deviation.float()


def least_squares(x: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Weight (O, F, 3, 3) and bias (O,) of the convolution of x (N, F, H, W) that comes closest to (N, O, H, W)."""
    size = 9 * x.shape[1] + 1
    squares, products = torch.zeros(size, size).double(), torch.zeros(size, wanted.shape[1]).double()
    for one, target in zip(x.double(), wanted.double(), strict=True):
        seen = F.unfold(one[None], 3, padding=1)[0]  # 9F HW
        seen = torch.cat([seen, torch.ones_like(seen[:1])])
        squares += seen @ seen.T
        products += seen @ target.flatten(1).T
    squares.diagonal().add_(RIDGE * squares.diagonal().mean())
    solved = torch.linalg.solve(squares, products).T.float()  # O, 9F + 1
    return solved[:, :-1].unflatten(1, (-1, 3, 3)), solved[:, -1]
