"""Sphinx's configuration: `make docs` builds the pages, and any warning is an error."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "_ext"))

project = "tauraft"
copyright = "the tauraft authors"  # Sphinx's own name for it
extensions = ["myst_parser", "reference"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build", "_ext"]
myst_heading_anchors = 3
# A pattern in the index may match nothing (yet); that warning has no type that `suppress_warnings` could name.
logging.getLogger("sphinx.sphinx.directives.other").addFilter(
    lambda record: getattr(record, "subtype", "") != "empty_glob"
)
pygments_style = "friendly"

html_theme = "furo"
html_title = "tauraft"
html_copy_source = False
html_show_sphinx = False
