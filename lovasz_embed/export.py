"""A trained model as one file for other programs: network and nearest class mean in a graph, all else beside it."""

from __future__ import annotations

import copy
import importlib
import json
import logging
import os
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lovasz_embed import __version__, _check
from lovasz_embed._atomic import write_atomically
from lovasz_embed.clustering import cluster_embeddings
from lovasz_embed.model import PanopticEmbedder, prepare
from lovasz_embed.model.preparing import PERCENTILES, RANGE
from lovasz_embed.panoptic import PanopticResult, assemble
from lovasz_embed.panoptic._dims import checked_dims, look_at

EXPORTS = ("onnx", "torch-export")
VOID = -1
_KEY = "lovasz_embed"  # of the settings in either file
_OPSET = 18
_LARGEST = 1 << 14  # pixels of a side of the example
_OUTPUTS = ("embedding", "category")


class _Graph(nn.Module):
    """Prepared pictures (B, 3, H, W) to their embedding (B, D, H, W) and categories (B, H, W), -1 = void."""

    middle: Tensor
    weight: Tensor
    bias: Tensor

    def __init__(self, model: PanopticEmbedder) -> None:
        super().__init__()
        self.model = model
        ncm = model.ncm
        means = ncm.means.double()
        present = means.isfinite().all(1)
        # Around the middle of the means, where differences of squares lose no digits to a common offset.
        middle = means[present].median(0).values
        looked_at = torch.zeros(model.config.dims, dtype=torch.float64)
        looked_at[list(model.config.category_dims)] = 1
        shifted = torch.where(present[:, None], (means - middle) * looked_at, 0.0)
        bias = torch.where(present, ncm.offset.double() - shifted.square().sum(1), -torch.inf)
        self.register_buffer("middle", middle.float().view(1, -1, 1, 1))
        self.register_buffer("weight", (2 * shifted).float()[..., None, None])
        self.register_buffer("bias", bias.float())

    def forward(self, picture: Tensor) -> tuple[Tensor, Tensor]:
        """Return embedding and categories."""
        height, width = picture.shape[-2:]
        stride = self.model.strides[-1]
        # Indexing, not padding and slicing: it is the same code for a side that needs none.
        rows, columns = (
            torch.arange((side + stride - 1) // stride * stride, device=picture.device).clamp(max=side - 1)
            for side in (height, width)
        )
        embedding = self.model.embed_padded(picture[:, :, rows][:, :, :, columns], at=(0, 0), of=None)
        rows, columns = (torch.arange(side, device=picture.device) for side in (height, width))
        embedding = embedding[:, :, rows][:, :, :, columns]
        best, category = nn.functional.conv2d(embedding - self.middle, self.weight, self.bias).max(1)
        return embedding, torch.where(best.abs() < torch.inf, category, VOID)


def export_model(
    model: PanopticEmbedder, path: str | os.PathLike[str], *, format: str = "onnx", example: tuple[int, int] = (96, 128)
) -> None:
    """Write network and nearest class mean as one graph, with all that reading its outputs takes.

    The graph maps `picture`, float32 (B, 3, H, W) as `prepare` returns it, to `embedding`, float32 (B, D, H, W), and
    `category`, int64 (B, H, W), -1 = void. Batch, height and width are free; both sides must be larger than the
    coarsest stride. Instances are clustered outside the graph: `ExportedModel` does it.

    Args:
        model: With class means; it stays as it is.
        path: The file to write, whole or not at all.
        format: "onnx", for onnxruntime and others, or "torch-export", for `torch.export.load`.
        example: Height and width of the picture that the graph is traced with; sides beyond twice the stride.

    Raises:
        ValueError: If the format is unknown, or no class mean is known yet.
        ModuleNotFoundError: If onnx or onnxscript is not installed (extra `export`).
        OSError: If the file cannot be written.

    Note:
        Categories are those of `nearest_class_mean` in float32; a pixel as near to two means but for rounding may get
        the other one.

    Example:
        >>> from lovasz_embed.model import ModelConfig
        >>> model = PanopticEmbedder(ModelConfig(classes=("floor", "cup"), things=(1,), widths=(4,)))
        >>> _ = model.ncm.update(torch.rand(1, 8, 4, 4), torch.arange(16).view(1, 4, 4) % 2)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     export_model(model, f"{folder}/model.pt2", format="torch-export")
        ...     exported = ExportedModel(f"{folder}/model.pt2")
        >>> exported.segment(np.zeros((20, 30, 3), np.uint8)).segmentation.shape
        torch.Size([1, 20, 30])
    """
    _check.one_of("format", format, EXPORTS)
    settings = settings_of(model)
    _check.is_path("path", path)
    rule = "be a height and a width in pixels"
    _check.is_sequence("example", example, rule, 2)
    _check.are_numbers("example", example, rule, 2 * model.strides[-1] + 1, _LARGEST)
    path = Path(path)
    if format == "onnx":
        for module in ("onnx", "onnxscript"):
            _need(module)
    graph = _Graph(copy.deepcopy(model).cpu()).eval()
    picture = torch.zeros(2, 3, *example)
    free = torch.export.Dim.DYNAMIC
    sizes = {"picture": {0: free, 2: free, 3: free}}
    with torch.no_grad():
        program = torch.export.export(graph, (picture,), dynamic_shapes=sizes, strict=False)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "model")
        if format == "torch-export":
            torch.export.save(program, file.with_suffix(".pt2"), extra_files={_KEY: json.dumps(settings)})
            content = file.with_suffix(".pt2").read_bytes()
        else:
            content = _as_onnx(program, settings)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, content)


def settings_of(model: PanopticEmbedder) -> dict[str, Any]:
    """Return what travels with the graph: all that turns bytes into its input and its outputs into segments.

    Raises:
        ValueError: If no class mean is known yet.

    Example:
        >>> from lovasz_embed.model import ModelConfig
        >>> model = PanopticEmbedder(ModelConfig(classes=("floor", "cup"), things=(1,), widths=(4,)))
        >>> _ = model.ncm.update(torch.rand(1, 8, 4, 4), torch.arange(16).view(1, 4, 4) % 2)
        >>> settings_of(model)["classes"], settings_of(model)["preparation"]["percentiles"]
        (['floor', 'cup'], (1.0, 99.8))
    """
    _check.is_a("model", model, PanopticEmbedder, "a PanopticEmbedder")
    if not bool(model.ncm.counts.any()):
        raise ValueError(_check.message("model", "have class means", "none", "Fit it, or update model.ncm."))
    config = asdict(model.config)
    chosen = ("instance_radius", "reach", "connected", "vote", "min_thing_area", "min_stuff_area")
    return {
        "version": __version__,
        "classes": list(config["classes"]),
        "things": list(config["things"]),
        **{name: config[name] for name in (*chosen, "dims", "category_radius")},
        "instance_dims": list(model.config.instance_dims),
        "stride": model.strides[-1],
        "context": model.context,
        "preparation": {"percentiles": PERCENTILES, "clamp": RANGE, "to": (-1, 1)},
    }


def _as_onnx(program: torch.export.ExportedProgram, settings: dict[str, Any]) -> bytes:
    import onnx

    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)  # it tells of every package that is not there
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of deprecations inside torch
            written = torch.onnx.export(
                program,
                input_names=["picture"],
                output_names=list(_OUTPUTS),
                opset_version=_OPSET,
                dynamo=True,
                verbose=False,
            )
    finally:
        log.setLevel(level)
    assert written is not None, "no file was asked for, so there is a program"
    model: onnx.ModelProto = written.model_proto
    entry = model.metadata_props.add()
    entry.key, entry.value = _KEY, json.dumps(settings)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def _need(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as missing:
        needed = 'pip install "lovasz-embed[export]"'
        raise ModuleNotFoundError(f"ONNX files need {missing.name}: {needed}") from missing


@dataclass(frozen=True)
class Reading:
    """How the outputs of an exported graph become segments.

    Attributes:
        classes: Names of the categories.
        things: Categories that have instances.
        radius: Radius of an instance, embedding units.
        reach: Farthest distance at which a pixel joins its nearest instance, embedding units.
        connected: Whether instances are split into connected parts.
        min_thing_area: Smaller things become void, pixels.
        min_stuff_area: Smaller stuff segments become void, pixels.
        instance_dims: The dimensions that tell instances apart; None is all.
        vote: Whether the pixels of all things are clustered together, and each instance takes the category that most
            of its pixels have; False clusters each category by itself.
    """

    classes: tuple[str, ...]
    things: tuple[int, ...]
    radius: float
    reach: float
    connected: bool = False
    min_thing_area: int = 0
    min_stuff_area: int = 0
    instance_dims: tuple[int, ...] | None = None
    vote: bool = False

    def read_off(self, embedding: NDArray[np.floating], category: NDArray[np.integer]) -> PanopticResult:
        """Cluster the things of embeddings (B, D, H, W) with categories (B, H, W), -1 = void, into segments.

        Example:
            >>> reading = Reading(("floor", "cup"), things=(1,), radius=1.0, reach=1.0)
            >>> embedding = np.array([[[[0.0, 0.1, 5.0, 5.1]]]], np.float32)
            >>> reading.read_off(embedding, np.array([[[0, 0, 1, 1]]])).segmentation.tolist()
            [[[1, 1, 2, 2]]]
        """
        for name, array, kinds in (("embedding", embedding, "f"), ("category", category, "iu")):
            if not isinstance(array, np.ndarray) or array.dtype.kind not in kinds or array.dtype.itemsize > 8:
                got = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
                kind = "floats" if kinds == "f" else "integers"
                raise TypeError(_check.message(name, f"be an array of {kind}", got))
        if embedding.ndim < 3 or category.shape != (len(embedding), *embedding.shape[2:]):
            got_shapes = f"{embedding.shape} and {category.shape}"
            raise ValueError(_check.message("embedding and category", "be (B, D, H, W) and (B, H, W)", got_shapes))
        embedding, category = (own.astype(own.dtype.newbyteorder("=")) for own in (embedding, category))
        values, semantic = torch.from_numpy(np.array(embedding)), torch.from_numpy(np.array(category)).long()
        _check.is_bool("vote", self.vote)
        is_thing = torch.isin(semantic, torch.tensor(self.things, dtype=torch.long))
        clusters = cluster_embeddings(
            look_at(values, checked_dims("instance_dims", self.instance_dims, values.shape[1])),
            is_thing if self.vote else torch.where(is_thing, semantic, VOID),
            radius=self.radius,
            reach=self.reach,
            min_size=max(self.min_thing_area, 1),
            connected=self.connected,
        )
        return assemble(
            semantic,
            clusters.labels,
            things=self.things,
            scores=clusters.scores,
            min_thing_area=self.min_thing_area,
            min_stuff_area=self.min_stuff_area,
            ignore_index=VOID,
        )


class ExportedModel:
    """A file that `export_model` wrote, ready to segment; neither a run nor the model's code is needed.

    Args:
        path: The file; its format is found by its ending: .onnx, or .pt2 for torch-export.

    Attributes:
        settings: What the file says about itself.
        reading: How outputs become segments.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it ends otherwise, or holds no settings of ours.
        ModuleNotFoundError: If onnxruntime is not installed (extra `export`).
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(_check.message(str(path), "be an exported model", "no such file"))
        _check.one_of("the ending of path", path.suffix, (".onnx", ".pt2"))
        if path.suffix == ".onnx":
            self._session = _need("onnxruntime").InferenceSession(str(path), providers=["CPUExecutionProvider"])
            text = self._session.get_modelmeta().custom_metadata_map.get(_KEY, "")
        else:
            self._session = None
            extra = {_KEY: ""}
            self._module = torch.export.load(path, extra_files=extra).module()
            text = extra[_KEY]
        if not text:
            remedy = "Write it with `lovasz-embed export`."
            raise ValueError(_check.message(str(path), f"hold the entry {_KEY!r}", "none", remedy))
        self.settings: dict[str, Any] = json.loads(text)
        radius, own_dims = self.settings["instance_radius"], self.settings.get("instance_dims")
        self.reading = Reading(
            classes=tuple(self.settings["classes"]),
            things=tuple(self.settings["things"]),
            radius=radius,
            reach=radius * self.settings["reach"],
            connected=self.settings["connected"],
            min_thing_area=self.settings["min_thing_area"],
            min_stuff_area=self.settings["min_stuff_area"],
            # Files of before these entries were made for all dimensions and for each category by itself.
            instance_dims=None if own_dims is None else tuple(own_dims),
            vote=self.settings.get("vote", False),
        )

    def run(self, picture: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Return embedding (B, D, H, W) and categories (B, H, W) of prepared pictures (B, 3, H, W)."""
        if not isinstance(picture, np.ndarray) or picture.dtype != np.float32:
            got = picture.dtype if isinstance(picture, np.ndarray) else type(picture).__name__
            raise TypeError(_check.message("picture", "be a float32 array", got, "`prepare` makes it."))
        least = self.settings["stride"]
        sides_fit = picture.ndim == 4 and picture.shape[1] == 3 and min(picture.shape[2:]) > least
        if not sides_fit or not len(picture):
            rule = f"have shape (B, 3, H, W), B at least 1 and sides of more than {least} pixels"
            raise ValueError(_check.message("picture", rule, picture.shape))
        picture = np.ascontiguousarray(picture) if min(picture.strides) >= 0 else picture.copy()
        if self._session is not None:
            embedding, category = self._session.run(list(_OUTPUTS), {"picture": picture})
            return embedding, category
        with torch.no_grad():
            outputs: Sequence[Tensor] = self._module(torch.from_numpy(picture))
        return outputs[0].numpy(), outputs[1].numpy()

    def segment(self, image: NDArray[np.uint8]) -> PanopticResult:
        """Segment one picture of bytes (H, W, 3), not prepared.

        Raises:
            ValueError: If the picture is not uint8 (H, W, 3), or a side is not larger than the coarsest stride.
        """
        picture = prepare(image)
        stride = self.settings["stride"]
        if min(image.shape[:2]) <= stride:
            raise ValueError(_check.message("image", f"have sides of more than {stride} pixels", image.shape[:2]))
        return self.reading.read_off(*self.run(picture[None].numpy()))
