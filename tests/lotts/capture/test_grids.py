import pytest
import torch
import torch.nn.functional as F

from lotts.capture.grids import match_rows, resize_maps, token_grids


def test_grids_halve_rounding_up():
    assert token_grids((17, 9)) == {153: (17, 9), 45: (9, 5), 15: (5, 3), 6: (3, 2), 2: (2, 1), 1: (1, 1)}
    maps = torch.rand(1, 2, 8, 8)
    assert torch.equal(resize_maps(maps, (8, 8)), maps)
    torch.testing.assert_close(resize_maps(maps, (4, 4)), F.avg_pool2d(maps, 2))
    torch.testing.assert_close(resize_maps(torch.ones(1, 1, 3, 5), (6, 10)), torch.ones(1, 1, 6, 10))


def test_rows_of_one_prompt_are_neighbours():
    assert match_rows(torch.tensor([[1.0], [2.0]]), 4).flatten().tolist() == [1, 1, 2, 2]
    assert match_rows(torch.tensor([[3.0]]), 2).flatten().tolist() == [3, 3]
    with pytest.raises(ValueError, match="multiple of 2 prompts"):
        match_rows(torch.ones(2, 1), 3)
