"""The trained part of a latent diffusion model: the UNet and the user encoder."""

from torch import nn

from nets.condition import UserConditionEncoder
from nets.unet import UNet2DConditionModel


class UserDenoiser(nn.Module):
    def __init__(self, unet: UNet2DConditionModel, user_encoder: UserConditionEncoder):
        super().__init__()
        self.unet = unet
        self.user_encoder = user_encoder

    def trained_parameters(self) -> list[nn.Parameter]:
        """All parameters but those without effect if the context is one token; they need no optimizer state."""
        one_token = self.user_encoder.config.tokens_per_user == 1
        idle = {id(p) for p in self.unet.parameters_without_effect_on_one_token()} if one_token else set()
        return [p for p in self.parameters() if id(p) not in idle]
