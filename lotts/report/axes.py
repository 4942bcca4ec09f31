"""How figures of numbers look: matplotlib (the extra ``plots``) with a palette of its own, drawn without a screen."""

from __future__ import annotations

from typing import Any

INK, ACCENT, GREY = "#2b2d42", "#e4572e", "#b8bcc8"
COLOURS = [ACCENT, "#2e86ab", "#3a9d5d", "#8e6bbf", GREY, "#f2a541", "#7a5c45", "#5bc0be", "#d16ba5", "#6b705c"]


def pyplot() -> Any:
    """``matplotlib.pyplot``, set up; ImportError where matplotlib is not installed."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update(
        {
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.edgecolor": INK,
            "font.size": 10,
            "figure.dpi": 130,
            "savefig.bbox": "tight",
        }
    )
    return plt
