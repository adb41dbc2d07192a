"""
A street scene
==============

Stuff and things from one embedding: a network of 57,000 parameters learns two painted scenes by heart, which takes
some ten seconds, and a third scene shows what that is not worth.
"""

import matplotlib.pyplot as plt
import numpy as np
import torch

import lovasz_embed as le
from lovasz_embed import formats, training
from lovasz_embed.model import ModelConfig, PanopticEmbedder, prepare
from lovasz_embed.synthetic import CLASSES, COLOURS, THINGS, street_scene
from lovasz_embed.visualise import Palette, class_mean_map, embedding_colours, overlay


def sample(seed):
    """Paint a scene as a labelled picture of bytes, the form in which files are read."""
    scene = street_scene(seed, size=(64, 96), max_things=6)
    image = (scene.image * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    return formats.Sample(
        f"scene{seed}", image, scene.semantic.numpy().astype(np.uint8), scene.instance.numpy(), scene.crowd.numpy()
    )


known, unseen = [sample(0), sample(1)], sample(7)

# %%
# The options are those of a real training, but for the size of the network and the few steps.
torch.manual_seed(0)
model = PanopticEmbedder(
    ModelConfig(classes=CLASSES, things=tuple(sorted(THINGS)), widths=(16, 24, 32), unit=7.0, min_thing_area=24)
)
print(f"{sum(weights.numel() for weights in model.parameters()):,} parameters")
config = training.TrainConfig(steps=300, batch=2, crop=64, learning_rate=6e-3, warmup=10, jitter=0.0)
training.fit(model, known, config)

# %%
# From the picture to its segments: the embedding (like colours, like embeddings), the nearest class mean of every
# pixel (bright where it is clear), and the clustered result.
palette = Palette(CLASSES, THINGS, np.array(COLOURS, dtype=np.uint8))
dims = list(model.config.category_dims)
figure, panels = plt.subplots(3, 5, figsize=(12, 5.6))
for row, scene in zip(panels, [*known, unseen], strict=True):
    with torch.no_grad():
        embedding = model(prepare(scene.image)[None])
    result = model.read_off(embedding)
    truth = le.PanopticResult.from_maps(
        torch.from_numpy(scene.semantic).long()[None],
        torch.from_numpy(scene.instance)[None],
        things=THINGS,
        crowd=torch.from_numpy(scene.crowd)[None],
    )
    quality = float(le.panoptic_quality(result, truth).pq)
    shown = {
        "known" if scene is not unseen else "never seen": scene.image,
        "embedding": embedding_colours(embedding[0]),
        "nearest class mean": class_mean_map(embedding[0, dims], model.ncm.means[:, dims], palette=palette),
        f"segments, PQ {quality:.2f}": overlay(scene.image, result, palette=palette, scale=3),
        "truth": overlay(scene.image, truth, palette=palette, scale=3),
    }
    for axes, (title, picture) in zip(row, shown.items(), strict=True):
        axes.imshow(picture)
        axes.set_title(title)
        axes.axis("off")
swatches = [plt.Rectangle((0, 0), 1, 1, color=np.array(colour) / 255) for colour in COLOURS]
figure.legend(swatches, CLASSES, loc="outside lower center", ncols=len(CLASSES))

# %%
# Two scenes teach a network two scenes. ``lovasz-embed demo`` paints two thousand and trains for 3¾ minutes; after
# that these four, which it has not seen either, look like this:
#
# .. image:: ../demo.png
#    :alt: Input, truth, prediction, embedding and nearest class mean of four unseen scenes
