"""Capture attention maps of a diffusers model without changing what it computes.

`capture` is the context manager for a pipeline call; `AttentionRecorder` is the object underneath it. The package can
itself be called: importing it binds `lotts.capture` to this module, so `lotts.capture(pipe, prompt)` has to work on
the module too, whatever was imported first.
"""

import inspect
import sys
import types

from lotts.capture.api import Maps, capture
from lotts.capture.recorder import AttentionRecorder, CaptureReport
from lotts.capture.tokens import QUALITY_NEGATIVE, QUALITY_POSITIVE, content_weights, word_weights

__all__ = [
    "QUALITY_NEGATIVE",
    "QUALITY_POSITIVE",
    "AttentionRecorder",
    "CaptureReport",
    "Maps",
    "capture",
    "content_weights",
    "word_weights",
]


class _CallableModule(types.ModuleType):
    __call__ = staticmethod(capture)
    __signature__ = inspect.signature(capture)


sys.modules[__name__].__class__ = _CallableModule
