"""A widget for tables with clickable rows, links to files and notices of the browser."""

from __future__ import annotations

from importlib.resources import files
from typing import TYPE_CHECKING

import anywidget
import traitlets

if TYPE_CHECKING:
    from collections.abc import Callable


class ActiveHTML(anywidget.AnyWidget):
    """HTML by `templates.fill`; `clicked` is called with the ``data-do`` of a clicked element.

    ``notice`` is a text that the browser shows outside of the page, if the user has allowed it.
    """

    _esm = (files("vmsnix_ops.runbooks.console") / "active.js").read_text(encoding="utf-8")
    html = traitlets.Unicode("").tag(sync=True)
    notice = traitlets.Unicode("").tag(sync=True)

    def __init__(self, clicked: Callable[[str], None] | None = None) -> None:
        super().__init__()
        if clicked is not None:
            self.on_msg(lambda _widget, content, _buffers: clicked(content))

    def click(self, action: str) -> None:
        """Do what a click on the element with this ``data-do`` does."""
        self._handle_custom_msg(action, [])
