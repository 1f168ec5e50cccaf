"""Widgets that all parts of the console use, and one for HTML with clickable rows, links and notices."""

from __future__ import annotations

from importlib.resources import files
from typing import TYPE_CHECKING, Any

import anywidget
import ipywidgets
import traitlets

if TYPE_CHECKING:
    from collections.abc import Callable


def styled(widget: Any, *styles: str) -> Any:
    """Return a widget with classes of the style sheet."""
    for style in styles:
        widget.add_class(style)
    return widget


def row(style: str, *parts: Any) -> Any:
    """Return widgets beside each other, with a class of the style sheet."""
    return styled(ipywidgets.HBox(parts), style)


def stack(style: str, *parts: Any) -> Any:
    """Return widgets below each other, with a class of the style sheet."""
    return styled(ipywidgets.VBox(parts), style)


def button(text: str, pressed: Callable[[], None], tooltip: str | None = None, **options: Any) -> Any:
    """Return a button that calls a function."""
    made = ipywidgets.Button(description=text, tooltip=tooltip, **options)
    made.on_click(lambda _button: pressed())
    return made


def with_hidden_label(control: Any, label: str) -> Any:
    """Give a control a label that only assistive programs show."""
    control.description = label
    return styled(control, "vmsnix-hidden-label")


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
