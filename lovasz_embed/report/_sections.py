"""The parts of a page, from top to bottom; each is empty where there is nothing to say."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from lovasz_embed.panoptic import PanopticResult
from lovasz_embed.report._curves import chart
from lovasz_embed.report._html import Html, tag
from lovasz_embed.report._pictures import Painted
from lovasz_embed.report._run import RunRecord
from lovasz_embed.report._scores import PictureScore, Scored
from lovasz_embed.report._tables import Cell, number, percent, table, text, values
from lovasz_embed.training import TrainConfig
from lovasz_embed.visualise import Palette

_ROWS = 1000  # of the table of pictures: a browser sorts so many at once
_MISTAKES = 5  # classes named below a picture


@dataclass(frozen=True)
class Evaluation:
    """Scores of a run on a data set, and its best and worst pictures painted.

    Attributes:
        source: Where the pictures come from, in words.
        scored: The scores.
        palette: Names, kinds and colours of the categories.
        painted: Picture, truth and prediction of the best and worst pictures, by their index.
    """

    source: str
    scored: Scored
    palette: Palette
    painted: Mapping[int, tuple[Painted, Painted, Painted]]


def tiles(run: RunRecord, evaluation: Evaluation | None) -> Html:
    """Return the figures that are looked at first."""
    shown: list[tuple[str, str, str]] = []
    if evaluation is not None:
        quality = evaluation.scored.quality
        for name, score, hint in (
            ("PQ", quality.pq, "panoptic quality, mean of the classes"),
            ("PQ things", quality.pq_things, "countable classes"),
            ("PQ stuff", quality.pq_stuff, "classes without instances"),
            ("AP50", quality.ap50, "things: TP / (TP + FP + FN)"),
            ("mIoU", quality.miou, "classes of pixels"),
        ):
            shown.append((name, percent(score).shown, hint))
        shown.append(("pictures", f"{len(evaluation.scored.pictures):,}", evaluation.source))
    if run.log:
        last = run.log[-1]
        shown.append(("steps", f"{last['step']:,.0f}", "of training"))
        if last.get("seconds") is not None:
            shown.append(("training", _duration(float(last["seconds"])), "time, class means not counted"))
    if run.parameters:
        shown.append(("parameters", f"{run.parameters / 1e6:.2f} M", "weights of the network"))
    return tag(
        "ul",
        *(tag("li", tag("b", value), tag("span", name), title=hint) for name, value, hint in shown),
        class_="tiles",
    )


def scores(evaluation: Evaluation) -> Html:
    """Return the means over all classes, things and stuff, and how the pictures' scores are spread."""
    quality, palette = evaluation.scored.quality, evaluation.palette
    occurs = (quality.per_class.tp + quality.per_class.fp + quality.per_class.fn > 0).tolist()
    things = [number in palette.things for number in range(len(palette.names))]
    rows = []
    for name, kind in (("all", ""), ("things", "_things"), ("stuff", "_stuff")):
        averages = [percent(getattr(quality, f"{score}{kind}")) for score in ("pq", "sq", "rq")]
        belongs = [kind == "" or (kind == "_things") == thing for thing in things]
        count = sum(a and b for a, b in zip(occurs, belongs, strict=True))
        rows.append([text(name), *averages, number(count)])
    columns = {"": "", "PQ": "SQ × RQ", "SQ": "how well matches overlap", "RQ": "F1 score of segments", "classes": ""}
    means = table("Means over classes, %", columns, rows, sortable=False)
    return _section("Scores", tag("div", means, _histogram(evaluation.scored.pictures), class_="pair"))


def classes(evaluation: Evaluation) -> Html:
    """Return the scores of every class that occurs, and the names of those that do not."""
    quality, palette = evaluation.scored.quality.per_class, evaluation.palette
    rows, absent = [], []
    for row, name in enumerate(palette.names):
        counts = [int(count[row]) for count in (quality.tp, quality.fp, quality.fn)]
        if not sum(counts):
            absent.append(name)
            continue
        pq = float(quality.pq[row])
        rates = [percent(float(score[row])) for score in (quality.sq, quality.rq, quality.iou)]
        swatched = Cell(Html.of(_swatch(palette, row), name), name.casefold())
        kind = text("thing" if row in palette.things else "stuff")
        barred = Cell(Html.of(_bar(pq), percent(pq).shown), percent(pq).value)
        rows.append([swatched, kind, barred, *rates, *map(number, counts)])
    columns = {
        "class": "",
        "kind": "things have instances, stuff has none",
        "PQ": "SQ × RQ",
        "SQ": "mean IoU of the matches",
        "RQ": "F1 score of segments",
        "IoU": "of all pixels of the class",
        "TP": "segments found",
        "FP": "predicted segments that match none",
        "FN": "segments missed",
    }
    parts = [table("Scores in %, counts of segments", columns, rows)]
    if absent:
        summary = f"{len(absent)} {'class occurs' if len(absent) == 1 else 'classes occur'} nowhere"
        parts.append(tag("details", tag("summary", summary), tag("p", ", ".join(absent))))
    return _section("Classes", *parts)


def known_classes(run: RunRecord) -> Html:
    """Return the classes of a run that was not scored: their kinds and the pixels under their means."""
    names, things = class_names(run)
    if not names:
        return Html()
    palette = Palette.of(names, things)
    pixels = run.class_pixels if len(run.class_pixels) == len(names) else (0,) * len(names)
    total = sum(pixels)
    rows = [
        [
            Cell(Html.of(_swatch(palette, row), name), name.casefold()),
            text("thing" if row in things else "stuff"),
            number(pixels[row]),
            percent(pixels[row] / total if total else math.nan),
        ]
        for row, name in enumerate(names)
    ]
    columns = {"class": "", "kind": "", "pixels": "under the class mean", "%": "of all labelled pixels"}
    return _section("Classes", table("Pixels that the class means were taken over", columns, rows))


def pictures(evaluation: Evaluation) -> Html:
    """Return the worst and the best pictures, and the scores of all."""
    scored = evaluation.scored
    parts = []
    for title, chosen in (("Worst", scored.worst), ("Best", scored.best)):
        if chosen:
            cards = [_card(picture, result, evaluation) for picture, result in chosen]
            parts += [tag("h3", title), tag("div", *cards, class_="cards")]
    listed = scored.pictures
    if len(listed) > _ROWS:
        listed = tuple(sorted(listed, key=lambda p: (math.isnan(p.pq), p.pq))[:_ROWS])
    rows = [
        [text(p.name), percent(p.pq), percent(p.sq), percent(p.rq), number(p.tp), number(p.fp), number(p.fn)]
        for p in listed
    ]
    columns = {"picture": "", "PQ": "mean of the classes in it", "SQ": "", "RQ": "", "TP": "", "FP": "", "FN": ""}
    summary = "All pictures" if len(listed) == len(scored.pictures) else f"The worst {_ROWS:,} pictures"
    parts.append(tag("details", tag("summary", summary), table("Scores of each picture, %", columns, rows)))
    return _section("Pictures", *parts)


def training(run: RunRecord) -> Html:
    """Return the curves of the training."""
    if not run.log:
        return Html()
    steps = [record["step"] for record in run.log]

    def column(name: str) -> list[float | None]:
        return [record.get(name) for record in run.log]

    charts = [
        chart("Loss", steps, {"total": column("loss")}, smooth=True),
        chart("Parts of the loss", steps, {n: column(n) for n in ("category", "instance", "ncm")}, smooth=True),
        chart("Learning rate", steps, {"rate": column("learning_rate")}),
    ]
    if run.scores:
        names = {"pq": "PQ", "pq_things": "things", "pq_stuff": "stuff"}
        curves = {shown: [record.get(name) for record in run.scores] for name, shown in names.items()}
        curves = {name: found for name, found in curves.items() if any(value is not None for value in found)}
        if curves:
            charts.insert(0, chart("Panoptic quality", [r["step"] for r in run.scores], curves, percent=True))
    slider = tag("input", type="range", min=0, max=max(steps), value=max(steps), aria_label="step")
    cursor = tag("p", tag("label", "step ", tag("output", f"{max(steps):,}")), slider, class_="cursor-at", hidden=True)
    note = tag("p", "Thin: as logged, one random batch each. Thick: moving average.", class_="note")
    return _section(
        "Training", cursor, tag("div", *charts, class_="charts even" if len(charts) % 2 == 0 else "charts"), note
    )


def configuration(run: RunRecord) -> Html:
    """Return options of the training that were changed, all others, the model and the data set."""
    parts = []
    if run.options is not None:
        usual = {field.name: field.default for field in fields(TrainConfig)}
        changed = {name: value for name, value in run.options.items() if usual.get(name) != value}
        rest = {name: value for name, value in run.options.items() if name not in changed}
        parts += [values("Training, as chosen", changed), values("Training, defaults", rest)]
    if run.model is not None:
        model = {name: value for name, value in run.model.items() if name not in {"classes", "things"}}
        parts.append(values("Model", model))
    names, things = class_names(run)
    if names:
        about: dict[str, Any] = {"format": run.format} if run.format else {}
        about |= {"classes of things": len(things), "classes of stuff": len(names) - len(things)}
        parts.append(values("Data set", about))
    return _section("Configuration", tag("div", *parts, class_="columns")) if parts else Html()


def origin(run: RunRecord, made: Mapping[str, str]) -> Html:
    """Return the commands that trained the run and made the page, with their versions and dates."""
    entries = [dict(record) for record in run.history] + [dict(made)]
    parts = []
    for entry in entries:
        command = str(entry.pop("command"))
        versions = entry.pop("versions", {})
        if isinstance(versions, Mapping):
            entry["versions"] = ", ".join(f"{name} {version}" for name, version in versions.items())
        about = " · ".join(str(value) for value in entry.values() if value not in (None, ""))
        parts.append(tag("li", tag("pre", tag("code", command), tabindex=0), tag("p", about, class_="note")))
    return _section("How it was made", tag("ol", *parts, class_="history"))


def class_names(run: RunRecord) -> tuple[tuple[str, ...], frozenset[int]]:
    """Return the names of a run's classes and which of them are things, as far as its files tell."""
    if run.categories:
        things = (number for number, category in enumerate(run.categories) if category.is_thing)
        return tuple(category.name for category in run.categories), frozenset(things)
    model = run.model or {}
    return tuple(map(str, model.get("classes", ()))), frozenset(model.get("things", ()))


def _section(title: str, *content: str) -> Html:
    name = title.lower().replace(" ", "-")
    return tag("section", tag("h2", title, id=name), *content, aria_labelledby=name)


def _card(picture: PictureScore, prediction: PanopticResult, evaluation: Evaluation) -> Html:
    palette = evaluation.palette
    figures = [
        tag(
            "figure",
            tag(
                "img",
                src=painted.uri,
                width=painted.width,
                height=painted.height,
                alt=f"{picture.name}: {what}",
                loading="lazy",
                decoding="async",
            ),
            tag("figcaption", what),
        )
        for what, painted in zip(("picture", "truth", "prediction"), evaluation.painted[picture.position], strict=True)
    ]
    counts = f"{picture.tp} found, {picture.fn} missed, {picture.fp} wrong"
    head = tag("header", tag("h4", picture.name), tag("p", tag("b", f"PQ {percent(picture.pq).shown}"), " ", counts))
    mistakes = [
        tag("li", _swatch(palette, row), palette.names[row], " ", tag("small", _mistakes(fp, fn)))
        for row, fp, fn in picture.wrong[:_MISTAKES]
    ]
    if len(picture.wrong) > _MISTAKES:
        mistakes.append(tag("li", tag("small", f"and {len(picture.wrong) - _MISTAKES} more classes")))
    if not mistakes:
        segments = len(prediction.segments[0])
        mistakes = [tag("li", tag("small", f"every one of {segments} segments matches"))]
    return tag("article", head, tag("div", *figures, class_="triple"), tag("ul", *mistakes, class_="chips"))


def _mistakes(fp: int, fn: int) -> str:
    parts = ([f"{fn} missed"] if fn else []) + ([f"{fp} wrong"] if fp else [])
    return ", ".join(parts)


def _histogram(pictures: Sequence[PictureScore]) -> Html:
    """Return how many pictures have which PQ, in twenty steps."""
    found = [picture.pq for picture in pictures if not math.isnan(picture.pq)]
    bins = [0] * 20
    for score in found:
        bins[min(19, int(20 * score))] += 1
    most = max(bins, default=0) or 1
    bars = [
        tag(
            "rect",
            tag("title", f"PQ {5 * place} to {5 * place + 5}: {count}"),
            x=20 * place + 1,
            width=18,
            y=round(100 * (1 - count / most), 1),
            height=round(100 * count / most, 1),
        )
        for place, count in enumerate(bins)
    ]
    marks = [
        tag("text", str(mark), x=4 * mark, y=118, text_anchor={0: "start", 100: "end"}.get(mark, "middle"))
        for mark in (0, 25, 50, 75, 100)
    ]
    label = f"PQ of {len(found)} pictures in steps of 5; the fullest step holds {most}"
    base = tag("line", class_="grid", x1=0, x2=400, y1=100, y2=100)
    svg = tag("svg", *bars, base, *marks, viewBox="0 0 400 124", role="img", aria_label=label, class_="bars")
    return tag("figure", tag("figcaption", tag("h3", "Pictures by their PQ, %")), svg, class_="chart")


def _swatch(palette: Palette, row: int) -> Html:
    red, green, blue = palette.colours[row].tolist()
    colour = f"#{red:02x}{green:02x}{blue:02x}"
    inner = tag("rect", width=10, height=10, rx=2, fill=colour)
    return tag("svg", inner, class_="swatch", viewBox="0 0 10 10", aria_hidden="true")


def _bar(fraction: float) -> Html:
    inner = tag("rect", width=round(60 * fraction, 1), height=6, rx=1)
    return tag("svg", inner, class_="bar", viewBox="0 0 60 6", aria_hidden="true")


def _duration(seconds: float) -> str:
    unit, length = ("s", 1) if seconds < 60 else ("min", 60) if seconds < 6000 else ("h", 3600)
    amount = seconds / length
    return f"{amount:.0f} {unit}" if amount >= 9.95 else f"{amount:.1f} {unit}"
