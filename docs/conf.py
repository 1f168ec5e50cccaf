"""How Sphinx builds these pages: offline, every warning an error (``just docs``)."""

from __future__ import annotations

import sys
from pathlib import Path

DOCS = Path(__file__).parent
sys.path[:0] = [str(DOCS.parent), str(DOCS)]

import generate  # noqa: E402  # found by the line above

import vmsnix_ops  # noqa: E402

generate.write_all()

project = "vmsnix_ops"
author = "The vmsnix_ops authors"
project_copyright = author
version = release = vmsnix_ops.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

# The tutorial is run while the pages are built, against a sandbox; a failing cell fails the build.
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 120
nb_merge_streams = True

autodoc_typehints = "signature"
default_role = "literal"  # docstrings mark names with single backticks
napoleon_google_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False

# Annotations name types by their last word, and two packages may each have an `Answer`.
suppress_warnings = ["ref.python"]

html_theme = "furo"
html_title = f"vmsnix_ops {version}"
