"""The bar at the top: where everything goes, and the switch between AWS and the sandbox."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import ipywidgets

from vmsnix_ops.errors import VmsnixError
from vmsnix_ops.runbooks.console import look, places
from vmsnix_ops.text import html

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmsnix_ops.runbooks.console.places import Who

AWS, SANDBOX = "AWS", "Sandbox"


class PlaceBar:
    """Says where runs go, and lets people choose.

    Parameters
    ----------
    changed
        Called when the place is another one, and when it is known whose account it is.

    Attributes
    ----------
    place
        Where runs go now.
    who
        Whose account that is; ``None`` while AWS is being asked.
    widget
        The bar as it is shown.
    """

    def __init__(self, changed: Callable[[], None]) -> None:
        self._changed = changed
        self._home = self.place = places.here()
        self.who: Who | None = None
        self._banner = ipywidgets.HTML("")
        self.switch = ipywidgets.ToggleButtons(
            options=[AWS, SANDBOX],
            value=SANDBOX if self._home.sandbox else AWS,
            tooltips=["Work in the account of your AWS credentials", "Rehearse on this machine"],
        )
        self.switch.add_class("vmsnix-switch")
        self.switch.observe(self._on_switch, "value")
        self._note = ipywidgets.HTML("")
        if self._home.sandbox:
            # Its AWS variables were taken away when it was started, so that there is no way to AWS from here.
            self.switch.layout.display = "none"
            self._say("JupyterLab was started on the sandbox. <code>vmsnix lab</code> works on AWS.")
        side = ipywidgets.VBox([self.switch, self._note])
        side.add_class("vmsnix-bar-side")
        self.widget = ipywidgets.HBox([self._banner, side])
        self.widget.add_class("vmsnix-bar-top")

    def begin(self, *, sandbox: bool) -> None:
        """Show the place, on the sandbox when that is wanted and not so already."""
        if sandbox and not self.place.sandbox:
            self.switch.value = SANDBOX
        else:
            self._moved()

    def lock(self, *, locked: bool) -> None:
        """Let nobody switch while something runs."""
        self.switch.disabled = locked

    @property
    def words(self) -> str:
        """Where runs go, as the end of "Run ..."."""
        if self.place.sandbox:
            return "on the sandbox"
        account = self.who.account if self.who else ""
        return f"in AWS account {account}" if account else "on AWS, account unknown"

    def _on_switch(self, _change: object) -> None:
        if (self.switch.value == SANDBOX) == self.place.sandbox:
            return
        if self.switch.value == SANDBOX:
            try:
                self._say("The sandbox is starting ...")
                self.place = places.sandbox_host().place
            except VmsnixError as error:
                self.switch.value = AWS
                self._say(html(str(error)))
                return
        else:
            self.place = self._home
        self._say("")
        self._moved()

    def _moved(self) -> None:
        self.who = None
        self._banner.value = look.banner(self.place, None)
        self._changed()
        place = self.place

        def ask() -> None:
            who = places.who(place)
            if place is self.place:  # the switch may have been pressed in the meantime
                self.who = who
                self._banner.value = look.banner(place, who)
                self._changed()

        threading.Thread(target=ask, name="whose account", daemon=True).start()

    def _say(self, words: str) -> None:
        self._note.value = f'<p class="vmsnix-quiet">{words}</p>' if words else ""


__all__ = ["PlaceBar"]
