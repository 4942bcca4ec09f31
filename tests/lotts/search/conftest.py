"""A network small enough to search with."""

import pytest


@pytest.fixture
def tiny_unet(shallow_unet):
    """Searches do not look inside the network: one level of it is enough, and takes a quarter less time."""
    return shallow_unet
