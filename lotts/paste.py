"""Keeping pixels: what lies outside the mask comes from the picture before, with a feathered seam."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F


def paste(before: np.ndarray, after: np.ndarray, mask: torch.Tensor) -> np.ndarray:
    """``after`` inside the mask, ``before`` outside; pictures float32 [H, W, 3], mask bool [h, w] on the latent grid.

    The seam is feathered over half a latent cell on the inner side, so pixels outside the mask stay exactly ``before``'s. Where
    the mask is too thin for that, its middle is ``after``'s all the same. On the seam pixels count in 8 bits, as a file keeps
    them: a replay begins with that file.
    """
    height, width = before.shape[:2]
    coarse = mask[None, None].float()
    inner = F.interpolate(coarse, (height, width), mode="nearest")
    cell = max(1, height // mask.shape[0])
    smooth = F.avg_pool2d(inner, 2 * (cell // 2) + 1, 1, cell // 2, count_include_pad=False)
    # A mask of one cell's width has no inside where nothing else is blurred in: the most within a cell counts as all.
    most = F.max_pool2d(smooth * inner, (2 * cell + 1, 1), 1, (cell, 0))
    most = F.max_pool2d(most, (1, 2 * cell + 1), 1, (0, cell))
    # Twice the blurred value over one half: 0 on the mask's edge, 1 half a cell inside, and nothing outside.
    alpha = ((2 * smooth / most.clamp(min=1e-6) - 1).clamp(0, 1) * inner)[0, 0, :, :, None].numpy()
    kept = np.where(alpha > 0, np.rint(before * 255).astype(np.float32) / 255, before)
    return kept + alpha * (after - kept)
