"""The script for several GPUs, as its page prints it, on two processes of a CPU."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import lovasz_embed as le
from lovasz_embed.cli._run import load_run
from tests.street_folders import scenes, write_dataset


@pytest.mark.slow
def test_the_script_of_the_page_trains_on_two_processes(tmp_path: Path) -> None:
    page = Path(__file__).resolve().parents[1] / "docs" / "datasets" / "several-gpus.md"
    if not page.is_file():
        pytest.skip("docs/datasets is absent: run the tests from a checkout")
    [script] = re.findall(r"```python\n(# train_street\.py.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "train_street.py").write_text(script)
    pairs = list(scenes("cityscapes", 5))  # an odd number: one process runs out of pictures first
    write_dataset(tmp_path / "data", "cityscapes", [truth for _, truth in pairs], images=[image for image, _ in pairs])
    options = ["--steps", "5", "--crop", "64", "--batch", "2", "--workers", "1"]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["train_street.py", "data", "cityscapes", "run", *options]
    package = Path(le.__file__).resolve().parents[1]
    environment = {**os.environ, "PYTHONPATH": str(package), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    answer = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)
    assert answer.returncode == 0, answer.stderr
    assert "step 0: loss" in answer.stdout
    # Every pixel of every picture once: neither twice for a padded round, nor those of one process alone.
    assert f"class means of {5 * 32 * 36} pixels; wrote run" in answer.stdout
    record, model = load_run(tmp_path / "run", "cpu")
    assert record.format == "cityscapes"
    assert model.config.things == tuple(range(11, 19))
