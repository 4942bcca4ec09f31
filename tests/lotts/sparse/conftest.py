"""Backbones around tiny pipelines."""

import pytest

from lotts.backbones import backbone_for


@pytest.fixture
def backbone_of(pipe_of):
    """A function from a name to the backbone of that tiny pipeline."""
    return lambda name: backbone_for(pipe_of(name))
