"""
The hierarchy in two dimensions
===============================

No network here: every pixel of a small picture has two numbers of its own, and the hierarchical hinge moves them.
Two dimensions are few, but they can be drawn. Pixels start near their place in the picture, small and with noise: as in
a network, something must tell the three cars apart, and nothing but their place does.
"""

import matplotlib.pyplot as plt
import torch

import lovasz_embed as le

# %%
# A picture with two stuff categories and one thing category with three instances.
rows, columns = torch.meshgrid(torch.arange(24), torch.arange(36), indexing="ij")
semantic = (rows > 14).long()  # 0 is sky, 1 is road
instance = torch.zeros_like(semantic)
for number, (row, column) in enumerate([(13, 6), (14, 17), (12, 29)], start=1):
    car = ((rows - row) / 4.5) ** 2 + ((columns - column) / 4.5) ** 2 < 1
    semantic[car], instance[car] = 2, number
semantic, instance = semantic[None], instance[None]
levels = le.panoptic_levels(semantic, instance, things={2}, radii=(4.0, 1.0))

segments = semantic.flatten() + instance.flatten()  # 0 sky, 1 road, 3, 4, 5 cars
colours = {0: "#56B4E9", 1: "#707078", 3: "#D55E00", 4: "#009E73", 5: "#CC79A7"}
names = {0: "sky", 1: "road", 3: "car 1", 4: "car 2", 5: "car 3"}

# %%
# Training, with a look at the embedding now and then.
generator = torch.Generator().manual_seed(4)
place = torch.stack([columns - 17.5, 11.5 - rows]) / 12
embedding = (place + 0.2 * torch.randn(1, 2, 24, 36, generator=generator)).requires_grad_()
optimizer = torch.optim.Adam([embedding], lr=0.15)
looks, losses = {}, []
for step in range(301):
    out = le.hierarchical_lovasz_hinge(embedding, levels)
    losses.append(out.per_level.detach().clone())
    if step in (0, 10, 40, 300):
        looks[step] = embedding.detach().clone()
    optimizer.zero_grad()
    out.loss.backward()
    optimizer.step()

figure, panels = plt.subplots(2, 2, figsize=(8, 8.8), sharex=True, sharey=True)
for axes, (step, look) in zip(panels.flat, looks.items(), strict=True):
    points = look[0].flatten(1)
    for label, colour in colours.items():
        own = points[:, segments == label]
        axes.scatter(*own, s=8, color=colour, alpha=0.7, label=names[label])
        if label >= 3:
            axes.add_patch(plt.Circle(own.mean(dim=1), 1.0, fill=False, color=colour, linewidth=1.4))
    for category, colour in ((0, colours[0]), (1, colours[1]), (2, "#28282E")):
        centre = points[:, semantic.flatten() == category].mean(dim=1)
        axes.add_patch(plt.Circle(centre, 4.0, fill=False, color=colour, linewidth=1.2, linestyle="--"))
    axes.set_title(f"after {step} steps, loss {losses[step].sum():.2f}")
    axes.set(xlim=(-9, 9), ylim=(-10, 10), aspect="equal")
    axes.grid(visible=True)
panels[0, 0].legend(loc="lower left", markerscale=2, ncols=2)

# %%
# Dashed circles have the category's radius of 4 around the mean of its pixels, the small ones the instances' radius
# of 1. First the categories part, then the instances within theirs; in the end nothing costs anything any more.
figure, axes = plt.subplots(figsize=(7.2, 2.8))
for values, level in zip(torch.stack(losses).T, levels, strict=True):
    axes.plot(values, label=f"{level.name} level")
axes.set(xlabel="step", ylabel="loss", ylim=(0, None))
axes.grid(visible=True)
axes.legend()

# %%
# Read off: the nearest class mean for the categories, clustering for the cars.
final = embedding.detach()
means = le.class_means(final, semantic, num_classes=3).means
result = le.segment(final, means, things={2}, radius=1.0)
truth = le.PanopticResult.from_maps(semantic, instance, things={2})
print(f"{len(result.segments[0])} segments, PQ {float(le.panoptic_quality(result, truth).pq):.2f}")
