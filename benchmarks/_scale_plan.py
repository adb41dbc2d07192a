"""What training on a data set of any size takes, on paper: from measured rates and named assumptions.

Nothing here was run. Every formula is one line, so that whoever has other machines can put their own figures in.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

COLLECTIVES = 7
"""What a step of `fit` sends around: gradients in two buckets, buffers, sums and counts of classes, two votes."""


@dataclass(frozen=True)
class Measured:
    """What `bench_scale.py` measures on one core, or counts.

    Attributes:
        load: Processor seconds to read a megapixel with its labels from a shard, and to turn it into tensors.
        crop: Processor seconds to cut a crop.
        jpeg: Bytes of a megapixel of JPEG with its labels in a shard.
        step: Processor seconds of a training step on one core, per megapixel of crops.
        flop: Floating point operations of the network's forward pass, a pixel.
        parameters: Of the network.
        record: Bytes in memory of a picture's record where pictures are read by number.
    """

    load: float
    crop: float
    jpeg: float
    step: float
    flop: float
    parameters: int
    record: float


@dataclass(frozen=True)
class Assumed:
    """What was not measured: put your own.

    Attributes:
        gpu_flops: Operations a second that a GPU does in training this network, a few percent of what its maker says.
        cores: Cores beside each GPU that load pictures, as fast as ours.
        storage: Bytes a second that the storage gives to all of them together.
        link: Bytes a second between a GPU and the next one.
        latency: Seconds of a message besides its bytes; a collective takes 2 log2 G of them one after the other.
        gpus: Number of GPUs.
        rounds: How often each picture is seen.
        batch: Crops of a GPU in a step.
    """

    gpu_flops: float = 20e12
    cores: int = 16
    storage: float = 5e9
    link: float = 10e9
    latency: float = 20e-6
    gpus: int = 8
    rounds: int = 30
    batch: int = 8


@dataclass(frozen=True)
class Set:
    """A data set.

    Attributes:
        name: Of the data set.
        pictures: To train on.
        megapixels: Of a picture.
        crop: Side of a crop, pixels.
        bytes: Of a picture with its labels; None is JPEG by the measured bytes of a megapixel.
        load: Processor seconds to read a megapixel and turn it into tensors; None is what was measured here.
    """

    name: str
    pictures: float
    megapixels: float
    crop: int
    bytes: float | None = None
    load: float | None = None


# Cityscapes' pictures are PNGs: 11 GB for 5,000 of them, says its site, and 0.1 MB of labels each. To read them, and
# larger pictures, costs what docs/datasets/index.md measured: (0.059 + 0.031) s for 2.1 megapixels, (0.47 + 0.9) s
# for 19.7, which is more a megapixel than for small ones: their tensors leave the processor's cache.
SETS = (
    Set("Cityscapes", 2_975, 2.10, 512, 2.3e6, 0.043),
    Set("COCO", 118_287, 0.29, 320),
    Set("Vistas", 18_000, 9.0, 640, None, 0.070),
    Set("a billion like COCO's", 1e9, 0.29, 320),
)


@dataclass(frozen=True)
class Plan:
    """What training on a data set takes.

    Attributes:
        storage: Bytes of all shards.
        index: Bytes in memory of each process where pictures are read by number.
        rates: Crops a second that each part could do, by its name; the smallest is the bottleneck.
        hours: Of all rounds.
    """

    storage: float
    index: float
    rates: dict[str, float]
    hours: float

    @property
    def bottleneck(self) -> str:
        """The part that the others wait for."""
        return min(self.rates, key=self.rates.__getitem__)


def plan(data: Set, measured: Measured, assumed: Assumed) -> Plan:
    """Return what training takes where a picture is read for every crop, and all parts work at the same time."""
    size = data.bytes if data.bytes is not None else measured.jpeg * data.megapixels
    loading = (measured.load if data.load is None else data.load) * data.megapixels + measured.crop
    rates = {
        "decoding": assumed.gpus * assumed.cores / loading,
        "storage": assumed.storage / size,
        "GPUs": assumed.gpus * assumed.gpu_flops / (3 * measured.flop * data.crop**2),
    }
    if assumed.gpus > 1:
        rates["all-reduce"] = assumed.gpus * assumed.batch / reduction(measured.parameters, assumed)
    crops = data.pictures * assumed.rounds
    return Plan(size * data.pictures, measured.record * data.pictures, rates, crops / min(rates.values()) / 3600)


def reduction(parameters: int, assumed: Assumed) -> float:
    """Return the seconds a step waits for what is sent around: in a ring each GPU sends 2 (G - 1) / G of the bytes."""
    moved = 2 * (assumed.gpus - 1) / assumed.gpus * 4 * parameters / assumed.link
    return moved + COLLECTIVES * 2 * math.log2(assumed.gpus) * assumed.latency


def class_mean_bytes(classes: int, dims: int) -> int:
    """Return the bytes that a process adds to those of the others for its class means: float64 sums, int64 counts."""
    return classes * dims * 8 + classes * 8
