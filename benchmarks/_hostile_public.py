"""What is public, and what of it is not called by `fuzz_calls.py`, and why: a new name is called or named here."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import inspect
from collections.abc import Iterator
from types import ModuleType

MODULES = (
    "clustering", "export", "formats", "hierarchy", "lovasz", "model", "panoptic", "prototypes", "quality", "report",
    "synthetic", "tracking", "training", "visualise", "weights",
)  # fmt: skip

_READS = "reads files: benchmarks/fuzz_files.py"
EXEMPT = {
    "CocoPanoptic": _READS,
    "Cityscapes": _READS,
    "Clip": _READS,
    "ClipDataset": _READS,
    "ExportedModel": "reads a file that torch or onnxruntime decodes; its methods are called",
    "InstanceMaps": _READS,
    "Kitti": _READS,
    "KittiStep": _READS,
    "Mots": _READS,
    "PanopticDataset": _READS,
    "PanopticEmbedder.from_pretrained": _READS,
    "Pictures": _READS,
    "ShardStream": _READS,
    "Shards": _READS,
    "TrainConfig.load": _READS,
    "TrainConfig.save": "writes the file that TrainConfig.load reads; its one argument is a path",
    "Vistas": _READS,
    "dataset_splits": _READS,
    "open_dataset": _READS,
    "open_pictures": _READS,
    "read_cityscapes_map": _READS,
    "read_coco_panoptic": _READS,
    "read_instance_map": _READS,
    "read_kitti_step_map": _READS,
    "read_run": _READS,
    "stream_shards": _READS,
    "AdaptedBackbone.train": "is torch.nn.Module.train",
    "Window.inside": "is arithmetic of a record, which checks nothing",
    "Window.widened": "is arithmetic of a record, which checks nothing",
    "match": "is called by Tracker with arrays that it made itself",
}


def public_names() -> set[str]:
    """Return every public callable as the registry writes it: functions, classes, and the methods of classes."""
    names: set[str] = set()
    for module in _modules():
        names |= set(_of_module(module))
    if importlib.util.find_spec("torchmetrics") is not None:
        module = importlib.import_module("lovasz_embed.integrations.torchmetrics")
        names |= {f"torchmetrics.{name}" for name in _of_module(module)}
    return names


def missing(registry: set[str]) -> set[str]:
    """Return the public callables that nobody calls, and that are not exempt."""
    return {name for name in public_names() - registry if not _is_exempt(name)}


def _is_exempt(name: str) -> bool:
    owner = name.partition(".")[0]
    return name in EXEMPT or name.endswith(".extra_repr") or EXEMPT.get(owner) == _READS


def _modules() -> Iterator[ModuleType]:
    yield importlib.import_module("lovasz_embed")
    for name in MODULES:
        yield importlib.import_module(f"lovasz_embed.{name}")


def _of_module(module: ModuleType) -> Iterator[str]:
    listed = getattr(module, "__all__", None)
    if listed is None:  # what is written there
        listed = [n for n, own in vars(module).items() if getattr(own, "__module__", "") == module.__name__]
    for name in listed:
        own = getattr(module, name)
        if name.startswith("_") or not callable(own) or getattr(own, "_is_protocol", False):
            continue
        if inspect.isclass(own):
            if not is_record(own):
                yield name
            yield from (f"{name}.{method}" for method in _methods(own))
        elif inspect.isfunction(own):
            yield name


def is_record(own: type) -> bool:
    """Return whether a class holds what it is given and looks at nothing."""
    if issubclass(own, tuple) and hasattr(own, "_fields"):
        return True
    if issubclass(own, BaseException):
        return True
    return dataclasses.is_dataclass(own) and not hasattr(own, "__post_init__")


def _methods(own: type) -> Iterator[str]:
    for name, value in vars(own).items():
        plain = value.__func__ if isinstance(value, (classmethod, staticmethod)) else value
        if name.startswith("_") or not inspect.isfunction(plain):
            continue
        if own.__module__.startswith("lovasz_embed") and "lovasz_embed" in plain.__module__:
            yield name
