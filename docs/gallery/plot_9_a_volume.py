"""
A volume
========

Nothing in the library knows that pictures have two dimensions. Here are balls that touch in a volume: the embedding of
every voxel is trained, then clustered.
"""

import matplotlib.pyplot as plt
import numpy as np
import torch

import lovasz_embed as le

# %%
# Voxels on a grid of 20 × 40 × 40, each the member of the nearest ball, if it is inside.
generator = torch.Generator().manual_seed(5)
grid = torch.stack(torch.meshgrid(torch.arange(20), torch.arange(40), torch.arange(40), indexing="ij"), dim=-1).float()
centres = torch.rand(14, 3, generator=generator) * torch.tensor([12.0, 28.0, 28.0]) + torch.tensor([4.0, 6.0, 6.0])
distance = torch.cdist(grid.view(-1, 3), centres).view(20, 40, 40, 14)
nearest, number = distance.min(dim=-1)
instance = torch.where(nearest < 6.5, number + 1, 0)[None]
semantic = (instance > 0).long()

# %%
# The same three calls as for a picture: levels, loss, segments.
levels = le.panoptic_levels(semantic, instance, things={1})
place = (grid - grid.mean(dim=(0, 1, 2))).permute(3, 0, 1, 2) / 5  # a start: touching balls lie in different places
embedding = (place + 0.2 * torch.randn(1, 3, 20, 40, 40, generator=generator)).requires_grad_()
optimizer = torch.optim.Adam([embedding], lr=0.2)
losses = []
for _ in range(200):
    loss = le.hierarchical_lovasz_hinge(embedding, levels).loss
    losses.append(float(loss.detach()))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

found = embedding.detach()
means = le.class_means(found, semantic, num_classes=2).means
result = le.segment(found, means, things={1}, radius=1.0, min_thing_area=30)
truth = le.PanopticResult.from_maps(semantic, instance, things={1})
print(f"{len(result.segments[0]) - 1} balls, PQ {float(le.panoptic_quality(result, truth).pq):.2f}")

# %%
# Slices from top to bottom. Balls that touch in the volume are apart in the embedding.
colours = np.concatenate([[[0.93, 0.93, 0.95]], plt.get_cmap("tab20")(np.arange(20))[:, :3]])
figure, panels = plt.subplots(2, 5, figsize=(10, 4.3))
for column, depth in zip(panels.T, (3, 6, 9, 12, 15), strict=True):
    for axes, shown, title in zip(column, (instance[0], result.instance()[0]), ("truth", "found"), strict=True):
        axes.imshow(colours[shown[depth].numpy() % 21])
        axes.set_title(f"{title}, slice {depth}")
        axes.axis("off")
