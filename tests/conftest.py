"""What all tests share: hypothesis profiles, the folder of real pictures, a fixed seed."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch
from hypothesis import settings

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read where a kernel is defined: before any import of one

settings.register_profile("ci", derandomize=True, deadline=None, max_examples=50)
settings.register_profile("dev", deadline=None, max_examples=200)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The real pictures beside the checkout; tests that ask for them skip where they are absent."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("LOVASZ_EMBED_DATA", default))
    if not folder.is_dir():
        pytest.skip("shared/data is absent: set LOVASZ_EMBED_DATA to the folder of real pictures")
    return folder


# A shell lets what it starts in the background ignore Ctrl-C, which tests send, and every process below inherits that.
signal.signal(signal.SIGINT, signal.default_int_handler)
