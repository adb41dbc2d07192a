"""The page about a run: what it says is right, what it shows stays text, and a browser asks nothing of a network."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
import shutil
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from html.parser import HTMLParser
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image

from lovasz_embed.cli import app
from lovasz_embed.cli._run import DatasetRecord
from lovasz_embed.formats import Category, DataError, ImageRecord, Sample, write_coco_panoptic
from lovasz_embed.model import ModelConfig, PanopticEmbedder
from lovasz_embed.panoptic import PanopticResult
from lovasz_embed.quality import PanopticQuality
from lovasz_embed.report import Evaluation, RunRecord, paint, read_run, render, score_pictures
from lovasz_embed.report._curves import Axis, chart
from lovasz_embed.training import TrainConfig, fit
from lovasz_embed.visualise import Palette, overlay

HOSTILE = "</script><script>alert(1)</script>"
CLASSES = ("floor", HOSTILE, '"><img src=x onerror=alert(2)> & \x00')
THINGS = {1, 2}
FILE = "a'\"><svg onload=alert(3)>&amp;"


def lovasz_embed(*arguments: object) -> tuple[int, str, str]:
    """Run the command in this process: exit code, stdout, stderr."""
    code, stdout, stderr = 0, StringIO(), StringIO()
    with redirect_stdout(stdout), redirect_stderr(stderr):
        try:
            app([str(argument) for argument in arguments], prog_name="lovasz-embed")
        except SystemExit as end:
            code = int(end.code or 0)
    return code, stdout.getvalue(), stderr.getvalue()


def truth(number: int) -> PanopticResult:
    """Return two things on a floor, 24 × 32 pixels."""
    semantic, instance = torch.zeros(1, 24, 32, dtype=torch.long), torch.zeros(1, 24, 32, dtype=torch.long)
    for identifier, left in ((1, 2), (2, 18)):
        part = (0, slice(4 + number, 14 + number), slice(left, left + 8))
        semantic[part], instance[part] = identifier, identifier
    return PanopticResult.from_maps(semantic, instance, things=THINGS)


def picture(number: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    categories = truth(number).semantic()[0].numpy()
    colours = np.array([[40, 40, 40], [200, 120, 40], [60, 220, 220]], np.uint8)
    return colours[categories]


class Example(NamedTuple):
    """A run and a data set, with hostile names."""

    run: Path
    data: Path


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Example:
    """Write a run without training: class means of raw colours are as good as any to test a page."""
    folder = tmp_path_factory.mktemp("report")
    run, data = folder / "run <b>", folder / "data"
    categories = tuple(Category(number + 1, name, number in THINGS) for number, name in enumerate(CLASSES))
    torch.manual_seed(0)
    model = PanopticEmbedder(ModelConfig(classes=CLASSES, things=(1, 2), widths=(4, 8)))
    model.ncm.update(torch.randn(1, 8, 3, 3), torch.arange(9).view(1, 3, 3) % 3)
    model.save_pretrained(run)
    DatasetRecord("coco-panoptic", categories).save(run)
    TrainConfig(steps=80, minutes=None, kernel="cauchy").save(run / "train.json")
    log = [
        {
            "step": 20 * n,
            "loss": 2 / n,
            "category": 1 / n,
            "instance": 0.5 / n,
            "ncm": 0.5 / n,
            "learning_rate": 0.1 / n,
        }
        | {"seconds": 30.0 * n}
        for n in range(1, 5)
    ]
    (run / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in log))
    scores = [{"step": 40, "pq": 0.2, "pq_things": None, "pq_stuff": 0.4}, {"step": 80, "pq": 0.31, "pq_stuff": 0.5}]
    (run / "scores.jsonl").write_text("".join(json.dumps(record) + "\n" for record in scores))
    command = {"command": f"lovasz-embed train --out '{HOSTILE}'", "date": "2026-01-02", "versions": {"torch": "2"}}
    (run / "history.jsonl").write_text(json.dumps(command) + "\n")
    (data / "val").mkdir(parents=True)
    names = [f"{FILE}{number}" for number in range(3)]
    for number, name in enumerate(names):
        Image.fromarray(picture(number)).save(data / "val" / f"{name}.png")
    records = [ImageRecord(number, f"{name}.png", 24, 32) for number, name in enumerate(names)]
    path = data / "annotations" / "panoptic_val.json"
    write_coco_panoptic(path, [truth(number) for number in range(3)], images=records, categories=categories)
    return Example(run, data)


@pytest.fixture(scope="module")
def scored_page(example: Example) -> Path:
    """The page with scores and pictures; made once."""
    code, _, stderr = lovasz_embed("report", example.run, "--data", example.data, "--pictures", 1)
    assert code == 0, stderr
    return example.run / "report.html"


# --- scores


def shifted(result: PanopticResult, by: int) -> PanopticResult:
    """Return a result moved to the right, which worsens its scores the more the farther."""
    maps = (result.semantic().roll(by, 2), result.instance().roll(by, 2))
    return PanopticResult.from_maps(*maps, things=THINGS)


def test_the_scores_of_all_pictures_are_those_of_the_metric() -> None:
    truths = [truth(number) for number in range(6)]
    predictions = [shifted(result, by) for by, result in enumerate(truths)]
    scored = score_pictures(predictions, truths, list("abcdef"), classes=3, things=THINGS, keep=2)
    metric = PanopticQuality(3, THINGS)
    for prediction, result in zip(predictions, truths, strict=True):
        metric.update(prediction, result)
    expected = metric.compute()
    assert (scored.quality.pq, scored.quality.miou) == (expected.pq, expected.miou)
    assert torch.equal(scored.quality.per_class.fp, expected.per_class.fp)
    assert [p.name for p in scored.pictures] == list("abcdef")
    assert scored.pictures[0].pq == 1
    assert scored.pictures[5].wrong == ((1, 1, 1), (2, 1, 1))  # moved by more than half: none of the things matches


@pytest.mark.parametrize(("count", "best", "worst"), [(0, "", ""), (1, "", "a"), (3, "a", "cb"), (5, "ab", "ed")])
def test_the_best_and_the_worst_are_found_and_none_is_both(count: int, best: str, worst: str) -> None:
    truths = [truth(0)] * count
    predictions = [shifted(result, by) for by, result in enumerate(truths)]
    scored = score_pictures(predictions, truths, "abcde"[:count], classes=3, things=THINGS, keep=2)
    assert "".join(p.name for p, _ in scored.best) == best
    assert "".join(p.name for p, _ in scored.worst) == worst
    assert all(kept == predictions[p.position] for p, kept in (*scored.best, *scored.worst))


def test_a_picture_of_void_alone_is_neither_best_nor_worst() -> None:
    void = torch.full((1, 4, 4), 255)
    nothing = PanopticResult.from_maps(void, torch.zeros_like(void), things=THINGS)
    scored = score_pictures([nothing], [nothing], ["a"], classes=3, things=THINGS)
    assert math.isnan(scored.pictures[0].pq)
    assert (scored.best, scored.worst) == ((), ())


def test_predictions_and_truths_of_different_number_fail_clearly() -> None:
    with pytest.raises(ValueError, match="must be equally many, got 1 of predictions"):
        score_pictures([truth(0)], [truth(0), truth(1)], "ab", classes=3, things=THINGS)
    with pytest.raises(ValueError, match="keep must be 0 or above, got -1"):
        score_pictures([], [], "", classes=3, things=THINGS, keep=-1)


# --- pictures and curves


@pytest.mark.parametrize(("size", "shown"), [((24, 32), (360, 480)), ((1000, 400), (480, 192)), ((1, 3000), (1, 480))])
def test_pictures_are_shown_at_a_modest_size(size: tuple[int, int], shown: tuple[int, int]) -> None:
    maps = torch.zeros(1, *size, dtype=torch.long)
    result = PanopticResult.from_maps(maps, maps, things=())
    palette = Palette.of(("floor",), things=())
    for painted in paint(np.zeros((*size, 3), np.uint8), result, result, palette):
        content = base64.b64decode(painted.uri.removeprefix("data:image/png;base64,"))
        with Image.open(BytesIO(content)) as opened:
            assert opened.size == (painted.width, painted.height) == shown[::-1]


def test_a_small_instance_keeps_its_colour_in_a_busy_picture() -> None:
    semantic = torch.zeros(1, 240, 240, dtype=torch.long)
    semantic[0, 10:15, 10:15] = 1
    result = PanopticResult.from_maps(semantic, semantic, things={1})
    palette = Palette.of(("floor", "cup"), things={1})
    noise = np.random.default_rng(0).integers(0, 255, (240, 240, 3), dtype=np.uint8)
    _, painted, _ = paint(noise, result, result, palette)
    content = base64.b64decode(painted.uri.removeprefix("data:image/png;base64,"))
    with Image.open(BytesIO(content)) as opened:
        shown = np.asarray(opened.convert("RGB"))[24, 24].astype(int)
    exact = overlay(noise, result, palette=palette, scale=2)[24, 24].astype(int)
    assert np.abs(shown - exact).max() <= 16  # a cell of the octree; a median cut is off by 63 here


def test_axes_are_round_and_hold_what_is_drawn() -> None:
    assert Axis.around(0, 17.1).ticks == (0, 5, 10, 15, 20)
    assert Axis.around(0, 3e-5).ticks[:2] == (0, 1e-5)
    assert Axis.around(0, 0).low < 0 < Axis.around(0, 0).high
    for low, high in ((-3.3, 8), (0.01, 0.011), (5, 5)):
        axis = Axis.around(low, high)
        assert axis.low <= low <= high <= axis.high


def test_a_curve_has_gaps_where_values_are_missing_and_is_thinned_where_there_are_many() -> None:
    drawn = chart("Score", [1, 2, 3, 4], {"pq": [0.1, None, 0.3, math.nan]}, percent=True)
    [path] = re.findall(r'<path d="([^"]*)"', drawn)
    assert path.count("M") == 2
    assert "Score, %" in drawn
    drawn = chart("Loss", range(5000), {"total": [1.0] * 5000}, smooth=True)
    assert [path.count("L") for path in re.findall(r'<path d="([^"]*)"', drawn)] == [299, 299]


# --- a run on disk


def test_a_run_tells_what_it_knows(example: Example) -> None:
    record = read_run(example.run)
    assert [line["step"] for line in record.log] == [20, 40, 60, 80]
    assert record.class_pixels == (3, 3, 3)
    model = PanopticEmbedder.from_pretrained(example.run)
    assert record.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert record.format == "coco-panoptic"
    assert record.options is not None
    assert record.options["kernel"] == "cauchy"


def test_a_run_that_still_trains_has_a_page_too(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text('{"step": 20, "loss": 0.5}\n{"step": 4')
    assert read_run(tmp_path).log == ({"step": 20, "loss": 0.5},)
    code, _, stderr = lovasz_embed("report", tmp_path)
    assert code == 0, stderr
    assert "not yet finished" in (tmp_path / "report.html").read_text()


def test_a_log_that_does_not_know_its_seconds_has_a_page_too(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text('{"step": 20, "loss": 0.5, "seconds": null}\n')
    code, _, stderr = lovasz_embed("report", tmp_path)
    assert code == 0, stderr


@pytest.mark.parametrize(
    ("file", "content", "text"),
    [
        ("log.jsonl", '{"loss": 1}\n', "log.jsonl must hold step in every line, got a line without"),
        ("log.jsonl", "{]\n", "log.jsonl must be a readable JSON file, got"),
        ("log.jsonl", "[1]\n", "log.jsonl must hold JSON objects, got list"),
        ("dataset.json", '{"categories": [{"id": 1}]}', "dataset.json must be what `train` wrote"),
        ("model.safetensors", "abc", "model.safetensors must be what `fit` wrote"),
    ],
)
def test_a_broken_file_of_a_run_fails_clearly(
    example: Example, tmp_path: Path, file: str, content: str, text: str
) -> None:
    run = shutil.copytree(example.run, tmp_path / "run")
    (run / file).write_text(content)
    with pytest.raises(DataError, match=re.escape(text)):
        read_run(run)


def test_a_folder_that_is_no_run_fails_clearly(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"RUN must be a folder with log.jsonl or config.json, got"):
        read_run(tmp_path)


# --- the page


class Parsed(HTMLParser):
    """What a browser would see: elements with their attributes, and all text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in {"meta", "img", "input"}:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.parametrize("scored", [True, False])
def test_whatever_a_class_or_a_file_is_called_stays_text(
    example: Example, scored_page: Path, tmp_path: Path, scored: bool
) -> None:
    if not scored:
        assert lovasz_embed("report", example.run, "--out", tmp_path / "page.html")[0] == 0
    page = (scored_page if scored else tmp_path / "page.html").read_text(encoding="utf-8")
    parsed = Parsed(page)
    assert parsed.open == []  # every element is closed where it should be
    names = [name for name, _ in parsed.elements]
    assert names.count("script") == names.count("style") == 1
    assert not [key for _, attributes in parsed.elements for key in attributes if key.startswith("on")]
    sources = [attributes["src"] or "" for name, attributes in parsed.elements if "src" in attributes]
    assert len(sources) == (6 if scored else 0)  # the best and the worst picture, three times each
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert not re.search(r"https?:|//[a-z]", page.replace("data:image/png;base64,", ""))
    assert HOSTILE in parsed.text
    assert "run <b>" in parsed.text
    assert (f"{FILE}0" in parsed.text) == scored
    assert "\x00" not in page


def test_the_policy_allows_the_pages_own_style_and_script_alone(scored_page: Path) -> None:
    page = scored_page.read_text(encoding="utf-8")
    [policy] = [
        a["content"] or "" for _, a in Parsed(page).elements if a.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policy.startswith("default-src 'none'; img-src data:;")
    for name in ("style", "script"):
        [content] = re.findall(rf"<{name}>(.*?)</{name}>", page, flags=re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{name}-src 'sha256-{digest}'" in policy
    assert ' style="' not in page  # the policy would drop it


def test_the_page_holds_curves_options_and_commands(example: Example, scored_page: Path) -> None:
    text = Parsed(scored_page.read_text(encoding="utf-8")).text
    for expected in ("Parts of the loss", "Learning rate", "Panoptic quality, %", "cauchy", "2026-01-02", "torch 2"):
        assert expected in text
    assert f"lovasz-embed train --out '{HOSTILE}'" in text
    chosen = text[text.index("Training, as chosen") : text.index("Training, defaults")]
    assert "kernel" in chosen
    assert "momentum" not in chosen


def test_the_json_of_a_report_is_that_of_evaluate(example: Example, tmp_path: Path) -> None:
    options = ["--data", example.data, "--json"]
    code, stdout, stderr = lovasz_embed("report", example.run, *options, "--out", tmp_path / "page.html")
    assert code == 0, stderr
    record = json.loads(stdout)
    assert record.pop("report") == str(tmp_path / "page.html")
    assert record.pop("bytes") == (tmp_path / "page.html").stat().st_size
    scores = json.loads(lovasz_embed("evaluate", example.run, *options)[1])
    assert record.pop("seconds") > 0
    assert scores.pop("seconds") > 0
    assert scores.pop("failed") == []
    assert record == scores


def test_a_class_without_a_segment_is_named_apart() -> None:
    maps = torch.zeros(1, 4, 4, dtype=torch.long)
    result = PanopticResult.from_maps(maps, maps, things=())
    scored = score_pictures([result], [result], ["a"], classes=2, things=(), keep=0)
    evaluation = Evaluation("here", scored, Palette.of(("floor", "cup"), things=()), {})
    text = Parsed(render(RunRecord("r"), evaluation, made={"command": "c"})).text
    assert "1 class occurs nowherecup" in text


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("{run}", "--out", "{tmp}/page.txt"), "--out must end in .html, got"),
        (("{run}", "--out", "{tmp}/nope/page.html"), "--out must lie in a folder that exists, got"),
        (("{run}", "--split", "val"), "--format and --split must come with --data, got"),
        (("{tmp}",), "RUN must be a folder with log.jsonl or config.json, got"),
        (("{run}", "--data", "{tmp}/nope"), "nope must be a folder with annotations/, got nothing there"),
        (("{run}", "--data", "{data}", "--device", "moon"), "--device must be a device that torch can use here"),
        (("{run}", "--pictures", "-1"), "Invalid value for '--pictures'"),
    ],
)
def test_a_mistake_is_refused_in_one_line_and_the_old_page_stays(
    example: Example, scored_page: Path, tmp_path: Path, arguments: tuple[str, ...], text: str
) -> None:
    before = scored_page.read_bytes()
    places = {"run": example.run, "data": example.data, "tmp": tmp_path}
    code, stdout, stderr = lovasz_embed("report", *(word.format(**places) for word in arguments))
    assert (code, stdout, stderr.count("\n")) == (2, "", 1), stderr
    assert stderr.startswith("error: ")
    assert text in stderr
    assert scored_page.read_bytes() == before
    assert list(tmp_path.iterdir()) == []


# --- scores while it trains


def test_scoring_sees_class_means_and_leaves_the_weights_alone(tmp_path: Path) -> None:
    labels = np.arange(32 * 32).reshape(32, 32) % 2
    stripes = Sample("stripes", np.uint8(labels * 200)[..., None].repeat(3, 2), labels, labels)
    config = TrainConfig(steps=4, batch=1, crop=16, amp=False, log_every=1, mean_pictures=1, checkpoint_every=2)
    seen: list[bool] = []

    def score(model: PanopticEmbedder) -> dict[str, float]:
        seen.append(not model.training and bool(model.ncm.means.isfinite().all()))
        return {"pq": 0.5}

    def trained(folder: str, **options: Any) -> bytes:
        torch.manual_seed(0)
        model = PanopticEmbedder(ModelConfig(classes=("gap", "stripe"), things=(1,), widths=(4, 8)))
        fit(model, [stripes], config, out=tmp_path / folder, **options)
        return (tmp_path / folder / "model.safetensors").read_bytes()

    assert trained("plain") == trained("scored", score=score, score_every=2)
    checkpoints = [torch.load(tmp_path / name / "checkpoint.pt", weights_only=True) for name in ("plain", "scored")]
    plain, scored = (content["model"] for content in checkpoints)
    assert all(torch.equal(plain[name], scored[name]) for name in plain)
    assert seen == [True, True]  # after step 2, and with the final class means after step 4
    records = [json.loads(line) for line in (tmp_path / "scored" / "scores.jsonl").read_text().splitlines()]
    assert [(record["step"], record["pq"]) for record in records] == [(2, 0.5), (4, 0.5)]
    assert not (tmp_path / "plain" / "scores.jsonl").exists()


# --- in a browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is absent: pip install selenium")
    from selenium.webdriver.chrome.service import Service

    programs = [shutil.which(name) for name in ("chromium", "chromedriver")]
    if None in programs:
        pytest.skip("chromium or chromedriver is absent: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = programs[0]
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(programs[1]))
    yield driver
    driver.quit()


def open_at(browser: Any, page: Path, width: int) -> None:
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get(page.as_uri())


@pytest.mark.parametrize("width", [1280, 390])
def test_a_browser_shows_it_whole_and_asks_nothing_of_a_network(browser: Any, scored_page: Path, width: int) -> None:
    browser.get_log("performance")
    open_at(browser, scored_page, width)
    # Pictures further down wait until they are near: ask for all of them, and wait until they are there.
    loaded = "const images = [...document.images]; images.forEach((i) => { i.loading = 'eager'; });"
    loaded += "Promise.all(images.map((i) => i.decode())).then(() => arguments[0](images.map((i) => i.naturalWidth)));"
    assert browser.execute_async_script(loaded) == [480] * 6
    assert browser.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
    assert [url for url in asked if not url.startswith("data:")] == [scored_page.as_uri()]
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    assert browser.execute_script("return document.querySelectorAll('script').length") == 1


def test_a_click_sorts_and_another_sorts_the_other_way(browser: Any, scored_page: Path) -> None:
    open_at(browser, scored_page, 1280)
    table = browser.find_element("css selector", "#classes ~ .frame table")
    [title] = [cell for cell in table.find_elements("css selector", "thead button") if cell.text.startswith("class")]
    read = "return [...arguments[0].tBodies[0].rows].map((row) => row.cells[0].textContent)"
    names = browser.execute_script(read, table)
    assert len(names) == 3
    orders = []
    for _ in range(2):
        title.click()
        order = browser.execute_script(read, table)
        orders.append((title.find_element("xpath", "..").get_attribute("aria-sort"), order))
    (first, ascending), (second, descending) = orders
    assert (first, second) == ("ascending", "descending")
    assert ascending == descending[::-1]
    assert sorted(ascending) == sorted(names)
    [counts] = [cell for cell in table.find_elements("css selector", "thead button") if cell.text.startswith("FN")]
    counts.send_keys("\n")  # by keyboard as well
    read = "return [...arguments[0].tBodies[0].rows].map((row) => Number(row.cells[8].dataset.value))"
    missed = browser.execute_script(read, table)
    assert missed == sorted(missed, reverse=True)


def test_the_slider_moves_through_all_curves_by_keyboard(browser: Any, scored_page: Path) -> None:
    open_at(browser, scored_page, 1280)
    slider = browser.find_element("css selector", ".cursor-at input")
    values = "return [...document.querySelectorAll('.legend b')].map((value) => value.textContent)"
    at_the_end = browser.execute_script(values)
    slider.send_keys("\ue011")  # Home
    assert browser.find_element("css selector", ".cursor-at output").text == "0"
    at_the_start = browser.execute_script(values)
    assert at_the_start != at_the_end
    assert "2" in at_the_start  # the loss of the first logged step
