"""
Speed
=====

How long the hinge and its gradient take, beside the textbook: sort, difference, sum. Small pictures and few repeats,
on whatever machine built these pages; measurements with care are in :doc:`/speed` and :doc:`/clustering-speed`.
"""

import time

import matplotlib.pyplot as plt
import torch

import lovasz_embed as le


def textbook(logits, mask):
    """The Lovász hinge as it is usually written, for one picture."""
    signs = 2 * mask.flatten().float() - 1
    errors, order = torch.sort(1 - logits.flatten() * signs, descending=True)
    foreground = mask.flatten()[order].float()
    intersection = foreground.sum() - foreground.cumsum(0)
    union = foreground.sum() + (1 - foreground).cumsum(0)
    curve = 1 - intersection / union
    weights = torch.cat([curve[:1], curve[1:] - curve[:-1]])
    return torch.dot(errors.relu(), weights)


methods = {
    "textbook": textbook,
    "lovasz_hinge": le.lovasz_hinge,
    'lovasz_hinge, method="binned"': lambda logits, mask: le.lovasz_hinge(logits, mask, method="binned"),
}

# %%
# The first call compiles the kernels and is not counted. Of the others the fastest is: what else runs on the machine
# can only make them slower.
sizes = [2**power for power in range(12, 21, 2)]
times = {name: [] for name in methods}
for pixels in sizes:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, pixels, generator=generator, requires_grad=True)
    mask = torch.rand(1, pixels, generator=generator) < 0.3
    for name, method in methods.items():
        took = []
        for _ in range(6):
            start = time.perf_counter()
            torch.autograd.grad(method(logits, mask), logits)
            took.append(time.perf_counter() - start)
        times[name].append(1000 * min(took[1:]))

figure, axes = plt.subplots(figsize=(7.2, 3.8))
for (name, milliseconds), marker in zip(times.items(), "os^", strict=True):
    axes.loglog(sizes, milliseconds, marker + "-", label=name, markersize=6)
axes.set_xticks(sizes, ["4 k", "16 k", "66 k", "262 k", "1 M"])
axes.minorticks_off()
axes.set(xlabel="pixels", ylabel="milliseconds, forward and backward")
axes.grid(visible=True)
axes.legend()
for name in list(methods)[1:]:
    print(f"{name}: {times['textbook'][-1] / times[name][-1]:.0f} times faster at {sizes[-1]:,} pixels")
