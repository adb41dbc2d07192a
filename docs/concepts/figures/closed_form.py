"""What float32 leaves of the weights: by differences of the Jaccard curve, and in closed form."""

import matplotlib.pyplot as plt
import torch

import lovasz_embed as le

sizes = [2**power for power in range(10, 23, 2)]
median, zeros, closed = [], [], []
for pixels in sizes:
    errors = torch.linspace(1, 0, pixels, dtype=torch.float64)  # sorted already
    target = (torch.arange(pixels) % 100 == 0).long()  # one pixel in a hundred is foreground
    exact = le.lovasz_weights(errors, target)
    here = le.lovasz_weights(errors.float(), target)
    # The usual way: the curve 1 - IoU in float32, then the differences of neighbours.
    seen, foreground = target.cumsum(0).float(), target.sum()
    union = foreground + torch.arange(1, pixels + 1) - seen
    curve = 1 - (foreground - seen) / union
    differences = torch.cat([curve[:1], curve[1:] - curve[:-1]])
    wanted = exact > 0
    median.append(((differences - exact).abs() / exact)[wanted].median())
    closed.append(((here - exact).abs() / exact)[wanted].median())
    zeros.append(100 * (differences[wanted] == 0).double().mean())

figure, (relative, lost) = plt.subplots(1, 2, figsize=(9, 3.3))
relative.loglog(sizes, median, "o-", color="#D55E00", label="differences in float32")
relative.loglog(sizes, closed, "s-", color="#0072B2", label="closed form in float32")
relative.set(xlabel="pixels in the mask", ylabel="relative error of a weight (median)", ylim=(1e-9, 10))
relative.legend(loc="center right", bbox_to_anchor=(1.0, 0.45))
relative.set_title("How wrong a weight is")
lost.semilogx(sizes, zeros, "o-", color="#D55E00")
lost.semilogx(sizes, [0] * len(sizes), "s-", color="#0072B2")
lost.set(xlabel="pixels in the mask", ylabel="weights rounded to zero, %", ylim=(-3, 100))
lost.set_title("Pixels that lose their gradient")
for axes in (relative, lost):
    axes.grid(visible=True)
    axes.set_xticks([2**10, 2**14, 2**18, 2**22], ["1 k", "16 k", "262 k", "4.2 M"])
    axes.minorticks_off()
