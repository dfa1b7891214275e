"""Row spectra: what an image has at each height, whatever the moment at which it begins.

Of a time-frequency picture (x = time, y = frequency), a row's Fourier magnitudes tell how strongly its band is
modulated at each rate, as by the gait; the phase, which tells when, is left out.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

ROWS, COLUMNS = 64, 33  # at most: bands of rows, and modulation rates from 0 to 32 cycles per picture
BATCH = 512


def row_spectra(images: Tensor, rows: int = ROWS, columns: int = COLUMNS) -> Tensor:
    """Images, uint8 (N, C, H, W), to float32 (N, D): D is at most rows * columns, less for smaller images.

    Channels are averaged, and rows above their number; a circular shift along x changes nothing.
    """
    rows = min(rows, images.shape[2])
    found = []
    for batch in images.split(BATCH):
        grey = F.adaptive_avg_pool2d(batch.float().mean(1) / 255, (rows, batch.shape[3]))  # B rows W
        found.append((torch.fft.rfft(grey, norm="forward").abs()[:, :, :columns]).flatten(1))
    return torch.cat(found)
