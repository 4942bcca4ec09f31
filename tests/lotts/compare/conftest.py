"""A comparison that costs little."""

import pytest
from studying import study

from lotts import models, verifiers
from lotts.compare import compare


@pytest.fixture
def tiny(tiny_pipe, monkeypatch):
    """The tiny pipeline under every name, and two verifiers: "bright" and "red"."""
    monkeypatch.setattr(models, "load_pipeline", lambda name, device=None, dtype=None: tiny_pipe)
    for name, judge in {
        "bright": lambda images, prompts: [float(image.mean()) for image in images],
        "red": lambda images, prompts: [float(image[..., 0].mean()) for image in images],
        "green": lambda images, prompts: [float(image[..., 1].mean()) for image in images],
    }.items():
        monkeypatch.setitem(verifiers.REGISTRY, name, lambda judge=judge: judge)
    return tiny_pipe


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return tmp_path_factory.mktemp("whole")


@pytest.fixture
def finished(whole):
    """A comparison that nothing interrupted; made once."""
    if not (whole / "table.csv").exists():
        compare(study(), whole)
    return whole
