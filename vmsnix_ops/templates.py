r"""Make HTML with jinja2 templates, in which every value is text unless a template made it.

jinja2 escapes the values, and `vmsnix_ops.text` makes hidden characters visible. A missing value is an error,
and an unused one too, because the template may have a typing error in its braces. jinja2 is imported with the
first call.

>>> fill("<b>{{ name }}</b>", name="<i>\x1b")
Markup('<b>&lt;i&gt;\\x1b</b>')
"""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from typing import TYPE_CHECKING

from vmsnix_ops.text import visible

if TYPE_CHECKING:
    from jinja2 import Environment, Template
    from markupsafe import Markup


def fill(source: str, /, **values: object) -> Markup:
    """Return a part of a page. A value that is a result of `fill` is HTML; every other value is text."""
    from markupsafe import Markup

    part, names = _part(source)
    if unused := values.keys() - names:
        raise TypeError(f"the template does not use {', '.join(sorted(unused))}: {source}")
    return Markup(visible(part.render(values)))  # noqa: S704 - jinja2 escaped the values


def page(name: str, /, **values: object) -> str:
    """Return a whole page; the name is the template's path in this package, such as ``audit/page.html``."""
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

    environment = Environment(
        loader=PackageLoader("vmsnix_ops", ""),
        autoescape=True,
        undefined=StrictUndefined,
        auto_reload=False,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["source_digest"] = _source_digest
    return environment


def _source_digest(source: str) -> str:
    """Return the source expression of a script or style sheet for a content security policy."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()}'"
