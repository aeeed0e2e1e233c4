"""Sphinx configuration of the site, for `make docs`."""

import importlib.metadata

project = "tfnas"
version = release = importlib.metadata.version("tfnas")
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
html_title = f"tfnas {release}"
html_show_copyright = False

# Links to headings are GitHub's, so that they lead somewhere in both places.
myst_heading_anchors = 4

# A link or a reference that leads nowhere is a warning, and a warning is an error.
nitpicky = True
# Other projects' types in signatures: their documentation is not fetched when the site is built.
_OTHERS = r"(absl|collections|keras|ml_collections|np|numpy|os|pathlib|rich|tf|tensorflow)\b.*"
nitpick_ignore_regex = [("py:.*", _OTHERS)]

# Docstrings are Google's in form, and write code between single backticks, as Markdown does.
napoleon_numpy_docstring = False
default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
