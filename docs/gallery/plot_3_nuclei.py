"""
Nuclei, from the raw picture to instances
=========================================

A small network is trained from nothing on 431 microscopy pictures, for two hundred steps: some ten seconds on two idle
cores. Then it looks at pictures that it has not seen.

The pictures are those of the 2018 Data Science Bowl (CC0). They are read from the folder that ``LOVASZ_EMBED_DATA``
names; where there is none, nuclei are painted.
"""

import os
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch

import lovasz_embed as le
from lovasz_embed import formats, training
from lovasz_embed.model import ModelConfig, PanopticEmbedder, prepare
from lovasz_embed.visualise import as_picture, colour_basis, embedding_colours


def painted(count, seed):
    """Return pictures of bright ellipses on a dark, noisy ground, with their instance maps."""
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[:160, :160]
    samples = []
    for number in range(count):
        light, instance = np.full((160, 160), 20.0), np.zeros((160, 160), np.int32)
        for nucleus in range(1, 19):
            y, x, a, b, turn = random.uniform((8, 8, 8, 6, 0), (152, 152, 15, 11, 3.1))
            u = (rows - y) * np.cos(turn) + (columns - x) * np.sin(turn)
            v = (columns - x) * np.cos(turn) - (rows - y) * np.sin(turn)
            inside = (u / a) ** 2 + (v / b) ** 2 < 1
            light[inside], instance[inside] = random.uniform(90, 220), nucleus
        image = np.clip(light + random.normal(0, 8, light.shape), 0, 255).astype(np.uint8)
        semantic = (instance > 0).astype(np.uint8)
        samples.append(formats.Sample(f"painted{number}", image[..., None].repeat(3, 2), semantic, instance))
    return samples


folder = Path(os.environ.get("LOVASZ_EMBED_DATA", "data")) / "dsb2018_nuclei"
if folder.is_dir():
    train = formats.open_dataset(folder, format="instance-map", split="train")
    unseen = formats.open_dataset(folder, format="instance-map", split="val")
    print(f"{len(train)} pictures of the Data Science Bowl")
else:
    train, unseen = painted(100, seed=0), painted(20, seed=1)
    print("no real pictures here: nuclei are painted")

# %%
# Training. Ten seconds are not much: the network works at half the resolution and has three scales.
torch.manual_seed(0)
model = PanopticEmbedder(
    ModelConfig(classes=("background", "nucleus"), things=(1,), widths=(16, 24, 32), stride=2, connected=True)
)
config = training.TrainConfig(steps=200, batch=4, crop=96, learning_rate=4e-3, warmup=10, turn=True, mean_pictures=20)
losses = []
training.fit(model, train, config, on_step=lambda progress: losses.append(progress.loss))

figure, axes = plt.subplots(figsize=(7.2, 2.4))
axes.plot(losses, linewidth=1)
axes.set(xlabel="step", ylabel="loss", ylim=(0, None))
axes.grid(visible=True)

# %%
# Some pictures that it has not seen, scored.


def truth_of(sample):
    """Return the truth of a sample as a result."""
    semantic, instance = (torch.from_numpy(np.asarray(labels))[None] for labels in (sample.semantic, sample.instance))
    return le.PanopticResult.from_maps(semantic.long(), instance.long(), things={1})


scored = [unseen[index] for index in range(0, len(unseen), max(1, len(unseen) // 25))]
predictions = training.predict(model, (sample.image for sample in scored))
quality = training.evaluate(predictions, map(truth_of, scored), classes=2, things={1})
print(f"PQ of the nuclei {float(quality.pq_things):.2f}, of the background {float(quality.pq_stuff):.2f}")

# %%
# The three most crowded ones, cut to a window. The second column shows the two dimensions that tell instances apart,
# where nuclei were found: like colours, like embeddings. Each pixel points to the middle of its nucleus, more or less;
# the clustering needs no more than that this changes little inside a nucleus and much between two.
tab20 = np.concatenate([[[0.93, 0.93, 0.95]], plt.get_cmap("tab20")(np.arange(20))[:, :3]])


def coloured(result):
    """Colour the nuclei of a result, neighbours in scan order differently."""
    ids = result.instance()[0].numpy()
    return tab20[np.where(ids > 0, (ids * 7) % 20 + 1, 0)]


# sphinx_gallery_thumbnail_number = 2
window = np.s_[:160, :160]
crowded = sorted(scored, key=lambda sample: -len(np.unique(sample.instance[window])))
figure, panels = plt.subplots(3, 4, figsize=(10, 8))
for row, sample in zip(panels, crowded[:3], strict=True):
    with torch.no_grad():
        embedding = model(prepare(sample.image)[None])
    result, truth = model.read_off(embedding), truth_of(sample)
    nuclei = result.instance()[0] > 0
    points = embedding[:, list(model.config.instance_dims)]
    basis = colour_basis(points[:, :, nuclei][:, :, None])
    colours = np.where(nuclei[..., None], embedding_colours(points[0], basis=basis), 237)
    stretched = ((prepare(sample.image) + 1) / 2).clamp(0, 1) ** 0.6  # lighter, for the eye alone
    found, there = (len(picture.instance()[0][window].unique()) - 1 for picture in (result, truth))
    shown = {
        "picture": as_picture(stretched),
        "embedding": colours,
        f"{found} nuclei found": coloured(result),
        f"truth: {there}": coloured(truth),
    }
    for axes, (title, picture) in zip(row, shown.items(), strict=True):
        axes.imshow(picture[window])
        axes.set_title(title)
        axes.axis("off")

# %%
# A quarter of an hour of training and a larger network do better: :doc:`/results`. The same from a shell is
# ``lovasz-embed train --data DATA --format instance-map --out RUN``.
