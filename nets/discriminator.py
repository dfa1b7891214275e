"""The PatchGAN discriminator of the VAE's adversarial term (Isola et al. 2017, appendix 6.1.2).

Shapes: B batch, I image channels, H W image grid.
"""

from torch import Tensor, nn


class PatchDiscriminator(nn.Module):
    """Images (B, I, H, W) to a map (B, 1, H', W') of logits, one for each patch (70x70 pixels if `layers` is 3).

    The paper uses batch normalisation. Here each image is normalised by itself (GroupNorm with one group), so that the
    gradient accumulated over micro-batches is that of the whole batch.
    """

    def __init__(self, image_channels: int, channels: int = 64, layers: int = 3):
        super().__init__()
        blocks = [nn.Conv2d(image_channels, channels, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        c_in = channels
        for i in range(1, layers + 1):
            c_out = channels * min(2**i, 8)
            stride = 2 if i < layers else 1
            blocks += [
                nn.Conv2d(c_in, c_out, 4, stride=stride, padding=1, bias=False),
                nn.GroupNorm(1, c_out),
                nn.LeakyReLU(0.2),
            ]
            c_in = c_out
        blocks.append(nn.Conv2d(c_in, 1, 4, padding=1))
        self.layers = nn.Sequential(*blocks)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)
