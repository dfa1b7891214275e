"""One thread: the models here are so small that threads cost more than they give, and on a busy machine
fifty times more; sums are then also in one order.
"""

import torch

torch.set_num_threads(1)
