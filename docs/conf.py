"""How sphinx builds these pages: `sphinx-build -n -W --keep-going docs docs/_build/html`."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import matplotlib
from docutils.nodes import Element, TextElement
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment

import lovasz_embed

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "_ext"))
matplotlib.use("agg")
# Where the gallery looks for real pictures; a script paints its own where there are none.
os.environ.setdefault("LOVASZ_EMBED_DATA", str(HERE.parents[1] / "shared" / "data"))

project = "lovasz-embed"
author = "The lovasz-embed authors"
copyright = "the lovasz-embed authors, Apache-2.0"
version = release = lovasz_embed.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinx_gallery.gen_gallery",
    "sphinxcontrib.bibtex",
    "matplotlib.sphinxext.plot_directive",
    "mathml",
]
# sphinx-gallery writes pages from gallery/, whose own index is no page.
exclude_patterns = ["_build", "gallery"]
html_theme = "furo"
html_title = "lovasz-embed"
html_static_path = ["_static"]
html_css_files = ["lovasz.css"]
html_math_renderer = "mathml"
html_theme_options = {"navigation_with_keys": True, "top_of_page_buttons": []}

bibtex_bibfiles = ["references.bib"]
bibtex_default_style = "plain"
bibtex_reference_style = "author_year"

# Figures of the concept pages: scripts in concepts/figures/, run when the page is built.
plot_formats = [("png", 200)]
plot_html_show_formats = plot_html_show_source_link = False
plot_rcparams = dict(matplotlib.rc_params_from_file(HERE / "_static" / "lovasz.mplstyle", use_default_template=False))
plot_apply_rcparams = True

sphinx_gallery_conf = {
    "examples_dirs": "gallery",
    "gallery_dirs": "auto_gallery",
    "filename_pattern": r"plot_",
    "within_subsection_order": "FileNameSortKey",
    "reset_modules": ("figure_style.reset",),
    "image_srcset": ["2x"],
    "abort_on_example_error": True,
    "download_all_examples": False,
    "show_signature": False,
    "write_computation_times": False,  # a page that loads scripts from the network
    "remove_config_comments": True,
    "doc_module": ("lovasz_embed",),
    "backreferences_dir": None,
    "capture_repr": (),
}

myst_enable_extensions = ["dollarmath", "amsmath", "deflist", "colon_fence", "attrs_inline", "attrs_block"]
myst_heading_anchors = 3
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

autosummary_generate = False  # the tables of reference.md link to the entries on the same page
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True  # "Attributes:" describe the fields in one list

# Every reference must lead somewhere, except out of this package: the build needs no network.
nitpicky = True
nitpick_ignore_regex = [
    ("py:.*", r"(torch|numpy|np|pathlib|collections|typing|types|os|abc|functools|dataclasses)\..*"),
    ("py:.*", r"(Tensor|NDArray|ArrayLike|PathLike|Path|Any|Self|nn\.Module|optional)"),
    ("py:class", r"lovasz_embed\..*\.Picture"),  # short for an array of bytes, in several modules
]
default_role = "py:obj"


def _resolve(app: Sphinx, env: BuildEnvironment, node: pending_xref, content: TextElement) -> Element | None:
    """Find a public name wherever it is mentioned, by its last part; let other words in backticks be code."""
    if node.get("refdomain") != "py":
        return None
    target = node["reftarget"]
    if "." not in target or target.startswith("lovasz_embed."):
        domain = env.domains.python_domain
        name = target.rpartition(".")[2]
        homes = [full for full in domain.objects if re.fullmatch(rf"lovasz_embed\.\w+\.{name}", full)]
        if len(homes) == 1:
            return domain.resolve_xref(env, node["refdoc"], app.builder, "obj", homes[0], node, content)
    return content if node["reftype"] == "obj" else None


def _escape(app: Sphinx, what: str, name: str, value: object, options: object, lines: list[str]) -> None:
    """Let docstrings say (B, *spatial) and |e| without backslashes; formulas, examples and code stay."""
    special = r"\|(?=\S)|(?<=\S)\||(?<![\w*])\*(?=[a-z])"
    formula = None
    for number, line in enumerate(lines):
        indent = len(line) - len(line.lstrip())
        if line.lstrip().startswith((".. math::", ">>>")):
            formula = indent
        elif formula is not None and line.strip() and indent <= formula:
            formula = None
        if formula is None:
            parts = line.split("`")
            parts[::2] = [re.sub(special, r"\\\g<0>", part) for part in parts[::2]]
            lines[number] = "`".join(parts)


def _prose_is_no_type(app: Sphinx, what: str, name: str, value: object, options: object, lines: list[str]) -> None:
    """Undo napoleon's reading of "text: more text" as a type and a text; signatures hold the types."""
    for number, line in enumerate(lines):
        marker, _, words = line[1:].partition(": ")
        if marker == "rtype" and line.startswith(":"):
            first = next(n for n in range(number, -1, -1) if lines[n].startswith(":returns: "))
            lines[first] = f":returns: {words}: {lines[first].removeprefix(':returns: ')}"
        elif marker == "type" and line.startswith(":"):
            lines[0] = f"{words}: {lines[0]}"
        else:
            continue
        del lines[number]
        return


def _skip_tuple_fields(app: Sphinx, what: str, name: str, value: object, skip: bool, options: object) -> bool | None:
    """Leave out "Alias for field number 0": the fields are described under their named tuple."""
    return True if type(value).__name__ == "_tuplegetter" else None


def setup(app: Sphinx) -> None:
    app.connect("missing-reference", _resolve)
    app.connect("autodoc-process-docstring", _escape, priority=400)  # napoleon comes at 500
    app.connect("autodoc-process-docstring", _prose_is_no_type, priority=600)
    app.connect("autodoc-skip-member", _skip_tuple_fields)
