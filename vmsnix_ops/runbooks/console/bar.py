"""The bar at the top: where everything goes, and the switch between AWS and the sandbox."""

from __future__ import annotations

import threading
from importlib.resources import files
from typing import TYPE_CHECKING

import ipywidgets

from vmsnix_ops.errors import VmsnixError
from vmsnix_ops.runbooks.console import places
from vmsnix_ops.templates import fill

if TYPE_CHECKING:
    from collections.abc import Callable

    from markupsafe import Markup

    from vmsnix_ops.runbooks.console.places import Place, Who


# How the console looks: one style sheet, in JupyterLab's own variables, so that it follows the theme.

EFFECTS = {
    "read_only": ("vmsnix-good", "read-only"),
    "creates": ("vmsnix-mixed", "creates"),
    "destroys": ("vmsnix-bad", "destroys"),
}


_BANNER = """\
<div class="vmsnix-banner {{ kind }}" title="{{ more }}"><b class="vmsnix-where">{{ title }}</b>
<div>
<p>{{ words }}</p>
{% if who is none %}
<p>Reading the account ...</p>
{% elif who.account %}
<p>Account <b>{{ who.account }}</b>, region <b>{{ who.region or "none set" }}</b></p>
{% else %}
<p>Account unknown</p>
{% endif %}
{% if who is not none and who.problem %}
<p class="vmsnix-problem" role="alert">{{ who.problem }}</p>
{% endif %}
</div></div>
"""
_BADGE = '<span class="vmsnix-badge {{ kind }}">{{ words }}</span>'
_NOTE = """\
{% if words %}<p class="vmsnix-quiet">{{ words }}</p>{% endif %}
"""
_STYLE = "<style>{{ style | safe }}</style>"


def style() -> Markup:
    """Return the style sheet as an HTML element."""
    text = (files("vmsnix_ops.runbooks.console") / "console.css").read_text(encoding="utf-8")
    return fill(_STYLE, style=text)


def banner(place: Place, who: Who | None) -> Markup:
    """Return the words that say where everything goes; nobody shall take the sandbox for production.

    Parameters
    ----------
    place
        The place.
    who
        Whose account it is; ``None`` while AWS is being asked.
    """
    if place.sandbox:
        kind, title = "vmsnix-sandbox", "SANDBOX"
        words = "A local AWS on this machine. No request reaches AWS."
    else:
        kind, title = "vmsnix-production", "PRODUCTION AWS"
        words = "Runs here change real resources and cost money."
    more = " ".join(filter(None, (who.arn if who else "", place.url)))
    return fill(_BANNER, kind=kind, title=title, words=words, who=who, more=more)


def effect(side_effects: str) -> Markup:
    """Return what a runbook does to the world, as a badge."""
    kind, words = EFFECTS[side_effects]
    return fill(_BADGE, kind=kind, words=words)


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
            tooltips=["Use the account of your AWS credentials", "Use a local sandbox on this machine"],
        )
        self.switch.add_class("vmsnix-switch")
        self.switch.observe(self._on_switch, "value")
        self._note = ipywidgets.HTML("")
        if self._home.sandbox:
            # Its AWS variables were taken away when it was started, so that there is no way to AWS from here.
            self.switch.layout.display = "none"
            words = fill("JupyterLab was started with --sandbox. To use AWS, run <code>vmsnix lab</code>.")
            self._say(words)
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
                self._say(str(error))
                return
        else:
            self.place = self._home
        self._say("")
        self._moved()

    def _moved(self) -> None:
        self.who = None
        self._banner.value = banner(self.place, None)
        self._changed()
        place = self.place

        def ask() -> None:
            who = places.who(place)
            if place is self.place:  # the switch may have been pressed in the meantime
                self.who = who
                self._banner.value = banner(place, who)
                self._changed()

        threading.Thread(target=ask, name="AWS account", daemon=True).start()

    def _say(self, words: str) -> None:
        self._note.value = fill(_NOTE, words=words)


__all__ = ["PlaceBar"]
