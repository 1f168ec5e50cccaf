r"""Make HTML with jinja2 templates, in which every value is text unless a template made it.

jinja2 escapes the values, and hidden characters become visible as everywhere else (`vmsnix_ops.text`). A
value that a template needs and does not get is an error, and so is one that it does not use: it may stand
in wrong braces. jinja2 is imported when the first HTML is made.

>>> fill("<b>{{ name }}</b>", name="<i>\x1b")
Markup('<b>&lt;i&gt;\\x1b</b>')
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from vmsnix_ops.text import visible

if TYPE_CHECKING:
    from jinja2 import Environment, Template
    from markupsafe import Markup


def fill(source: str, /, **values: object) -> Markup:
    """Return a part of a page.

    Parameters
    ----------
    source
        The template itself, a constant.
    **values
        Its values. A part of a page that was made here stays HTML; everything else is text.
    """
    from markupsafe import Markup

    part, names = _part(source)
    if unused := values.keys() - names:
        raise TypeError(f"the template does not use {', '.join(sorted(unused))}: {source}")
    return Markup(visible(part.render(values)))  # noqa: S704 - jinja2 escaped the values


def page(name: str, /, **values: object) -> str:
    """Return a whole page.

    Parameters
    ----------
    name
        The template's file below this package, such as ``"audit/page.html"``.
    **values
        Its values.
    """
    return visible(_environment().get_template(name).render(values))


@cache
def _part(source: str) -> tuple[Template, frozenset[str]]:
    from jinja2.meta import find_undeclared_variables

    environment = _environment()
    names = find_undeclared_variables(environment.parse(source))
    return environment.from_string(source), frozenset(names)


@cache
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    return Environment(
        loader=PackageLoader("vmsnix_ops", ""),
        autoescape=True,
        undefined=StrictUndefined,
        auto_reload=False,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
