"""Facts about regions: which tokens are computed, and their order."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lotts.sparse.config import record_steps
from lotts.sparse.region import Region, nearest_first, on_grid, tile


def masks_of(*boxes, size=(8, 8)):
    masks = torch.zeros(len(boxes), *size, dtype=torch.bool)
    for mask, (top, left, height, width) in zip(masks, boxes, strict=True):
        mask[top : top + height, left : left + width] = True
    return masks


@given(top=st.integers(0, 7), left=st.integers(0, 7), height=st.integers(0, 8), width=st.integers(0, 8))
def test_masked_tokens_come_first_and_then_the_nearest(top, left, height, width):
    masks = masks_of((top, left, height, width))
    order = nearest_first(masks)[0]
    assert sorted(order.tolist()) == list(range(64))
    count = int(masks.sum())
    assert masks.flatten()[order[:count]].all()
    rows, columns = order // 8, order % 8
    inside = masks[0].nonzero()
    if count:
        gaps = torch.stack([(rows[:, None] - inside[:, 0]).abs(), (columns[:, None] - inside[:, 1]).abs()])
        distance = gaps.amax(0).amin(1)
        assert (distance.diff() >= 0).all()


def test_a_samples_own_tokens_do_not_depend_on_the_batch():
    masks = masks_of((0, 0, 2, 3), (3, 3, 4, 4))
    together = Region.of(masks)
    for row in range(2):
        alone = Region.of(masks[row : row + 1])
        assert together.own[row] == alone.own[0] == alone.size
        assert torch.equal(together.order[row], alone.order[0])
    assert together.size == max(together.own)


@pytest.mark.parametrize(("tokens", "expected"), [(64, 2), (256, 8), (1024, 32), (4096, 128), (16384, 128), (9, 1)])
def test_masks_grow_to_tiles_that_are_a_small_share_of_the_picture(tokens, expected):
    assert tile(tokens) == expected


def test_what_is_selected_goes_back_to_its_place_and_only_own_tokens_do():
    region = Region.of(masks_of((0, 0, 1, 4), (2, 2, 3, 4)))
    values = torch.arange(4 * 64 * 2, dtype=torch.float32).view(4, 64, 2)
    assert torch.equal(region.restore(region.select(values)), values)
    background = -torch.ones_like(values)
    placed = region.place(region.select(values, 0, region.size), background)
    for row in range(4):
        own = region.order[row % 2, : region.own[row % 2]]
        assert torch.equal(placed[row, own], values[row, own])
        assert int((placed[row] == -1).all(-1).sum()) == 64 - len(own)


def test_a_coarse_token_is_masked_when_any_cell_under_it_is():
    assert on_grid(masks_of((3, 3, 1, 1)), (4, 4))[0].nonzero().tolist() == [[1, 1]]
    assert on_grid(masks_of((3, 3, 2, 1)), (4, 4))[0].nonzero().tolist() == [[1, 1], [2, 1]]


@pytest.mark.parametrize(
    ("every", "expected"),
    [(None, [10, 12, 14, 16]), (4, [10, 14]), (1, [*range(10, 17)]), (3, [10, 13, 16]), (50, [10])],
)
def test_dense_steps_are_every_second_or_every_so_many(every, expected):
    assert record_steps(10, 17, every) == expected
