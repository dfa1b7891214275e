"""The whole from Python: what the commands do, as functions that take values and return them.

    from train.api import UserDiffusion, augment, evaluate, memcheck, train_ldm, train_vae

They print what their commands print on the way, and never end the process: what is wrong with what is given is a
UserError of one sentence, and a training that saves and ends before its last step raises Stopped.

In a script that torchrun starts, all processes call train_vae, train_ldm, evaluate, augment and UserDiffusion.write,
which divide the work or leave it to the first, and return the same in all; a UserError is raised in one of them, and
the others end with status 2.
"""

from train.api.account import MemoryAccount, memcheck
from train.api.data_set import Augmented, augment
from train.api.judgement import Evaluated, evaluate
from train.api.training import Trained, train_ldm, train_vae
from train.api.user_diffusion import SampledStep, UserDiffusion, Written
from train.base.errors import Stopped, UserError

__all__ = [
    "Augmented", "Evaluated", "MemoryAccount", "SampledStep", "Stopped", "Trained", "UserDiffusion", "UserError",
    "Written", "augment", "evaluate", "memcheck", "train_ldm", "train_vae",
]  # fmt: skip
