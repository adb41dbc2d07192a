"""Several processes equal one, end together when one of them dies, and go on after a restart."""

from __future__ import annotations

import json
import math
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from typer.testing import CliRunner

import lovasz_embed as le
from lovasz_embed.cli import app
from lovasz_embed.cli._distributed import SECONDS, TIMEOUT, _meet, gathered, processes
from lovasz_embed.training import TrainConfig, View, whole
from lovasz_embed.training._batches import Batches
from lovasz_embed.training._loss import followed
from lovasz_embed.training._ranks import Ranks
from lovasz_embed.training._run import Run, embed
from lovasz_embed.training.fit import fit_class_means
from tests import distributed_worker as worker
from tests.street_folders import picture_folder, scenes, write_dataset

WORKER = Path(worker.__file__)
PATIENCE = 400  # seconds for what takes ten: other work may run beside it
ALONE = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def environment(**more: str) -> dict[str, str]:
    package = Path(le.__file__).resolve().parents[1]
    base = {name: value for name, value in os.environ.items() if name not in ALONE}
    return {**base, "PYTHONPATH": str(package), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **more}


def torchrun(count: int, *arguments: str, restarts: int = 0) -> list[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    return [*launcher, "--max-restarts", str(restarts), *arguments]


# --- In this process


@pytest.fixture
def alone() -> Iterator[None]:
    """A group of this process only."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_a_local_quality_counts_without_the_others_and_gathers_once(alone: None) -> None:
    given = worker.data()
    both = worker.summed(given, [range(0, 5), range(5, 7)])
    assert int(both["counts"][0].sum()) > 0
    assert torch.equal(both["counts"], both["gathered"])


def test_gathering_what_is_summed_already_fails_clearly() -> None:
    with pytest.raises(ValueError, match=r"local must be True to gather, got False\. Without local, update adds up"):
        le.PanopticQuality(2, {1}).gather()
    with pytest.raises(TypeError, match="local must be True or False, got 1"):
        le.PanopticQuality(2, {1}, local=1)  # type: ignore[arg-type]
    assert repr(le.PanopticQuality(2, {1}, local=True)) == "PanopticQuality(num_classes=2, things=[1], local=True)"


def test_a_command_that_nobody_launched_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ALONE:
        monkeypatch.delenv(name, raising=False)
    with processes("cuda:1") as (ranks, device):
        assert (ranks.number, ranks.count, device) == (0, 1, "cuda:1")
        assert not dist.is_initialized()
        assert gathered(ranks, [["a", "b"]]) == [["a", "b"]]


@pytest.mark.parametrize("text", ["soon", "0", "-3", "nan", "inf"])
def test_a_timeout_that_is_none_fails_clearly(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    launched(monkeypatch)
    monkeypatch.setenv(TIMEOUT, text)
    with pytest.raises(ValueError, match=f"{TIMEOUT} must be seconds above 0, got '{text}'"), processes("cpu"):
        pass


def test_one_gpu_for_several_processes_fails_clearly(monkeypatch: pytest.MonkeyPatch) -> None:
    launched(monkeypatch)
    text = r"--device must be cpu or cuda for several processes, got cuda:0\. The launcher gives each process"
    with pytest.raises(ValueError, match=text), processes("cuda:0"):
        pass


@pytest.mark.parametrize("start", ["0", "3"])
def test_each_start_has_names_of_its_own_in_the_launchers_store(monkeypatch: pytest.MonkeyPatch, start: str) -> None:
    """PyTorch 2.13's torchrun keeps the store, and with it the addresses of the processes that died."""
    server = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=5))
    values = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(server.port)}
    values |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": start}
    for name, value in values.items():
        monkeypatch.setenv(name, value)

    def meet(backend: str, *, store: dist.Store, rank: int, world_size: int, timeout: Any) -> None:
        store.set("address", "here")

    monkeypatch.setattr(dist, "init_process_group", meet)
    _meet("gloo", timedelta(seconds=20))
    assert server.get(f"start {start}/address") == b"here"


def launched(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "2"), ("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", "1")):
        monkeypatch.setenv(name, value)


# --- Several processes equal one


@pytest.mark.parametrize(
    "ranks",
    [
        pytest.param(1, marks=pytest.mark.reliability),
        pytest.param(2, marks=pytest.mark.slow),
        pytest.param(4, marks=pytest.mark.slow),
    ],
)
def test_several_processes_equal_one(tmp_path: Path, ranks: int) -> None:
    """Parts are uneven: of four processes one has no picture, one void alone, one nothing that is a thing."""
    answer = subprocess.run(
        torchrun(ranks, str(WORKER), "same", str(tmp_path)),
        capture_output=True,
        text=True,
        env=environment(),
        check=False,
    )
    assert answer.returncode == 0, answer.stderr
    found = [torch.load(tmp_path / f"{ranks}-{rank}.pt") for rank in range(ranks)]
    given = worker.data()
    alone = worker.losses(given, range(0, 5), None)
    sums = worker.summed(given, [range(0, 5), range(5, 7)])
    for one in found:
        for name, (loss, gradient) in one["losses"].items():
            # Binned losses add up counts; of the float64 sums of exact errors only the order differs.
            torch.testing.assert_close(loss, alone[name][0], rtol=1e-12, atol=0)
            torch.testing.assert_close(gradient, alone[name][1], rtol=1e-12, atol=1e-15)
        for name in ("pixels", "counts", "gathered"):
            assert torch.equal(one["summed"][name], sums[name]), name
        # 336 pixels of at most 4 units: n eps of the sum of sizes, in float64, bounds any order of summation.
        assert float((one["summed"]["sums"] - sums["sums"]).abs().max()) <= 336 * 336 * 4 * 2.0**-53
        for name in ("step", "trained"):
            assert all(torch.equal(one[name][key], found[0][name][key]) for key in one[name] if key != "gradient")
    compare(found[0]["step"], averaged(ranks, replace(worker.FIT, steps=1)), gradient=1e-5)
    compare(found[0]["trained"], averaged(ranks, worker.FIT), gradient=1e-4)


def compare(found: dict[str, Tensor], expected: dict[str, Tensor], *, gradient: float) -> None:
    """Assert that training went the same way, as far as sums of float32 in another order let it.

    Compared is the gradient after the last step, by its norm, and not the weights: AdamW divides by the gradient's
    size, so that a bias whose gradient is nothing but rounding goes full steps, in a direction that rounding decides.
    """
    start = worker.model().state_dict()
    names = [name for name in start if not name.startswith("ncm.")]
    assert distance(expected, start, names) > 0.01  # it did go
    assert distance(found, expected, ["gradient"]) <= gradient * float(expected["gradient"].norm())
    assert torch.equal(found["ncm.counts"], expected["ncm.counts"])


def distance(left: dict[str, Tensor], right: dict[str, Tensor], names: list[str]) -> float:
    return math.sqrt(sum(float((left[name].double() - right[name].double()).square().sum()) for name in names))


def averaged(ranks: int, config: TrainConfig) -> dict[str, Tensor]:
    """Train in one process, as several do by definition: on the mean of the losses of the parts of each batch."""
    network = worker.model().train()
    run = Run(network, config, Ranks())
    streams = [Batches(worker.samples(), config, 2, share(number, ranks)) for number in range(ranks)]
    for step in range(config.steps):
        run._set_rate()
        parts = [stream[step] for stream in streams]
        embeddings = [embed(network, part.picture, amp=False) for part in parts]
        batch = View(*map(torch.cat, zip(*parts, strict=True)))
        run.running = followed(run.running, torch.cat(embeddings).detach(), batch.semantic, config.momentum, Ranks())
        losses = [
            run.loss(embedding, network.levels(*part[1:]), run.running).loss
            for embedding, part in zip(embeddings, parts, strict=True)
        ]
        run.optimiser.zero_grad()
        torch.stack(losses).mean().backward()
        nn.utils.clip_grad_norm_(network.parameters(), config.clip)
        run.optimiser.step()
        run.step += 1
    fit_class_means(network, map(whole, worker.samples()), amp=False)
    return worker.trained(network)


def share(number: int, count: int) -> Ranks:
    ranks = Ranks()
    ranks.number, ranks.count = number, count
    return ranks


# --- The command line under torchrun

TRAIN = ["--format", "cityscapes", "--steps", "6", "--batch", "4", "--crop", "32", "--minutes", "0"]


@pytest.fixture(scope="module")
def streets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("streets")
    pairs = list(scenes("cityscapes", 7))
    for split, count in (("train", 7), ("val", 3)):
        truths, images = [truth for _, truth in pairs[:count]], [image for image, _ in pairs[:count]]
        write_dataset(folder / "data", "cityscapes", truths, split, images=images)
    return folder


@pytest.mark.slow
def test_a_restart_goes_on_from_the_checkpoint_and_ends_with_the_same_weights(streets: Path) -> None:
    """With three processes, for a sum of two has one order only."""
    running = {
        name: training(streets, name, 3, when, restarts, "--batch", "3")
        for name, when, restarts in (("whole", "", 0), ("killed", "0:1:5", 1))
    }
    for process in running.values():
        error = process.communicate(timeout=PATIENCE)[1]
        assert process.returncode == 0, error
    weights = [(streets / name / "model.safetensors").read_bytes() for name in running]
    assert weights[0] == weights[1]
    steps = [tuple(map(int, line.split())) for line in (streets / "killed.steps").read_text().splitlines()]
    assert [step for start, step in steps if start == 1] == [5, 6]  # after the checkpoint of step 4


def training(streets: Path, name: str, ranks: int, when: str, restarts: int, *more: str) -> subprocess.Popen[str]:
    """Start a training under torchrun, some of whose processes are killed."""
    arguments = ["train", "--data", str(streets / "data"), "--out", str(streets / name), "--resume", *TRAIN, *more]
    command = torchrun(ranks, str(WORKER), "kill", when, *arguments, restarts=restarts)
    steps = environment(STEPS=str(streets / f"{name}.steps"))
    return subprocess.Popen(command, env=steps, stderr=subprocess.PIPE, text=True)


@pytest.mark.reliability
@pytest.mark.parametrize("ranks", [2, 4])
def test_many_restarts_end_with_the_same_weights(streets: Path, ranks: int) -> None:
    """Processes are killed at random steps, the one that writes as well."""
    rng = random.Random(0)
    kills = [f"{start}:{rng.randrange(ranks)}:{2 * start + rng.randrange(3, 5)}" for start in range(10)]
    weights = []
    for name, when, restarts in (("whole", "", 0), ("killed", ",".join(kills), len(kills))):
        process = training(streets, f"many-{name}-{ranks}", ranks, when, restarts, "--steps", "30")
        error = process.communicate(timeout=3600)[1]
        assert process.returncode == 0, error
        weights.append((streets / f"many-{name}-{ranks}" / "model.safetensors").read_bytes())
    assert weights[0] == weights[1]
    starts = {line.split()[0] for line in (streets / f"many-killed-{ranks}.steps").read_text().splitlines()}
    assert len(starts) == len(kills) + 1


@pytest.mark.slow
def test_four_processes_score_as_one_does(streets: Path) -> None:
    """Three pictures, one of them damaged: one process has none, one has nothing that can be read."""
    run = streets / "whole"
    if not run.is_dir():
        pytest.skip("needs the run of the test before")
    damaged = sorted(picture_folder(streets / "data", "cityscapes", "val").rglob("*.png"))[1]
    damaged.write_bytes(damaged.read_bytes()[:60])
    arguments = ["evaluate", str(run), "--data", str(streets / "data"), "--json"]
    alone = CliRunner().invoke(app, arguments)
    together = subprocess.run(
        torchrun(4, "-m", "lovasz_embed", *arguments), capture_output=True, text=True, env=environment(), check=False
    )
    expected, found = json.loads(alone.stdout.splitlines()[-1]), json.loads(together.stdout)
    assert alone.exit_code == 1
    assert together.returncode == 1
    assert found["pictures"] == 2
    assert [failure["picture"] for failure in found["failed"]] == [damaged.stem.removesuffix("_leftImg8bit")] or found[
        "failed"
    ] == expected["failed"]
    assert {**found, "seconds": 0} == {**expected, "seconds": 0}
    assert together.stderr.count("1 of 3 pictures failed") == 1


# --- One that dies


@pytest.mark.parametrize(
    "ways",
    [
        pytest.param(("kill", "raise"), marks=pytest.mark.slow),
        pytest.param(("stop",), marks=pytest.mark.reliability),  # waits for the timeout
    ],
)
def test_the_others_end_with_a_clear_error_when_one_dies_fails_or_hangs(streets: Path, ways: tuple[str, ...]) -> None:
    pairs = {how: pair(streets, how) for how in ways}
    try:
        for how, (first, last) in pairs.items():
            ends_clearly(how, first, last)
    finally:
        for process in (process for both in pairs.values() for process in both):
            process.kill()
            process.communicate()


def ends_clearly(how: str, first: subprocess.Popen[str], last: subprocess.Popen[str]) -> None:
    """Assert that of two processes the first says that the last one has gone."""
    if how != "stop":
        last.wait(timeout=PATIENCE)
    began = time.perf_counter()
    error = first.communicate(timeout=PATIENCE)[1]
    assert first.returncode == 2, (how, error)
    assert "error: process 0: every process must answer the others, got" in " ".join(error.split()), (how, error)
    if how == "stop":
        assert last.poll() is None  # silent, and still there
        return
    # Of a process that has gone the system tells at once; 2 s on a busy machine, far below the timeout of 200 s.
    assert time.perf_counter() - began < 60, how
    rest = last.communicate(timeout=PATIENCE)[1]
    assert last.returncode == (-signal.SIGKILL if how == "kill" else 2)
    assert how == "kill" or "error: process 1: picture 7 must be readable, got damage" in rest


def pair(streets: Path, how: str) -> list[subprocess.Popen[str]]:
    """Start two processes that train together, the second of which meets its end; nobody looks after them."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    arguments = [sys.executable, str(WORKER), how, "0:1:2", "train", "--data", str(streets / "data")]
    arguments += ["--out", str(streets / f"end-{how}"), *TRAIN]
    here = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "STEPS": str(streets / f"{how}.steps")}
    return [
        subprocess.Popen(
            arguments,
            env=environment(**here, RANK=str(rank), **{TIMEOUT: "30" if how == "stop" else "200"}),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]


def test_the_timeout_is_what_the_page_says() -> None:
    assert SECONDS == 600
