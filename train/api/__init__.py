"""The whole from Python: what the commands do, as functions that take values and return them.

    from train.api import UserDiffusion, memcheck, train_ldm, train_vae

They print what their commands print on the way, and never end the process: what is wrong with what is given is a
UserError of one sentence, and a training that saves and ends before its last step raises Stopped.
"""

from train.api.account import MemoryAccount, memcheck
from train.api.training import Trained, train_ldm, train_vae
from train.api.user_diffusion import SampledStep, UserDiffusion, Written
from train.base.errors import Stopped, UserError

__all__ = [
    "MemoryAccount", "SampledStep", "Stopped", "Trained", "UserDiffusion", "UserError", "Written", "memcheck",
    "train_ldm", "train_vae",
]  # fmt: skip
