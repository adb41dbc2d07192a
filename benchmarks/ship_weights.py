"""Make the weights that come with the package out of a run: half precision, below 2 MB, easy to pack.

    python benchmarks/ship_weights.py RUN nuclei

The card, README.md beside them, is written by hand: its figures are those that `lovasz-embed evaluate --weights NAME`
prints for the written files, not those of the run.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from safetensors.torch import load_file, save

from lovasz_embed._atomic import write_atomically
from lovasz_embed.cli._run import DatasetRecord
from lovasz_embed.model import WEIGHTS, PanopticEmbedder
from lovasz_embed.weights import NAMES, weights_folder

LARGEST = 2_000_000  # bytes


def short_half(values: torch.Tensor) -> torch.Tensor:
    """Return half precision with the mantissa of bfloat16: the three bits that are 0 pack to nothing."""
    bits = values.half().view(torch.int16)
    return ((bits + 4) & ~7).view(torch.float16)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("name", choices=NAMES)
    arguments = parser.parse_args()
    model, record = PanopticEmbedder.from_pretrained(arguments.run), DatasetRecord.load(arguments.run)
    folder = weights_folder(arguments.name)
    model.save_pretrained(folder)
    record.save(folder)
    # The sums behind the class means stay in double precision: they are few.
    rounded = {
        name: short_half(tensor) if tensor.dtype == torch.float32 else tensor
        for name, tensor in load_file(folder / WEIGHTS).items()
    }
    content = save(rounded)
    if len(content) > LARGEST:
        raise SystemExit(f"{WEIGHTS} must be at most {LARGEST} bytes, got {len(content)}. Train narrower widths.")
    write_atomically(folder / WEIGHTS, content)
    print(f"wrote {len(content)} bytes to {folder.name}/{WEIGHTS}")


if __name__ == "__main__":
    main()
