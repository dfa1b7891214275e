"""AdamW whose state is divided among the processes of a run."""

import torch
from torch.distributed.optim import ZeroRedundancyOptimizer

from train.base.processes import rank
from train.engine.optim import in_form_of


class ShardedAdamW(ZeroRedundancyOptimizer):
    """Each process keeps the state of some weights, updates them, and sends them to the others.

    Rajbhandari et al. 2020, "ZeRO", stage 1: AdamW's 8 bytes for each weight become 8 / processes in each. The
    weights, and the state in a checkpoint, are AdamW's own.
    """

    def __init__(self, parameters, **options):
        super().__init__(parameters, optimizer_class=torch.optim.AdamW, **options)

    def load_state_dict(self, state: dict) -> None:
        super().load_state_dict(in_form_of(self, state))
        for group in self.optim.param_groups if self.defaults["fused"] else ():
            for own in (self.optim.state[p] for p in group["params"] if p in self.optim.state):
                own["step"] = own["step"].to(own["exp_avg"].device)  # torch has put it on the CPU

    def state_dict(self) -> dict:
        """AdamW's, whole, in the first process; nothing in the others, all of which must call this together."""
        self.consolidate_state_dict(to=0)
        return super().state_dict() if rank() == 0 else {}
