"""A run on disk: the model, and which data set it was trained on."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from lovasz_embed import _check
from lovasz_embed._atomic import write_atomically
from lovasz_embed.formats import Category, DataError, PanopticDataset, dataset_splits, open_dataset

DATASET = "dataset.json"


@dataclass(frozen=True)
class DatasetRecord:
    """What a run remembers of its data set.

    Attributes:
        format: As in `open_dataset`.
        categories: In the order of the model's classes.
    """

    format: str
    categories: tuple[Category, ...]

    def save(self, run: Path) -> None:
        """Write `dataset.json` into the folder of a run."""
        write_atomically(run / DATASET, (json.dumps(asdict(self), indent=2) + "\n").encode())

    @classmethod
    def load(cls, run: Path) -> DatasetRecord:
        """Read what `save` wrote."""
        path = run / DATASET
        if not path.is_file():
            remedy = "Give the folder that `lovasz-embed train --out` wrote."
            raise DataError(_check.message("RUN", f"be a folder with {DATASET}", str(run), remedy))
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            return cls(values["format"], tuple(Category(**category) for category in values["categories"]))
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(_check.message(str(path), "be what `train` wrote", repr(error))) from error


def open_split(data: Path, format: str, split: str | None, preferred: str) -> PanopticDataset:
    """Open a data set; without a split named, the preferred one if there is such, else the only one."""
    if split is None:
        splits = dataset_splits(data, format=format)
        split = preferred if any(name.startswith(preferred) for name in splits) else None
    return open_dataset(data, format=format, split=split)


def check_categories(dataset: PanopticDataset, record: DatasetRecord) -> None:
    """Refuse a data set whose categories are not those of the run."""
    ours = [(category.id, category.name) for category in record.categories]
    theirs = [(category.id, category.name) for category in dataset.categories]
    if ours != theirs:
        different = sorted(set(theirs) ^ set(ours))[:3] or "another order"
        rule = f"have the {len(ours)} categories of the run"
        raise DataError(_check.message("the data set", rule, f"{len(theirs)}, different: {different}"))
