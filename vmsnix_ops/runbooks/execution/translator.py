"""Let papermill read parameters of the type ``Literal["a", "b"]``: its own pattern allows no quotes.

Without this, papermill passes such a parameter, but warns that it is unknown and leaves it out of
``papermill --help-notebook``. papermill loads this module through an entry point.
"""

from __future__ import annotations

import re

from papermill.engines import NBClientEngine
from papermill.translators import PythonTranslator, papermill_translators

__all__ = ["NBClientEngine", "Translator"]  # an entry point of papermill has to name an engine


class Translator(PythonTranslator):  # type: ignore[misc]
    """papermill's translator, with a pattern that reads every type of a parameters cell."""

    PARAMETER_PATTERN = re.compile(
        r"^(?P<target>\w+)\s*(:\s*(?P<annotation>[^=#]+?)\s*)?=\s*(?P<value>.*?)"
        r"(\s*#\s*(type:\s*(?P<type_comment>[^\s]*)\s*)?(?P<help>.*))?$"
    )


papermill_translators.register("python", Translator)
