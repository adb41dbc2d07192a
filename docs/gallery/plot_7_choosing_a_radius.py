"""
Choosing a radius
=================

The radius of the clustering is that of the instance level of the loss, and there is nothing to choose. With an
embedding of unknown scale there is; here is what happens between too small and too large, and who can tell.
"""

import matplotlib.pyplot as plt
import torch

import lovasz_embed as le

# %%
# Nine instances in three dimensions, some nearer to each other than others. Their pixels lie in balls; some pixels
# along the borders are mixtures of two instances, as interpolation makes them.
generator = torch.Generator().manual_seed(2)
centres = torch.tensor([[x, y, 0.0] for x in (0.0, 3.0, 6.5) for y in (0.0, 3.5, 6.5)])
rows, columns = torch.meshgrid(torch.arange(96), torch.arange(96), indexing="ij")
instance = 3 * (rows // 32) + columns // 32
direction = torch.randn(96, 96, 3, generator=generator)
embedding = centres[instance] + 0.5 * direction / direction.norm(dim=-1, keepdim=True) * torch.rand(
    96, 96, 1, generator=generator
)
border = (columns % 32 == 31) & (columns < 95)
share = torch.rand(96, 96, 1, generator=generator)
beside = embedding.roll(-1, dims=1)
embedding = torch.where(border[..., None], share * embedding + (1 - share) * beside, embedding)
embedding = embedding.permute(2, 0, 1)[None]
mask = torch.ones(1, 96, 96, dtype=torch.bool)
truth = le.PanopticResult.from_maps(torch.zeros(1, 96, 96, dtype=torch.long), instance[None] + 1, things={0})

# %%
# Clustering with radii from far too small to far too large. ``margin_ok`` needs no truth: it says whether all means
# that were found are more than two radii apart.
radii = torch.logspace(-1.1, 0.9, 60).tolist()
counts, qualities, fine = [], [], []
for radius in radii:
    clusters = le.cluster_embeddings(embedding, mask, radius=radius, min_size=16)
    result = le.assemble(torch.zeros(1, 96, 96, dtype=torch.long), clusters.labels, things={0})
    counts.append(len(clusters.sizes[0]))
    qualities.append(float(le.panoptic_quality(result, truth).pq))
    fine.append(clusters.margin_ok[0])

estimate = le.estimate_radius(embedding, mask)
print(f"estimated radius {estimate.radius:.2f}, means at least {estimate.separation:.2f} apart")

figure, (upper, lower) = plt.subplots(2, 1, figsize=(8, 5), sharex=True)
upper.semilogx(radii, counts, color="#0072B2")
upper.axhline(9, color="#808088", linewidth=1, linestyle=":")
upper.text(radii[0], 9.8, "9 instances", fontsize=9)
upper.set(ylabel="clusters", ylim=(0, 30))
lower.semilogx(radii, qualities, color="#0072B2")
lower.set(ylabel="panoptic quality", xlabel="radius, embedding units", ylim=(0, 1.05))
for axes in (upper, lower):
    spans = axes.get_xaxis_transform()
    axes.fill_between(radii, 0, 1, where=fine, transform=spans, color="#009E73", alpha=0.15, linewidth=0)
    axes.axvline(estimate.radius, color="#D55E00", linestyle="--", linewidth=1.4)
    axes.grid(visible=True)
    axes.set_xticks([0.1, 0.2, 0.5, 1, 2, 5], ["0.1", "0.2", "0.5", "1", "2", "5"])
    axes.minorticks_off()
upper.plot([], [], color="#D55E00", linestyle="--", linewidth=1.4, label="estimate_radius")
upper.fill_between([], [], color="#009E73", alpha=0.15, label="margin_ok")
upper.legend(loc="upper right")

# %%
# From right to left. A radius that is too large merges neighbours, until everything is one cluster and ``margin_ok`` is
# true again, of the one mean that is left. Below about 2.5 all nine are found; here and there mixed pixels pass as a
# tenth. Below 0.5, the radius of the balls, pixels are left out: the means are still right, and that is all that
# ``margin_ok`` looks at, so look at the share of noise as well. In the end instances fall to pieces.
#
# The estimate comes from the embedding alone: half the smallest distance of two means.
