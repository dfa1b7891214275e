"""torch.compile, block by block: alike blocks share what is compiled, so that it takes seconds and not minutes."""

import shutil

import torch
from torch import nn

from nets.checkpointing import Checkpointed
from train.base.errors import require

LEAST = (7, 0)  # compute capability for which torch's compiler (Triton) makes kernels


def compile_blocks(model: nn.Module, device: torch.device) -> None:
    """From now on, each resnet and transformer of the model is compiled when it is first called.

    UserError where the device, or what is installed, cannot.
    """
    if device.type == "cuda":
        found = torch.cuda.get_device_capability(device)
        require(
            found >= LEAST,
            f"compile: {torch.cuda.get_device_name(device)} has compute capability {found[0]}.{found[1]}, and torch's "
            "compiler needs 7.0; set compile to false",
        )
    if device.type == "cpu":
        require(
            any(map(shutil.which, ("c++", "g++", "clang++", "cl"))),
            "compile: on the CPU torch's compiler needs one of C++, which is not installed; set compile to false",
        )
    for module in model.modules():
        if isinstance(module, Checkpointed):
            module.compile(dynamic=False)
