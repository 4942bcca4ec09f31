"""Where the query tokens of an attention layer lie on the latent grid."""

import torch
import torch.nn.functional as F


def token_grids(latent_size: tuple[int, int]) -> dict[int, tuple[int, int]]:
    """Number of tokens -> (height, width), for the latent grid and its successive halvings, each rounded up.

    Rounding up is what a stride-2 convolution with padding 1, the downsampler of diffusers' UNets, does.
    """
    height, width = latent_size
    grids = {height * width: (height, width)}
    while height * width > 1:
        height, width = (height + 1) // 2, (width + 1) // 2
        grids[height * width] = (height, width)
    return grids


def resize_maps(maps: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Resize [B, C, h, w] to [B, C, *size]: area averages when the grid gets coarser, bilinear when finer."""
    height, width = maps.shape[-2:]
    if (height, width) == tuple(size):
        return maps
    if size[0] <= height and size[1] <= width:
        return F.adaptive_avg_pool2d(maps, size)
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)


def match_rows(tensor: torch.Tensor, rows: int) -> torch.Tensor:
    """Give a per-prompt tensor [P, ...] one row for each of `rows` images; images of one prompt are neighbours.

    Raises:
        ValueError: `rows` is not a multiple of P.
    """
    prompts = tensor.shape[0]
    if prompts == rows:
        return tensor
    if prompts == 1:
        return tensor.expand(rows, *tensor.shape[1:])
    if rows % prompts:
        raise ValueError(f"expected a batch that is a multiple of {prompts} prompts, got {rows} conditional rows")
    return tensor.repeat_interleave(rows // prompts, dim=0)
