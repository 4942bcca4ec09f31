"""A picture with something wrong in it."""

import numpy as np
import pytest

from lotts.shapes.draw import draw
from lotts.shapes.scenes import caption, parse


@pytest.fixture(scope="session")
def damaged():
    """(picture, prompt, bool [16, 16] cells of the true damage) of a scene with a damaged object."""
    scene = parse("a red circle, a blue square; a green heart, a black ring")
    for seed in range(100):
        drawing = draw(scene, np.random.default_rng(seed), damaged=True)
        cells = drawing.damage.any(0).reshape(16, 8, 16, 8).mean((1, 3)) > 0.3
        if cells.any():
            return drawing.image, caption(scene), cells
    raise AssertionError("no damage drawn")
