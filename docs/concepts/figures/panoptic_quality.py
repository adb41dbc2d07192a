"""What counts and what does not: a truth with void, a prediction, and the verdict on every segment."""

import matplotlib.pyplot as plt
import torch
from matplotlib.colors import to_rgb
from matplotlib.patches import Patch

import lovasz_embed as le

GROUND, CAR, VOID = 0, 1, 255
rows, columns = torch.meshgrid(torch.arange(60), torch.arange(100), indexing="ij")


def disc(row, column, radius):
    return (rows - row) ** 2 + (columns - column) ** 2 <= (radius + 0.5) ** 2


def picture(instances, void=None):
    instance = torch.zeros(60, 100, dtype=torch.long)
    for number, mask in enumerate(instances, start=1):
        instance[mask] = number
    semantic = torch.where(instance > 0, CAR, GROUND)
    if void is not None:
        semantic[void & (instance == 0)] = VOID
    return le.PanopticResult.from_maps(semantic[None], instance[None], things={CAR})


hood = columns >= 72
truth = picture([disc(17, 18, 11), disc(42, 52, 11)], void=hood)
predicted = [disc(19, 20, 11), disc(44, 22, 9), disc(28, 86, 10)]
prediction = picture(predicted)
quality = le.panoptic_quality(prediction, truth)
cars = quality.per_class

colours = {"TP": "#009E73", "FP": "#D55E00", "FN": "#CC79A7", "not counted": "#56B4E9"}
figure, panels = plt.subplots(1, 3, figsize=(10, 2.6))
marks = [
    ("Truth", truth, [(17, 18, "car 1"), (42, 52, "car 2"), (28, 86, "void")]),
    ("Prediction", prediction, [(19, 20, "car"), (44, 22, "car"), (28, 86, "car")]),
]
for axes, (title, result, texts) in zip(panels, marks, strict=False):
    shown = torch.ones(60, 100, 3) * torch.tensor(to_rgb("#E8E8EC"))
    shown[result.semantic()[0] == VOID] = torch.tensor(to_rgb("#303036"))
    shown[result.instance()[0] > 0] = torch.tensor(to_rgb("#808090"))
    axes.imshow(shown)
    axes.set_title(title)
    for row, column, text in texts:
        axes.text(column, row, text, ha="center", va="center", color="white", fontsize=9)

verdict = torch.ones(60, 100, 3) * torch.tensor(to_rgb("#E8E8EC"))
verdict[hood] = torch.tensor(to_rgb("#303036"))
for mask, kind in zip([disc(42, 52, 11), *predicted], ["FN", "TP", "FP", "not counted"], strict=True):
    verdict[mask] = torch.tensor(to_rgb(colours[kind]))
panels[2].imshow(verdict)
panels[2].set_title(f"Cars: TP {cars.tp[CAR]}, FP {cars.fp[CAR]}, FN {cars.fn[CAR]}, PQ {cars.pq[CAR]:.2f}")
figure.legend(
    handles=[Patch(color=colour, label=kind) for kind, colour in colours.items()],
    loc="outside lower right", ncols=4,
)  # fmt: skip
for axes in panels:
    axes.set(xticks=[], yticks=[])
    for side in ("bottom", "left"):
        axes.spines[side].set_visible(False)
