"""Regions of the nearest class mean in two dimensions: plain, with an offset, with a reject radius."""

import matplotlib.pyplot as plt
import torch
from matplotlib.colors import ListedColormap

import lovasz_embed as le

names = ["road", "sky", "car", "person"]
colours = ["#606068", "#56B4E9", "#0072B2", "#D55E00"]
means = torch.tensor([[-3.0, -2.0], [-1.5, 3.0], [2.0, 1.5], [3.2, -2.5]])
rows, columns = torch.linspace(5, -5, 400), torch.linspace(-6, 6, 480)
plane = torch.stack(torch.meshgrid(columns, rows, indexing="xy"))[None]  # (1, 2, 400, 480): an embedding map

panels = {
    "The nearest mean": {},
    "An offset for persons": {"offset": torch.tensor([0.0, 0.0, 0.0, 14.0])},
    "A reject radius: white is void": {"reject_radius": 2.6},
}
figure, all_axes = plt.subplots(1, 3, figsize=(10, 3.2), sharey=True)
for axes, (title, options) in zip(all_axes, panels.items(), strict=True):
    regions = le.nearest_class_mean(plane, means, **options)[0]
    shown = torch.where(regions == 255, len(names), regions)
    axes.imshow(shown, cmap=ListedColormap([*colours, "white"]), extent=(-6, 6, -5, 5), alpha=0.35, vmin=0, vmax=4)
    axes.contour(columns, rows, shown, levels=[0.5, 1.5, 2.5, 3.5], colors="white", linewidths=1)
    for name, mean, colour in zip(names, means.tolist(), colours, strict=True):
        axes.plot(*mean, "o", color=colour, markersize=7, markeredgecolor="white")
        axes.annotate(name, mean, (0, 7), textcoords="offset points", ha="center", fontsize=9)
    axes.set(xticks=[], yticks=[], title=title)
    for side in ("bottom", "left"):
        axes.spines[side].set_visible(False)
