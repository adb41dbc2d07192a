"""The command line around its verbs: help, completion, exit codes, one line for whatever was mistyped."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import torch
import typer.main
from PIL import Image

import lovasz_embed
from lovasz_embed.cli import _options, app
from lovasz_embed.cli._examples import EXAMPLES
from lovasz_embed.formats import FORMATS, write_instance_map

ROOT = Path(__file__).resolve().parents[1]
COMMAND = f"{shlex.quote(sys.executable)} -m lovasz_embed"
VERBS = sorted(typer.main.get_group(app).commands)


def run(*arguments: object) -> tuple[int, str, str]:
    """Run the command in this process: exit code, stdout, stderr."""
    code, stdout, stderr = 0, StringIO(), StringIO()
    with redirect_stdout(stdout), redirect_stderr(stderr):
        try:
            app([str(argument) for argument in arguments], prog_name="lovasz-embed")
        except SystemExit as end:
            code = int(end.code or 0)
    return code, stdout.getvalue(), stderr.getvalue()


# --- help


@pytest.mark.parametrize("verb", VERBS)
def test_help_ends_with_commands_that_parse(verb: str) -> None:
    _, help_text, _ = run(verb, "--help")
    group = typer.main.get_group(app)
    for example in EXAMPLES[verb]:
        assert example.split()[:3] == ["lovasz-embed", verb, *example.split()[2:3]]
        assert " ".join(example.split()) in " ".join(help_text.split())
        command = group.commands[verb]
        arguments = shlex.split(example.partition("|")[0])[2:]
        command.make_context(verb, arguments)  # raises where an option does not exist


def test_every_example_is_of_a_verb() -> None:
    assert set(EXAMPLES) - {"export"} <= set(VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_answers_a_program(verb: str) -> None:
    assert any("--json" in parameter.opts for parameter in typer.main.get_group(app).commands[verb].params)


def test_the_version_is_told() -> None:
    assert run("--version") == (0, f"lovasz-embed {lovasz_embed.__version__}\n", "")


def test_the_bare_command_shows_what_there_is() -> None:
    code, stdout, _ = run()
    assert code == 2
    assert all(verb in stdout for verb in VERBS)


# --- exit codes


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ("trian", "No such command 'trian'"),
        ("train", "Missing option '--data'. See lovasz-embed train --help"),
        ("evaluate --moon", "No such option: --moon"),
        ("demo --scenes 0", "Invalid value for '--scenes'"),
        ("info a b", "unexpected extra argument"),
    ],
)
def test_what_is_mistyped_is_told_in_one_line(arguments: str, text: str) -> None:
    code, stdout, stderr = run(*arguments.split())
    assert (code, stdout, stderr.count("\n")) == (2, "", 1), stderr
    assert stderr.startswith("error: ")
    assert text in stderr


def failing(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `info` raise."""

    def fail() -> None:
        raise error

    monkeypatch.setattr(sys.modules["lovasz_embed.cli.info"], "_environment", fail)


def test_an_interrupt_ends_as_a_shell_expects(monkeypatch: pytest.MonkeyPatch) -> None:
    failing(KeyboardInterrupt(), monkeypatch)
    assert run("info")[0] == 130


@pytest.mark.parametrize("error", [MemoryError("a lot"), torch.cuda.OutOfMemoryError("a lot")])
def test_no_memory_left_is_told_in_one_line(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    failing(error, monkeypatch)
    code, stdout, stderr = run("info")
    assert (code, stdout) == (1, "")
    assert stderr == "error: out of memory (a lot). Use smaller pictures, or a smaller --batch or --crop.\n"


def test_a_fault_of_ours_keeps_its_traceback_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    failing(KeyError("ours"), monkeypatch)
    with pytest.raises(KeyError) as fault:
        run("info")
    assert "please report it" in fault.value.__notes__[0]


@pytest.mark.slow
def test_a_fault_of_ours_ends_with_exit_code_1() -> None:
    code = "import sys; from lovasz_embed.cli import app; "
    code += "sys.modules['lovasz_embed.cli.info']._environment = lambda: 1 / 0; app(['info'])"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert answer.returncode == 1
    assert answer.stderr.startswith("Traceback")
    assert "fault of lovasz-embed" in answer.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    "command",
    [
        "lovasz-embed info --json",
        pytest.param("lovasz-embed --help", marks=pytest.mark.slow),
        pytest.param("lovasz-embed info 2>&1", marks=pytest.mark.slow),
    ],
)
def test_a_broken_pipe_leaves_no_traceback(command: str) -> None:
    # The reader ends long before the first byte is written: the import alone takes a second.
    answer = subprocess.run(
        ["bash", "-c", f"{command} | true; exit ${{PIPESTATUS[0]}}".replace("lovasz-embed", COMMAND)],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert "Traceback" not in answer.stderr
    assert "BrokenPipe" not in answer.stderr
    assert answer.returncode == 1


# --- completion


@pytest.fixture
def cells(tmp_path: Path) -> Path:
    """A data set with two splits."""
    (tmp_path / "images").mkdir()
    for name in ("a", "b"):
        Image.new("L", (3, 2)).save(tmp_path / "images" / f"{name}.png")
        write_instance_map(tmp_path / "labels" / f"{name}.png", np.ones((2, 3), int))
    (tmp_path / "index.json").write_text('[{"name": "a", "split": "train"}, {"name": "b", "split": "val"}]')
    return tmp_path


@pytest.fixture
def completed(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], list[str]]:
    """What the tab key offers after some words, the last of which is being typed."""

    def ask(words: str) -> list[str]:
        monkeypatch.setenv("_LOVASZ_EMBED_COMPLETE", "complete_bash")
        monkeypatch.setenv("COMP_WORDS", words)
        monkeypatch.setenv("COMP_CWORD", str(len(shlex.split(words + "x")) - 1))
        code, stdout, stderr = run()
        assert (code, stderr) == (0, "")
        return stdout.split()

    return ask


def test_the_tab_key_completes_verbs_formats_and_splits(cells: Path, completed: Callable[[str], list[str]]) -> None:
    assert completed("lovasz-embed ev") == ["evaluate"]
    assert completed("lovasz-embed train --format ") == list(FORMATS)
    assert completed("lovasz-embed train --format kitti-") == ["kitti-step"]
    assert completed(f"lovasz-embed evaluate RUN --data {cells} --split ") == ["train", "val"]
    assert completed("lovasz-embed report RUN --device cp") == ["cpu"]


def test_splits_are_those_of_the_data_set_that_was_typed(cells: Path) -> None:
    command = typer.main.get_group(app).commands["evaluate"]

    def splits(*arguments: str, incomplete: str = "") -> list[str]:
        context = command.make_context("evaluate", list(arguments), resilient_parsing=True)
        return _options.complete_split(context, incomplete)

    assert splits("--data", str(cells)) == ["train", "val"]
    assert splits("--data", str(cells), incomplete="v") == ["val"]
    assert splits("--data", str(cells), "--format", "coco-panoptic") == []
    assert splits("--data", str(cells / "nope")) == []
    assert splits() == []


def test_devices_are_those_of_this_machine() -> None:
    assert _options.complete_device("") == list(_options._devices())
    assert "cpu" in _options.complete_device("c")
    assert _options.complete_device("moon") == []
