"""Sphinx: how the documentation becomes a site. it is staged beside the pages."""

from __future__ import annotations

import os
from typing import Any

from sphinx.application import Sphinx

import distillkit
from tools.website import references, signatures

project = "distillkit"
author = "The distillkit authors"
copyright = "The distillkit authors"  # Sphinx's name for the line at the foot of each page
version = release = os.environ.get("DISTILLKIT_DOCS_VERSION", distillkit.__version__)

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "tools.website.mathml",
]
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}
exclude_patterns = ["_static/gallery/**"]
nitpicky = True
default_role = "literal"
highlight_language = "none"
smartquotes = False

myst_enable_extensions = ["attrs_inline", "colon_fence", "dollarmath"]
myst_heading_anchors = 6

autodoc_inherit_docstrings = False
autodoc_preserve_defaults = True

napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
python_maximum_signature_line_length = 72
python_display_short_literal_types = True
toc_object_entries_show_parents = "hide"
add_module_names = False

html_theme = "furo"
html_title = "distillkit"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_js_files = ["site.js"]
templates_path = ["_templates"]
html_copy_source = False
html_show_sphinx = False
html_math_renderer = "mathml"
html_sidebars = {
    "**": [
        "sidebar/brand.html",
        "versions.html",
        "sidebar/search.html",
        "sidebar/scroll-start.html",
        "sidebar/navigation.html",
        "sidebar/scroll-end.html",
    ]
}
html_theme_options = {
    "light_css_variables": {
        "color-brand-primary": "#0b5fa5",
        "color-brand-content": "#0b5fa5",
    },
    "dark_css_variables": {
        "color-brand-primary": "#6cb6ff",
        "color-brand-content": "#6cb6ff",
    },
}
pygments_style = "friendly"
pygments_dark_style = "github-dark"
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True


def _write_signature(
    app: Sphinx, what: str, name: str, value: object, options: Any, signature: str, returned: str
) -> tuple[str, str] | None:
    return signatures.signature_of(value) or (signature, returned)


def _name_public_bases(app: Sphinx, name: str, cls: type, options: Any, bases: list[Any]) -> None:
    public = [base for base in bases if "._" not in getattr(base, "__module__", "")]
    bases[:] = public or [object]


def setup(app: Sphinx) -> None:
    """What Sphinx calls once."""
    app.connect("autodoc-process-signature", _write_signature)
    app.connect("autodoc-process-bases", _name_public_bases)
    app.connect("missing-reference", references.resolve)
