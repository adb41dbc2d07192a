"""Formulas as MathML, which browsers draw by themselves: no script, no fonts, no network.

MathJax would be loaded from a server, or be a copy of somebody's code in this repository.
"""

from __future__ import annotations

import re

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx
from sphinx.writers.html5 import HTML5Translator


def _mathml(formula: str, display: str = "inline") -> str:
    """Convert a formula; names of functions are words, and bars stand close to what they enclose."""
    markup: str = convert(formula, display=display)
    markup = re.sub(r"<mo>([a-z]{2,})</mo>", r"<mi>\1</mi>", markup)
    return re.sub(r"<mo[^>]*>(&#x0007C;|\|)</mo>", r'<mo stretchy="false" lspace="0em" rspace="0em">\1</mo>', markup)


def _inline(translator: HTML5Translator, node: nodes.math) -> None:
    translator.body.append(_mathml(node.astext()))
    raise nodes.SkipNode


def _block(translator: HTML5Translator, node: nodes.math_block) -> None:
    # A wide formula scrolls by itself, so that the page does not.
    translator.body.append(f'<div class="math-block">{_mathml(node.astext(), "block")}</div>\n')
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
