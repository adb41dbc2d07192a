"""
A COCO picture
==============

Reading COCO panoptic files, the tree of a real picture, and the result in COCO's form.

The embedding is trained by itself, without a network: four numbers for every other pixel. So this is not a
prediction. It shows what a network is asked for on a picture with stuff, things and void, and what is read off when
it delivers.

The picture comes from the folder that ``LOVASZ_EMBED_DATA`` names; where there is none, a street is painted.
"""

import os
from pathlib import Path

import matplotlib.pyplot as plt
import torch

import lovasz_embed as le
from lovasz_embed import formats, synthetic
from lovasz_embed.visualise import Palette, embedding_colours, overlay

folder = Path(os.environ.get("LOVASZ_EMBED_DATA", "data")) / "coco_panoptic_open"
if folder.is_dir():
    data = formats.open_dataset(folder, format="coco-panoptic", split="val")
    position = 9
    image, truth, things = data.image(position), data.result(position), data.things
    names = [category.name for category in data.categories]
    categories = data.categories
    print(f"{data.images[position].file_name} of COCO, {len(names)} categories")
else:
    scene = synthetic.street_scene(7, size=(240, 320))
    image = (scene.image * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    things, names = synthetic.THINGS, list(synthetic.CLASSES)
    truth = le.PanopticResult.from_maps(
        scene.semantic[None], scene.instance[None], things=things, crowd=scene.crowd[None]
    )
    categories = tuple(formats.Category(k, name, k in things) for k, name in enumerate(names))
    print("no COCO pictures here: a street is painted")

# %%
# The labels of the tree, on every other pixel.
semantic, instance = (labels[:, ::2, ::2].contiguous() for labels in (truth.semantic(), truth.instance()))
levels = le.panoptic_levels(semantic, instance, things=things)
generator = torch.Generator().manual_seed(0)
start = 0.1 * torch.randn(1, 4, *semantic.shape[1:], generator=generator)
rows, columns = (torch.linspace(-3, 3, length) for length in semantic.shape[1:])
start[:, :2] += torch.stack(torch.meshgrid(rows, columns, indexing="ij"))  # what looks alike lies in another place
embedding = start.requires_grad_()
optimizer = torch.optim.Adam([embedding], lr=0.25)
for _ in range(240):
    loss = le.hierarchical_lovasz_hinge(embedding, levels).loss
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print(f"loss {float(loss.detach()):.3f}")

# %%
# Back to full size, and read off as any embedding would be.
whole = embedding.detach().repeat_interleave(2, 2).repeat_interleave(2, 3)[..., : image.shape[0], : image.shape[1]]
means = le.class_means(embedding.detach(), semantic, num_classes=len(names)).means
result = le.segment(whole, means, things=things, radius=1.0, min_thing_area=32, min_stuff_area=32)
quality = le.panoptic_quality(result, truth)
print(f"{len(result.segments[0])} segments, {len(truth.segments[0])} in the truth; PQ {float(quality.pq):.2f}")

palette = Palette.of(names, things)
figure, panels = plt.subplots(2, 2, figsize=(10, 10 * image.shape[0] / image.shape[1] + 1.0))
shown = {
    "picture": image,
    "truth": overlay(image, truth, palette=palette),
    "embedding": embedding_colours(whole[0]),
    "read off": overlay(image, result, palette=palette),
}
for axes, (title, picture) in zip(panels.flat, shown.items(), strict=True):
    axes.imshow(picture)
    axes.set_title(title)
    axes.axis("off")
present = sorted({segment.category for segment in truth.segments[0]})
swatches = [plt.Rectangle((0, 0), 1, 1, color=palette.colours[k] / 255) for k in present]
figure.legend(swatches, [names[k] for k in present], loc="outside lower center", ncols=5)

# %%
# Striped pixels of the truth are void: nobody labelled them, so nothing is asked of them, and the score does not look
# at what is read off there. What is small suffers, because only every other pixel was trained and small segments are
# dropped.
#
# The result in COCO's form, a record for the JSON and a picture whose colours are ids; read back, it is the same.
# ``formats.write_coco_panoptic`` writes the files.
category_ids = [category.id for category in categories]
record, png = result.to_coco(image_ids=[1], category_ids=category_ids)[0]
print(record["segments_info"][0])
again = le.PanopticResult.from_coco([record], [png], category_ids, things)
print(torch.equal(again.segmentation, result.segmentation))
