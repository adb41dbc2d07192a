"""A run on disk: the model, and which data set it was trained on."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from lovasz_embed import _check
from lovasz_embed._atomic import write_atomically
from lovasz_embed.formats import FORMATS, Category, DataError, PanopticDataset, dataset_splits, open_dataset
from lovasz_embed.formats._files import read_json
from lovasz_embed.model import PanopticEmbedder
from lovasz_embed.report._run import DATASET
from lovasz_embed.weights import weights_folder


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
            remedy = "Give the --out of a `lovasz-embed train` that ran to its end."
            raise DataError(_check.message("RUN", f"be a folder with {DATASET}", str(run), remedy))
        fields = {"id": int, "name": str, "is_thing": bool, "supercategory": str}
        try:
            values = read_json(path)
            _check.one_of("format", values["format"], tuple(FORMATS))
            categories = tuple(Category(**category) for category in values["categories"])
            for category in categories:
                for name, kind in fields.items():
                    if type(getattr(category, name)) is not kind:
                        raise TypeError(_check.message(f"{name} of a category", f"be {kind.__name__}", category))
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(_check.message(str(path), "be what `train` wrote", repr(error))) from error
        return cls(values["format"], categories)


def run_folder(run: Path | None, weights: str | None) -> Path:
    """Return the folder of a run, or of weights that come with the package: one of the two is given."""
    if run is not None and weights is None:
        return run
    if run is None and weights is not None:
        return weights_folder(weights)
    got = "neither" if run is None else "both"
    raise ValueError(_check.message("the model", "be given either as RUN or by --weights", got))


def load_run(run: Path, device: str) -> tuple[DatasetRecord, PanopticEmbedder]:
    """Read a run, its model on a device."""
    record = DatasetRecord.load(run)
    model = PanopticEmbedder.from_pretrained(run)
    names = tuple(category.name for category in record.categories)
    if names != model.config.classes:
        rule = f"list the {len(model.config.classes)} classes of config.json beside it"
        raise DataError(_check.message(str(run / DATASET), rule, f"{len(names)} other ones"))
    return record, model.to(usable_device(device))


def usable_device(name: str) -> torch.device:
    """Return a device on which tensors can be made."""
    try:
        return torch.empty(0, device=name).device
    # Torch raises AssertionError where it was built without a kind of device, RuntimeError for the rest.
    except (RuntimeError, AssertionError) as error:
        got = f"{name!r} ({str(error).splitlines()[0]})"
        raise ValueError(_check.message("--device", "be a device that torch can use here", got)) from error


def open_split(data: Path, format: str, split: str | None, preferred: str) -> PanopticDataset:
    """Open a data set; without a split named, the preferred one if there is such, else the only one.

    A split is preferred by its name or its beginning: `val2017` is a `val`.
    """
    if split is None:
        splits = dataset_splits(data, format=format)
        fitting = [preferred] if preferred in splits else [name for name in splits if name.startswith(preferred)]
        # Several fit: the data set's own error names them. None fits: it opens the only split there is.
        split = fitting[0] if len(fitting) == 1 else preferred if fitting else None
    return open_dataset(data, format=format, split=split)


def check_categories(dataset: PanopticDataset, record: DatasetRecord) -> None:
    """Refuse a data set whose categories are not those of the run."""
    ours = [(category.id, category.name, category.is_thing) for category in record.categories]
    theirs = [(category.id, category.name, category.is_thing) for category in dataset.categories]
    if ours != theirs:
        rule = f"have the {len(ours)} categories of the run"
        lacking = ", ".join(name for _, name, _ in sorted(set(ours) - set(theirs))[:3])
        foreign = ", ".join(name for _, name, _ in sorted(set(theirs) - set(ours))[:3])
        got = f"{len(theirs)}; of the run only: {lacking or 'none'}; of the data set only: {foreign or 'none'}"
        raise DataError(_check.message("the data set", rule, got))
