"""The logit of both kernels against the distance to a node's mean, and what a pixel costs there."""

import matplotlib.pyplot as plt
import torch

import lovasz_embed as le

level = le.Level(torch.zeros(1, 1, dtype=torch.long), radius=1.0)  # the default margin
inner, outer = level.inner_radius, level.outer_radius
distance = torch.linspace(0, 2, 401)
logits = {
    "margin": (level.radius**2 - distance**2) / level.margin2,
    "gaussian": 2 * torch.exp2(-((distance / level.radius) ** 2)) - 1,
}
colours = {"margin": "#0072B2", "gaussian": "#D55E00"}

figure, panels = plt.subplots(1, 3, figsize=(10, 3.5), sharex=True)
titles = ["Logit", "Cost of a pixel of the node", "Cost of another pixel"]
for name, logit in logits.items():
    for axes, values in zip(panels, (logit, (1 - logit).relu(), (1 + logit).relu()), strict=True):
        axes.plot(distance, values, color=colours[name], label=name)
for axes, title in zip(panels, titles, strict=True):
    axes.set_title(title)
    axes.set_xlabel("distance to the node's mean")
    axes.set_xticks([0, inner, 1, outer, 2], ["0", "a", "r", "b", "2r"])
    axes.grid(visible=True, axis="x")
    axes.set_xlim(0, 2)
panels[0].axhline(0, color="#808088", linewidth=1)
panels[0].set_ylim(-3.5, 1.6)
panels[0].legend(loc="lower left")
for axes, span in ((panels[1], (0, inner)), (panels[2], (outer, 2))):
    axes.set_ylim(-0.08, 4.2)
    axes.axvspan(*span, color="#0072B2", alpha=0.1, linewidth=0)
panels[1].text(inner / 2, 3.9, "at rest", ha="center", va="top", color="#0072B2", fontsize=9)
panels[2].text((outer + 2) / 2, 3.9, "at rest", ha="center", va="top", color="#0072B2", fontsize=9)
