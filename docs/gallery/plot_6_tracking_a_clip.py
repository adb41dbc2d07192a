"""
Tracking a clip
===============

Instances keep their ids over a film because their embeddings stay where they are. Nothing else is looked at: no
motion, no overlap of masks.

The clip is painted, and so is the embedding: every thing has a place of its own that drifts a little from frame to
frame, with noise on every pixel. That is what a network has to deliver; :doc:`/tracking` says how near is near
enough.
"""

import matplotlib.pyplot as plt
import numpy as np
import torch

import lovasz_embed as le
from lovasz_embed.synthetic import CLASSES, COLOURS, THINGS, VOID, street_clip
from lovasz_embed.visualise import Palette, overlay

frames = street_clip(36, frames=24, size=(96, 160), max_things=9)
generator = torch.Generator().manual_seed(0)
means = 12 * torch.eye(len(CLASSES), 8)  # where the categories lie
home = {}  # where each thing lies

embedding = []
for frame in frames:
    picture = means[frame.semantic.where(frame.semantic != VOID, 2)]  # void looks like road here
    for thing in frame.instance.unique().tolist():
        if thing:
            place = home.setdefault(thing, 3 * torch.randn(8, generator=generator))
            place += 0.04 * torch.randn(8, generator=generator)  # the drift
            picture[frame.instance == thing] += place
    picture = picture + 0.12 * torch.randn(picture.shape, generator=generator)
    embedding.append(picture.permute(2, 0, 1))
embedding = torch.stack(embedding)

# %%
# First every frame by itself, then the ids over the film.
results = le.segment(embedding, means, things=THINGS, radius=1.0, min_thing_area=12, reach=1.5)
tracked = list(le.track(results, embedding, gate=1.0, memory=12))

palette = Palette(CLASSES, THINGS, np.array(COLOURS, dtype=np.uint8))
figure, panels = plt.subplots(2, 4, figsize=(12, 3.9))
for column, number in zip(panels.T, (0, 7, 14, 21), strict=True):
    image = frames[number].image
    column[0].imshow(overlay(image, tracked[number].result, palette=palette, scale=4))
    column[0].set_title(f"frame {number}")
    column[1].imshow(image.permute(1, 2, 0))
    ids = tracked[number].result.instance()[0]
    for track in ids.unique().tolist():
        if track and (ids == track).sum() > 60:
            y, x = torch.nonzero(ids == track).float().mean(dim=0).tolist()
            column[1].text(
                x, y, track, ha="center", va="center", fontsize=8, color="white", weight="bold",
                bbox={"boxstyle": "round,pad=0.15", "facecolor": "#28282E", "edgecolor": "none", "alpha": 0.75},
            )  # fmt: skip
    for axes in column:
        axes.axis("off")

# %%
# A timeline: a line for each track, a dot for each frame in which it is seen. A thing that is hidden, or out of the
# picture, and comes back within ``memory`` frames goes on with its line. One that stays away for longer begins a new
# one, as a car does that leaves early and returns at the end.
seen = {}
for number, frame in enumerate(tracked):
    for segment in frame.result.segments[0]:
        if segment.is_thing and not segment.is_crowd:
            seen.setdefault(segment.id, (segment.category, []))[1].append(number)
figure, axes = plt.subplots(figsize=(9, 0.28 * len(seen) + 1.2))
for row, (category, numbers) in enumerate(seen.values()):
    colour = np.array(COLOURS[category]) / 255
    axes.plot([numbers[0], numbers[-1]], [row, row], color=colour, linewidth=1)
    axes.plot(numbers, [row] * len(numbers), "o", color=colour, markersize=5)
axes.set_yticks(range(len(seen)), [f"{CLASSES[category]} {track}" for track, (category, _) in seen.items()])
axes.set(xlabel="frame", xlim=(-0.5, len(frames) - 0.5))
axes.invert_yaxis()

# %%
# Against the truth: how many things had more than one id, and how many ids stood for more than one thing?
pairs = set()
for frame, result in zip(frames, tracked, strict=True):
    ids = result.result.instance()[0]
    for thing in frame.instance.unique().tolist():
        own = ids[frame.instance == thing]
        if thing and (own > 0).any():
            pairs.add((thing, int(own[own > 0].mode().values)))
things, tracks = zip(*pairs, strict=True)
print(f"{len(set(things))} things, {len(set(tracks))} tracks, {len(pairs)} pairs")
