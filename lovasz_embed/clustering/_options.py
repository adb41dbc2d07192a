"""What each method of clustering is told: checked once, then handed over picture by picture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lovasz_embed import _check
from lovasz_embed._ops.margin import Floats
from lovasz_embed.clustering._pictures import planar

# Beside `min_size` and `connected`, which all of them honour.
_HONOURED = {
    "margin": {"radius", "reach"},
    "seeded": {"radius", "seeds", "bandwidth", "min_seed", "min_fresh"},
    "density": {"radius", "reach"},
}


@dataclass(frozen=True)
class Options:
    """The keyword arguments of `cluster_embeddings`, under their names there."""

    method: str
    radius: float | None
    min_size: int
    connected: bool
    reach: float | None
    seeds: Tensor | None
    bandwidth: Tensor | None
    min_seed: float | None
    min_fresh: float | None

    def check(self, embedding: Tensor) -> None:
        """Raise where an option is wrong, missing, or not for this method."""
        _check.one_of("method", self.method, tuple(_HONOURED))
        for name in ("radius", "reach"):
            if getattr(self, name) is not None:
                _check.positive(name, getattr(self, name))
        if self.min_seed is not None:
            _check.non_negative("min_seed", self.min_seed)
            if self.min_seed > 1:
                raise ValueError(_check.message("min_seed", "be at most 1", self.min_seed))
        if self.min_fresh is not None:
            _check.non_negative("min_fresh", self.min_fresh)
            if self.min_fresh >= 1:
                raise ValueError(_check.message("min_fresh", "be below 1", self.min_fresh))
        _check.is_int("min_size", self.min_size, most=_check.MOST_PIXELS, rule="be an int, in pixels")
        if self.min_size < 1:
            raise ValueError(_check.message("min_size", "be at least 1 pixel", self.min_size))
        _check.is_bool("connected", self.connected)
        for name in sorted({name for names in _HONOURED.values() for name in names} - _HONOURED[self.method]):
            if (value := getattr(self, name)) is not None:
                methods = " or ".join(f"method={method!r}" for method, names in _HONOURED.items() if name in names)
                got = "a tensor" if isinstance(value, Tensor) else value
                remedy = f"It is for {methods}."
                raise ValueError(_check.message(name, f"be None for method={self.method!r}", got, remedy))
        if self.method == "margin" and self.radius is None:
            remedy = "It is the radius of the instance level of the loss; method='density' does without."
            raise ValueError(_check.message("radius", "be given for method='margin'", None, remedy))
        if self.method == "seeded":
            self._check_maps(embedding)

    def _check_maps(self, embedding: Tensor) -> None:
        if self.seeds is None:
            remedy = "It is the confidence with which a pixel stands for its instance; method='margin' does without."
            raise ValueError(_check.message("seeds", "be given for method='seeded'", None, remedy))
        batch, dimensions, *spatial = embedding.shape
        _check.is_floating("seeds", self.seeds)
        _check.same_shape("seeds", self.seeds, (batch, *spatial), "embedding (B, *spatial)")
        _check.same_device("seeds", self.seeds, embedding.device, "embedding")
        if (self.radius is None) == (self.bandwidth is None):
            got = "neither" if self.radius is None else "both"
            raise ValueError(_check.message("radius or bandwidth", "be given for method='seeded', one of them", got))
        if self.bandwidth is None:
            return
        _check.is_floating("bandwidth", self.bandwidth)
        if self.bandwidth.ndim != embedding.ndim or self.bandwidth.shape[1] != dimensions:
            _check.same_shape("bandwidth", self.bandwidth, (batch, 1, *spatial), "embedding (B, 1 or D, *spatial)")
        _check.same_shape("bandwidth", self.bandwidth[:, 0], (batch, *spatial), "embedding (B, 1 or D, *spatial)")
        _check.same_device("bandwidth", self.bandwidth, embedding.device, "embedding")

    def of_picture(self, b: int) -> dict[str, Any]:
        """Return what the method's function is told about picture b."""
        radius, reach = (None if own is None else float(own) for own in (self.radius, self.reach))
        options: dict[str, Any] = {"radius": radius, "min_size": self.min_size, "connected": self.connected}
        if self.method == "margin":
            options["reach"] = radius if reach is None else reach
        elif self.method == "density":
            options["reach"] = reach
        else:
            assert self.seeds is not None, "checked"
            nothing = np.empty((0, self.seeds[b].numel()), np.float32)
            options["seeds"] = _flat(self.seeds[b])
            options["bandwidth"] = nothing if self.bandwidth is None else _planes(self.bandwidth[b])
            options["min_seed"] = 0.5 if self.min_seed is None else float(self.min_seed)
            options["min_fresh"] = 0.5 if self.min_fresh is None else float(self.min_fresh)
        return options


def _flat(picture: Tensor) -> NDArray[np.float32]:
    array: NDArray[np.float32] = picture.detach().to("cpu", torch.float32).flatten().numpy()
    return array


def _planes(picture: Tensor) -> Floats:
    return planar(picture.detach())
