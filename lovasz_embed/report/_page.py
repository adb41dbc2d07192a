"""The page itself: one file that asks nothing of the network, whatever text it shows."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from importlib.resources import files

from lovasz_embed import _check
from lovasz_embed.report import _sections
from lovasz_embed.report._html import Html, tag
from lovasz_embed.report._run import RunRecord
from lovasz_embed.report._sections import Evaluation


def render(run: RunRecord, evaluation: Evaluation | None = None, *, made: Mapping[str, str]) -> str:
    """Return one self-contained HTML page about a run.

    A content security policy allows this page's own style and script, pictures inside it, and nothing else: no
    request, no form, no script of whatever a class or a file is called.

    Args:
        run: What `read_run` read.
        evaluation: Scores and painted pictures; None for curves and configuration alone.
        made: How the page was made: its `command`, and what else is to be told, such as the date.

    >>> page = render(RunRecord(name="<b>"), made={"command": "lovasz-embed report RUN"})
    >>> "<title>&lt;b&gt;" in page, "http" in page.replace("http-equiv", "")
    (True, False)
    """
    _check.is_a("run", run, RunRecord, "a RunRecord", "read_run reads one.")
    if evaluation is not None:
        _check.is_a("evaluation", evaluation, Evaluation, "an Evaluation or None")
    if not isinstance(made, Mapping) or "command" not in made:
        raise TypeError(_check.message("made", "be a mapping with the entry 'command'", repr(made)))
    style, script = (Html(files("lovasz_embed.report").joinpath(name).read_text("utf-8")) for name in _PARTS)
    policy = f"default-src 'none'; img-src data:; style-src {_hash(style)}; script-src {_hash(script)}; "
    policy += "base-uri 'none'; form-action 'none'"
    if evaluation is None:
        sections = [_sections.training(run), _sections.known_classes(run)]
    else:
        sections = [_sections.scores(evaluation), _sections.classes(evaluation)]
        sections += [_sections.training(run), _sections.pictures(evaluation)]
    sections += [_sections.configuration(run), _sections.origin(run, made)]
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", run.name, " - lovasz-embed"),
        tag("style", style),
    )
    body = tag(
        "body",
        tag("header", tag("h1", run.name), tag("p", _subtitle(run, evaluation), class_="note"), class_="top"),
        tag("main", _sections.tiles(run, evaluation), *sections),
        tag("script", script),
    )
    return Html.of(Html("<!doctype html>\n"), tag("html", head, body, lang="en"), Html("\n"))


_PARTS = ("page.css", "page.js")


def _hash(content: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"


def _subtitle(run: RunRecord, evaluation: Evaluation | None) -> str:
    names, things = _sections.class_names(run)
    parts = []
    if names:
        parts.append(
            f"{len(things)} {'class' if len(things) == 1 else 'classes'} of things, {len(names) - len(things)} of stuff"
        )
    if evaluation is not None:
        parts.append(f"scored on {evaluation.source}")
    elif run.model is None:
        parts.append("not yet finished: no model is written")
    else:
        parts.append("not scored: give the report --data to see scores and pictures")
    return "; ".join(parts)
