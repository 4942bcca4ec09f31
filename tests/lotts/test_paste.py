"""What of two pictures a mask lets through."""

import numpy as np
import pytest
import torch

from lotts.paste import paste

CELL = 8


def pasted(mask, cell=CELL):
    """The share of the new picture, [H, W]: white laid over black."""
    side = cell * mask.shape[0]
    before, after = np.zeros((side, side, 3), np.float32), np.ones((side, side, 3), np.float32)
    return paste(before, after, mask)[..., 0]


def region(rows, columns):
    mask = torch.zeros(12, 12, dtype=torch.bool)
    mask[rows, columns] = True
    return mask


@pytest.mark.parametrize("cell", [1, 2, 8, 16])
@pytest.mark.parametrize(
    "mask",
    [
        region(5, 5),
        region(slice(2, 10), 5),
        region(slice(4, 6), slice(4, 6)),
        region(slice(2, 9), slice(3, 11)),
        region(0, 0),
    ],
    ids=["a cell", "a stripe", "2 x 2", "a block", "a corner"],
)
def test_the_middle_is_the_new_picture_and_the_outside_the_old(mask, cell):
    share = pasted(mask, cell)
    inside = mask.repeat_interleave(cell, 0).repeat_interleave(cell, 1).numpy()
    assert (share[~inside] == 0).all()
    assert share.max() == pytest.approx(1)
    assert (share >= 0).all()


def test_the_seam_of_a_block_is_half_a_cell_wide():
    share = pasted(region(slice(2, 10), slice(2, 10)))
    line = share[6 * CELL, 2 * CELL : 4 * CELL]
    assert (np.diff(line) >= 0).all()
    assert (line[CELL // 2 :] == 1).all()
    assert 0 < line[0] < 0.3


def test_an_empty_mask_is_the_old_picture():
    assert (pasted(region(slice(0), slice(0))) == 0).all()
