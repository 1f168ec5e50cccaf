"""How the console looks: one style sheet, in JupyterLab's own variables, so that it follows the theme."""

from __future__ import annotations

from importlib.resources import files
from typing import TYPE_CHECKING

from vmsnix_ops.text import html

if TYPE_CHECKING:
    from vmsnix_ops.runbooks.console.places import Place, Who

EFFECTS = {
    "read_only": ("vmsnix-good", "looks, changes nothing"),
    "creates": ("vmsnix-mixed", "creates"),
    "destroys": ("vmsnix-bad", "destroys"),
}


def style() -> str:
    """Return the style sheet as an HTML element."""
    text = (files("vmsnix_ops.runbooks.console") / "console.css").read_text(encoding="utf-8")
    return f"<style>{text}</style>"


def banner(place: Place, who: Who | None) -> str:
    """Return the words that say where everything goes; nobody shall take a rehearsal for production.

    Parameters
    ----------
    place
        The place.
    who
        Whose account it is; ``None`` while AWS is being asked.
    """
    if place.sandbox:
        kind, title = "vmsnix-sandbox", "SANDBOX"
        words = "A rehearsal on this machine. Nothing reaches AWS."
    else:
        kind, title = "vmsnix-production", "PRODUCTION AWS"
        words = "What runs here is real, and costs money."
    if who is None:
        facts = "Asking whose account this is ..."
    elif who.account:
        region = who.region or "none set"
        facts = f"Account <b>{who.account}</b>, region <b>{html(region)}</b>"
    else:
        facts = "Account unknown"
    problem = f'<p class="vmsnix-problem" role="alert">{html(who.problem)}</p>' if who and who.problem else ""
    more = html(" ".join(filter(None, (who.arn if who else "", place.url))))
    return (
        f'<div class="vmsnix-banner {kind}" title="{more}"><b class="vmsnix-where">{title}</b>'
        f"<div><p>{words}</p><p>{facts}</p>{problem}</div></div>"
    )


def effect(side_effects: str) -> str:
    """Return what a runbook does to the world, as a badge."""
    kind, words = EFFECTS[side_effects]
    return f'<span class="vmsnix-badge {kind}">{words}</span>'
