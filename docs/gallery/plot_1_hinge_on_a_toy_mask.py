"""
The hinge on a toy mask
=======================

A mask with a large and a small part, and a model that is too coarse to draw it: an 8 × 12 grid of logits, blown up to
pixels. It has to compromise, and the loss decides where. Cross-entropy counts wrong pixels; the Lovász hinge asks
what they cost in IoU.
"""

import matplotlib.pyplot as plt
import torch
from torch.nn.functional import binary_cross_entropy_with_logits, interpolate

import lovasz_embed as le

rows, columns = torch.meshgrid(torch.arange(64), torch.arange(96), indexing="ij")
ring = ((rows - 32) ** 2 + (columns - 34) ** 2).sqrt()
mask = ((ring > 13) & (ring < 19)) | ((rows - 18) ** 2 + (columns - 78) ** 2 < 6**2)
target = mask[None]


def train(loss, steps=150):
    """Train the grid with a loss; return the final logits and the IoU after every step."""
    grid = torch.zeros(1, 1, 8, 12, requires_grad=True)
    optimizer = torch.optim.Adam([grid], lr=0.1)
    ious = []
    for _ in range(steps):
        logits = interpolate(grid, size=mask.shape, mode="bicubic")[:, 0]
        predicted = logits.detach() > 0
        ious.append(float((predicted & target).sum() / (predicted | target).sum()))
        optimizer.zero_grad()
        loss(logits).backward()
        optimizer.step()
    return logits.detach()[0], ious


# %%
# One line decides between the two:
logits, ious = {}, {}
logits["cross-entropy"], ious["cross-entropy"] = train(lambda f: binary_cross_entropy_with_logits(f, target.float()))
logits["Lovász hinge"], ious["Lovász hinge"] = train(lambda f: le.lovasz_hinge(f, target))

figure, panels = plt.subplots(1, 3, figsize=(10, 2.7))
panels[0].imshow(mask, cmap="Greys", vmax=1.6)
panels[0].set_title("The mask")
for axes, (name, values) in zip(panels[1:], logits.items(), strict=True):
    axes.imshow(values, cmap="RdBu_r", vmin=-3, vmax=3)
    axes.contour(values, levels=[0], colors="black", linewidths=1.2)
    axes.contour(mask, levels=[0.5], colors="#009E73", linewidths=1.2, linestyles="--")
    axes.set_title(f"{name}: IoU {ious[name][-1]:.2f}")
for axes in panels:
    axes.axis("off")

# %%
# Red is foreground, blue is background; the black line is where the prediction ends, the dashed one where it should.
figure, axes = plt.subplots(figsize=(7.2, 2.8))
for name, values in ious.items():
    axes.plot(values, label=name)
axes.set(xlabel="step", ylabel="IoU", ylim=(0, 1))
axes.grid(visible=True)
axes.legend(loc="lower right")

# %%
# Where does each loss pull, given the same logits, those that the hinge ended with? The hinge has let go of every pixel
# that is right by a margin, and spends all it has on the border. Cross-entropy would go on making the far background
# surer than it needs to be.
values = logits["Lovász hinge"][None].clone().requires_grad_()
hinge = torch.autograd.grad(le.lovasz_hinge(values, target), values)[0][0]
entropy = torch.autograd.grad(binary_cross_entropy_with_logits(values, target.float()), values)[0][0]
figure, panels = plt.subplots(1, 2, figsize=(7.2, 2.6))
for axes, name, gradient in zip(panels, ("cross-entropy", "Lovász hinge"), (entropy, hinge), strict=True):
    shown = axes.imshow(gradient.abs() / gradient.abs().max(), cmap="cividis")
    still = (gradient.abs() > 1e-3 * gradient.abs().max()).float().mean()
    axes.set_title(f"{name}: {still:.0%} of the pixels pull")
    axes.axis("off")
figure.colorbar(shown, ax=panels, label="pull, of the largest", shrink=0.8)
