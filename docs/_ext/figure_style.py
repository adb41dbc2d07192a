"""One look for all figures: the style file beside the pages, set before every gallery script."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch

STYLE = Path(__file__).parents[1] / "_static" / "lovasz.mplstyle"


def reset(gallery_conf: dict[str, Any], script: str) -> None:
    """Start a script from the style of these pages, a fixed seed and one thread.

    Threads that wait for each other on a busy machine take many times as long as one: minutes instead of seconds.
    """
    plt.rcdefaults()
    plt.style.use(STYLE)
    torch.manual_seed(0)
    torch.set_num_threads(1)
