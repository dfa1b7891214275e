"""A perceptual distance between images: the squared difference of normalised VGG16 features.

Zhang et al. 2018 (LPIPS), eq. 1, with all channel weights 1 (what they call the unweighted VGG distance).
Shapes: B batch, I image channels, C channels, H W grid.
"""

import torch
from torch import Tensor, nn

# VGG16's convolutions (Simonyan and Zisserman 2015, table 1, D); "M" is the max-pooling at the end of a stage.
LAYERS = (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of the images that VGG16 was trained on


class VGG16Distance(nn.Module):
    """Distance (B,) between two batches of images (B, I, H, W) in [-1, 1]; I is 1 or 3, H and W at least 16.

    `features` has the names that torchvision's `vgg16` gives to its weights (`features.0.weight`, ...).
    Parameters are frozen; gradients flow to both images.
    """

    def __init__(self):
        super().__init__()
        modules, c_in = [], 3
        for layer in LAYERS:
            if layer == "M":
                modules.append(nn.MaxPool2d(2))
            else:
                modules += [nn.Conv2d(c_in, layer, 3, padding=1), nn.ReLU()]
                c_in = layer
        self.features = nn.ModuleList(modules)
        self.register_buffer("mean", torch.tensor(MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(3, 1, 1), persistent=False)
        self.requires_grad_(False)

    def stages(self, x: Tensor) -> list[Tensor]:
        """The features at the end of each of the five stages, normalised to unit length at each position."""
        x = ((x + 1) / 2 - self.mean) / self.std  # B 3 H W
        outputs = []
        for module in self.features:
            if isinstance(module, nn.MaxPool2d):
                outputs.append(x)
            x = module(x)  # B C H W, then H/2 W/2
        outputs.append(x)
        outputs = [x.float() for x in outputs]  # in fp16 the squares overflow, and 1e-10 is 0
        return [x / (x.square().sum(dim=1, keepdim=True) + 1e-10).sqrt() for x in outputs]

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        pairs = zip(self.stages(a), self.stages(b), strict=True)
        return sum((x - y).square().sum(dim=1).mean(dim=(1, 2)) for x, y in pairs)  # B
