"""The documentation site: `make docs`. Nothing is fetched, neither while it is built nor by a page that is read."""

from __future__ import annotations

import sys
from pathlib import Path

import emotrace

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "extensions"))

project = "emotrace"
version = release = emotrace.__version__
copyright = "emotrace, MIT licence"

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "myst_nb",
    "mathml",
    "reference",
]
exclude_patterns = ["_build", "README.md"]
default_role = "py:obj"  # docstrings name things in single backticks
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the signature of the source says it
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True

myst_enable_extensions = ["dollarmath", "attrs_inline"]
myst_heading_anchors = 3
myst_links_external_new_tab = False
nb_execution_mode = "cache"
nb_execution_cache_path = str(HERE.parent / "build" / "docs-cache")
nb_execution_timeout = 900
nb_execution_raise_on_error = True
nb_execution_in_temp = False
nb_ipywidgets_js = {}  # pages have no widgets, and load no script from elsewhere
nb_merge_streams = True

html_math_renderer = "mathml"
html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_title = f"emotrace {version}"
html_show_sphinx = False
html_copy_source = False
html_show_sourcelink = False
copybutton_prompt_text = r"\$ "
copybutton_prompt_is_regexp = True
