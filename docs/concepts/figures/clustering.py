"""The margin clustering step by step, on pixels with two embedding dimensions."""

import matplotlib.pyplot as plt
import torch

import lovasz_embed as le

radius = 1.0
generator = torch.Generator().manual_seed(1)
centres = torch.tensor([[0.0, 0.0], [2.6, 0.6], [0.8, 2.6], [3.4, 3.0]])
instance = torch.arange(4).repeat_interleave(150)
pixels = centres[instance] + 0.22 * torch.randn(600, 2, generator=generator)
stray = torch.rand(25, 2, generator=generator) * 6 - 1.2
pixels = torch.cat([pixels, stray])

# Leaders: points in turn, each not within the radius of one before. (The library goes by the densest first.)
leaders = []
for pixel in pixels:
    if all((pixel - leader).norm() > radius for leader in leaders):
        leaders.append(pixel)
paths = []
for leader in leaders:
    path = [leader]
    for _ in range(8):
        window = (pixels - path[-1]).norm(dim=1) <= radius
        path.append(pixels[window].mean(dim=0))
    paths.append(torch.stack(path))

clusters = le.cluster_embeddings(
    pixels.T[None], torch.ones(1, len(pixels), dtype=torch.bool), radius=radius, min_size=20
)
labels = clusters.labels[0]

figure, panels = plt.subplots(1, 4, figsize=(11, 3.2), sharex=True, sharey=True)
titles = ["1  The pixels", "2  Leaders cover them", "3  Windows climb to modes", "4  Every pixel joins a mode"]
for axes, title in zip(panels, titles, strict=True):
    axes.set(title=title, xticks=[], yticks=[], aspect="equal", xlim=(-1.8, 5.2), ylim=(-1.8, 5.2))
for axes in panels[:3]:
    axes.scatter(*pixels.T, s=4, color="#A8A8B0")
for leader, path in zip(leaders, paths, strict=True):
    panels[1].add_patch(plt.Circle(leader, radius, fill=False, color="#E69F00", linewidth=1))
    panels[1].plot(*leader, "o", color="#D55E00", markersize=4)
    panels[2].plot(*path.T, color="#D55E00", linewidth=1)
    panels[2].plot(*path[-1], "*", color="#0072B2", markersize=10)
colours = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"]
for label in range(1, int(labels.max()) + 1):
    panels[3].scatter(*pixels[labels == label].T, s=4, color=colours[(label - 1) % len(colours)])
panels[3].scatter(*pixels[labels == 0].T, s=12, marker="x", color="#808088", linewidth=0.8)
for centre in clusters.centres[0]:
    panels[3].add_patch(plt.Circle(centre, radius, fill=False, color="#606068", linewidth=0.8, linestyle=":"))
panels[3].text(5.0, -1.6, "x: noise", ha="right", fontsize=9)
