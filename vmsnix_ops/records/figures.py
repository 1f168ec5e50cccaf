"""Figures that show themselves in any notebook, without pyplot and its global state."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DOTS_PER_INCH = 144


def new_figure(**options: Any) -> Figure:
    """Return an empty figure.

    Parameters
    ----------
    options
        Of ``matplotlib.figure.Figure``.
    """
    from matplotlib.figure import Figure

    class ShownFigure(Figure):
        """A kernel draws plain figures only once pyplot was imported; this one brings its own picture."""

        def _repr_png_(self) -> bytes:
            picture = io.BytesIO()
            self.savefig(picture, format="png", dpi=DOTS_PER_INCH, bbox_inches="tight")
            return picture.getvalue()

    return ShownFigure(**options)
