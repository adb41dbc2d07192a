"""The Lovász extension over the errors of two pixels, and as an area over the weights of eight."""

import matplotlib.pyplot as plt
import torch

import lovasz_embed as le

figure, (surface, area) = plt.subplots(1, 2, figsize=(9, 3.9), width_ratios=[1, 1.25])

# Two pixels: the first is foreground, the second is not. Every pair of errors has its loss.
steps = torch.linspace(0, 1, 101)
errors = torch.stack(torch.meshgrid(steps, steps, indexing="xy"), dim=-1)
target = torch.tensor([1, 0]).expand_as(errors)
loss = (le.lovasz_weights(errors, target) * errors).sum(-1)
surface.contourf(steps, steps, loss, levels=10, cmap="Blues", alpha=0.8)
surface.contour(steps, steps, loss, levels=10, colors="white", linewidths=0.7)
surface.plot([0, 1], [0, 1], color="#404040", linewidth=1, linestyle=":")
corners = [(0, 0, "0"), (1, 0, "1"), (0, 1, "1/2"), (1, 1, "1")]
for x, y, text in corners:
    surface.plot(x, y, "o", color="#D55E00", markersize=9, clip_on=False, zorder=3)
    at = (x + (0.08 if x == 0 else -0.08), y + (0.09 if y == 0 else -0.09))
    surface.text(
        *at, text, ha="center", va="center", weight="bold", color="white",
        bbox={"boxstyle": "round,pad=0.25", "facecolor": "#D55E00", "edgecolor": "none"},
    )  # fmt: skip
surface.set(xticks=[0, 1], yticks=[0, 1], aspect="equal")
surface.set_xlabel("error of the foreground pixel")
surface.set_ylabel("error of the background pixel")
surface.set_title("Two pixels: 1 - IoU at the corners", pad=12)
for side in ("top", "right", "bottom", "left"):
    surface.spines[side].set_visible(False)

# Eight pixels, sorted: every pixel is a bar, as high as its error and as wide as its weight.
errors = torch.tensor([0.95, 0.85, 0.7, 0.55, 0.5, 0.35, 0.2, 0.1])
target = torch.tensor([0, 1, 0, 1, 1, 0, 1, 0])
weights = le.lovasz_weights(errors, target)
left = weights.cumsum(0) - weights
colours = ["#0072B2" if foreground else "#E69F00" for foreground in target]
area.bar(left, errors, width=weights, align="edge", color=colours, edgecolor="white", linewidth=1.2)
total = (weights * errors).sum()
area.axhline(total, color="#404040", linewidth=1, linestyle="--")
area.text(1.0, total + 0.02, f"loss {total:.2f} = the area", ha="right", fontsize=9)
area.set(xlim=(0, 1), ylim=(0, 1), xlabel="weights, which add up to 1", ylabel="error")
area.bar(0, 0, color="#0072B2", label="foreground pixel")
area.bar(0, 0, color="#E69F00", label="background pixel")
area.legend(loc="upper right")
area.set_title("Eight pixels: height is error, width is weight", pad=12)
