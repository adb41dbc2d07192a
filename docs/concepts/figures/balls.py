"""The hierarchy in two dimensions: instances inside the ball of their category."""

import math

import matplotlib.pyplot as plt
import torch

import lovasz_embed as le

category = le.Level(torch.zeros(1, 1, dtype=torch.long), radius=4.0)
instance = le.Level(torch.zeros(1, 1, dtype=torch.long), radius=1.0)
generator = torch.Generator().manual_seed(3)


def ball(centre, radius, colour, axes, **options):
    axes.add_patch(plt.Circle(centre, radius, facecolor="none", edgecolor=colour, **options))


def pixels(centre, radius, count):
    angle = 2 * math.pi * torch.rand(count, generator=generator)
    distance = radius * torch.rand(count, generator=generator).sqrt()
    return centre[0] + distance * angle.cos(), centre[1] + distance * angle.sin()


figure, axes = plt.subplots(figsize=(9, 4.6))
embedding, semantic, instances = [], [], []
for number, (name, centre, colour) in enumerate([("road", (-8.4, -0.6), "#606068"), ("sky", (8.4, 1.0), "#0F7FB8")]):
    x, y = pixels(centre, category.inner_radius, 260)
    axes.scatter(x, y, s=7, color=colour, alpha=0.7)
    ball(centre, category.radius, colour, axes, linewidth=1.6)
    axes.text(
        centre[0], centre[1] + category.radius + 0.25, f"{name} (stuff)", ha="center", color=colour, weight="bold"
    )
    embedding.append(torch.stack([x, y]))
    semantic += [number] * 260
    instances += [0] * 260

for number, colour in enumerate(["#0072B2", "#D55E00", "#009E73"], start=1):
    angle = 2 * math.pi * number / 3 - math.pi / 6
    mean = 1.24 * math.cos(angle), 1.24 * math.sin(angle)
    x, y = pixels(mean, 0.9 * instance.inner_radius, 70)
    axes.scatter(x, y, s=7, color=colour)
    ball(mean, instance.radius, colour, axes, linewidth=1.6)
    axes.text(mean[0], mean[1] - 0.85, f"car {number}", ha="center", fontsize=8, color=colour)
    embedding.append(torch.stack([x, y]))
    semantic += [2] * 70
    instances += [number] * 70

levels = le.panoptic_levels(torch.tensor([semantic]), torch.tensor([instances]), things={2}, radii=(4.0, 1.0))
loss = le.hierarchical_lovasz_hinge(torch.cat(embedding, dim=1)[None], levels).loss
axes.text(-12.6, -5.6, f"hierarchical hinge of these pixels: {loss:.2f}", weight="bold")
ball((0, 0), category.radius, "#28282E", axes, linewidth=1.6)
ball((0, 0), category.outer_radius, "#28282E", axes, linewidth=1, linestyle=":")
axes.text(0, category.radius + 0.25, "car (thing)", ha="center", weight="bold")
axes.annotate("", (0, -4.0), (0, 0), arrowprops={"arrowstyle": "->", "color": "#28282E", "linewidth": 1})
axes.text(0.15, -3.1, "radius 4", fontsize=9)
axes.annotate(
    "beyond the dotted circle\nother categories cost nothing",
    (3.6, -4.0), (5.2, -5.6), fontsize=9, arrowprops={"arrowstyle": "-", "color": "#808088"},
)  # fmt: skip
axes.set(xlim=(-12.8, 12.8), ylim=(-6.4, 5.9), aspect="equal")
axes.axis("off")
