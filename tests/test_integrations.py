"""At home in other libraries: each test runs with the library itself, and is skipped by name where it is absent.

`pip install -c constraints.txt -e ".[test,integrations]"` installs all of them beside a CPU torch, without
torchvision. What cannot be installed that way is checked by the form of its calls in the how-to pages.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import lovasz_embed as le
from lovasz_embed.synthetic import THINGS as STREET_THINGS
from lovasz_embed.synthetic import street_scene

THINGS = frozenset({1, 3})


@pytest.fixture
def pair() -> tuple[le.PanopticResult, le.PanopticResult]:
    """Two pictures of 4 categories in blocks of 6 × 6 pixels, and a prediction with some blocks wrong or void."""
    generator = torch.Generator().manual_seed(3)

    def blocks(high: int) -> Tensor:
        return torch.randint(0, high, (2, 4, 5), generator=generator)

    def paint(semantic: Tensor, instance: Tensor) -> le.PanopticResult:
        large = (labels.repeat_interleave(6, 1).repeat_interleave(6, 2) for labels in (semantic, instance))
        return le.PanopticResult.from_maps(*large, things=THINGS)

    semantic, instance = blocks(4), blocks(3)
    truth = paint(semantic, instance)
    semantic[0, 0, :2], instance[1, 3] = 255, 7
    return paint(semantic, instance), truth


# torchmetrics


def test_a_collection_of_torchmetrics_counts_what_panoptic_quality_counts(pair: Any) -> None:
    torchmetrics = pytest.importorskip("torchmetrics")
    from lovasz_embed.integrations.torchmetrics import PanopticQuality

    prediction, truth = pair
    metrics = torchmetrics.MetricCollection({"panoptic": PanopticQuality(4, THINGS, per_class=True)}, prefix="val_")
    expected = le.panoptic_quality(prediction, truth, num_classes=4, things=THINGS)
    assert 0 < expected.pq < 1

    alone = metrics(prediction[0], truth[0])  # forward: the batch's own scores, and it is added
    first = le.panoptic_quality(prediction[0], truth[0], num_classes=4, things=THINGS)
    torch.testing.assert_close(alone["val_pq"].item(), first.pq)
    metrics.update(prediction[1], truth[1])
    scores = metrics.compute()
    for name in ("pq", "sq", "rq", "pq_things", "pq_stuff", "ap50", "miou"):
        assert scores[f"val_{name}"].shape == ()
        torch.testing.assert_close(scores[f"val_{name}"].item(), getattr(expected, name), equal_nan=True)
    torch.testing.assert_close(scores["val_pq_per_class"], expected.per_class.pq.float(), equal_nan=True)

    restored = metrics.clone(prefix="val_")
    restored.reset()
    assert not restored["panoptic"].counts.any()
    restored.load_state_dict(metrics.state_dict())
    restored["panoptic"]._update_count = 1  # a state that was loaded counts as updated
    assert torch.equal(restored["panoptic"].counts, metrics["panoptic"].counts)


def test_processes_add_their_counts_when_torchmetrics_computes(pair: Any) -> None:
    pytest.importorskip("torchmetrics")
    from lovasz_embed.integrations.torchmetrics import PanopticQuality

    prediction, truth = pair
    other = PanopticQuality(4, THINGS)
    other.update(prediction[1], truth[1])
    metric = PanopticQuality(
        4,
        THINGS,
        distributed_available_fn=lambda: True,
        dist_sync_fn=lambda counts, group=None: [counts, other.counts],  # what all_gather returns on rank 0 of two
    )
    metric.update(prediction[0], truth[0])
    expected = le.panoptic_quality(prediction, truth, num_classes=4, things=THINGS)
    torch.testing.assert_close(metric.compute()["pq"].item(), expected.pq)
    own = le.panoptic_quality(prediction[0], truth[0], num_classes=4, things=THINGS).per_class.tp.sum()
    assert metric.counts[0].sum() == own  # after it the process has its own counts again


def test_the_metric_refuses_what_panoptic_quality_refuses() -> None:
    pytest.importorskip("torchmetrics")
    from lovasz_embed.integrations.torchmetrics import PanopticQuality

    with pytest.raises(ValueError, match=r"things must be categories from 0 to 1, got \[5\]"):
        PanopticQuality(2, things={5})


# Lightning


def test_lightning_trains_and_logs(tmp_path: Path) -> None:
    lightning = pytest.importorskip("lightning.pytorch")
    pytest.importorskip("torchmetrics")
    from lovasz_embed.integrations.torchmetrics import PanopticQuality

    class Embedder(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Conv2d(3, 4, 3, padding=1)
            self.ncm = le.NearestClassMean(num_classes=6, dim=4)
            self.quality = PanopticQuality(6, things=STREET_THINGS)

        def training_step(self, batch: tuple[Tensor, Tensor, Tensor], _: int) -> Tensor:
            picture, semantic, instance = batch
            embedding = self.net(picture)
            self.ncm.update(embedding.detach(), semantic)
            out = le.hierarchical_lovasz_hinge(embedding, le.panoptic_levels(semantic, instance, things=STREET_THINGS))
            self.log("loss", out.loss)
            return out.loss

        def validation_step(self, batch: tuple[Tensor, Tensor, Tensor], _: int) -> None:
            picture, semantic, instance = batch
            result = le.segment(self.net(picture), self.ncm.means, things=STREET_THINGS, radius=1.0)
            self.quality.update(result, le.PanopticResult.from_maps(semantic, instance, things=STREET_THINGS))

        def on_validation_epoch_end(self) -> None:
            self.log_dict(self.quality.compute())
            self.quality.reset()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    data = [street_scene(seed, size=(32, 64)) for seed in range(2)]
    loader: Any = torch.utils.data.DataLoader([scene[:3] for scene in data], batch_size=1)  # type: ignore[arg-type]
    model = Embedder()
    before = model.net.weight.detach().clone()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning's advice on workers, loggers and checkpoints
        trainer = lightning.Trainer(
            default_root_dir=tmp_path,
            accelerator="cpu",
            max_steps=2,
            num_sanity_val_steps=0,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(model, loader, loader)
    assert trainer.global_step == 2
    assert not torch.equal(model.net.weight, before)
    assert torch.isfinite(trainer.callback_metrics["loss"])
    assert 0 <= trainer.callback_metrics["miou"] <= 1


@pytest.mark.slow
def test_the_page_on_torchrun_runs_on_two_processes(tmp_path: Path) -> None:
    page = Path(__file__).resolve().parents[1] / "docs" / "howto" / "training-loops.md"
    if not page.is_file():
        pytest.skip("docs/howto is absent: run the tests from a checkout")
    (script,) = re.findall(r"```python\n(# train\.py.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "train.py").write_text(script)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "train.py"]
    package = Path(le.__file__).resolve().parents[1]
    environment = {**os.environ, "PYTHONPATH": str(package), "OMP_NUM_THREADS": "1"}
    answer = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)
    assert answer.returncode == 0, answer.stderr
    # Two processes write to one pipe: a line may stand behind another one.
    lines = dict(re.findall(r"rank (\d): (PQ \S+ of \d+ pixels)", answer.stdout))
    assert sorted(lines) == ["0", "1"]
    assert lines["0"] == lines["1"]  # each holds the class means and the score of all


# transformers and supervision


def mask2former_outputs() -> Any:
    """What a Mask2Former of 4 classes would return for 2 pictures: 6 queries, each sure of a strip of its own."""
    from transformers.models.mask2former.modeling_mask2former import Mask2FormerForUniversalSegmentationOutput

    generator = torch.Generator().manual_seed(0)
    winner = torch.randint(0, 5, (2, 6), generator=generator)  # 4 classes and "no object"
    classes = 6.0 * torch.nn.functional.one_hot(winner, 5) + torch.rand(2, 6, 5, generator=generator)
    masks = torch.full((2, 6, 6, 12), -9.0)
    for query in range(6):
        masks[:, query, :, 2 * query : 2 * query + 2] = 9.0
    return Mask2FormerForUniversalSegmentationOutput(class_queries_logits=classes, masks_queries_logits=masks)


@pytest.fixture
def mask2former() -> list[dict[str, Any]]:
    """The dictionaries that transformers makes of them, stuff of class 0 fused."""
    pytest.importorskip("transformers")
    module = pytest.importorskip("transformers.models.mask2former.image_processing_pil_mask2former")
    processor = module.Mask2FormerImageProcessorPil()
    outputs: list[dict[str, Any]] = processor.post_process_panoptic_segmentation(
        mask2former_outputs(), threshold=0.3, label_ids_to_fuse={0}, target_sizes=[(12, 24), (12, 24)]
    )
    return outputs


def test_the_dictionary_is_that_of_transformers(mask2former: list[dict[str, Any]], pair: Any) -> None:
    ours = pair[0].to_transformers()
    for theirs, own in zip(mask2former, ours, strict=True):
        assert theirs["segments_info"]
        assert own.keys() == theirs.keys()
        assert own["segmentation"].dtype == theirs["segmentation"].dtype
        assert own["segmentation"].ndim == theirs["segmentation"].ndim
        assert own["segments_info"][0].keys() == theirs["segments_info"][0].keys()
        kinds = [{name: type(value) for name, value in d["segments_info"][0].items()} for d in (own, theirs)]
        assert kinds[0] == kinds[1]


def test_a_model_of_transformers_is_scored(mask2former: list[dict[str, Any]]) -> None:
    result = le.PanopticResult.from_transformers(mask2former, things={1, 2, 3})
    for picture, output in zip(result, mask2former, strict=True):
        assert torch.equal(picture.segmentation[0], output["segmentation"].int().clamp(min=0))
        assert {s.id: (s.category, s.score) for s in picture.segments[0]} == {
            s["id"]: (s["label_id"], s["score"]) for s in output["segments_info"]
        }
    assert le.panoptic_quality(result, result).pq == 1.0


def test_dictionaries_go_there_and_back_without_transformers(pair: Any) -> None:
    assert le.PanopticResult.from_transformers(pair[0].to_transformers(), things=THINGS) == pair[0]
    nothing = {"segmentation": torch.full((3, 4), -1.0), "segments_info": []}  # transformers, where no mask is left
    assert not le.PanopticResult.from_transformers([nothing], things=THINGS).segmentation.any()
    lost = {"id": 9, "label_id": 1, "score": 1.0}  # and a segment that lost its last pixel
    assert le.PanopticResult.from_transformers([nothing | {"segments_info": [lost]}], things=THINGS).segments == ((),)
    with pytest.raises(ValueError, match="segmentation must"):
        le.PanopticResult.from_transformers([nothing | {"segmentation": torch.ones(3, 4)}], things=THINGS)


def test_supervision_takes_the_dictionary(pair: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it would rather have OpenCV
        supervision = pytest.importorskip("supervision")
    result = pair[0][0]
    found = supervision.Detections.from_transformers(result.to_transformers()[0])
    segments = result.segments[0]
    assert len(found) == len(segments) > 3
    assert found.class_id.tolist() == [s.category for s in segments]
    np.testing.assert_array_equal(found.mask.sum((1, 2)), [s.area for s in segments])
    np.testing.assert_allclose(found.confidence, [s.score for s in segments], rtol=1e-6)  # float32 there


# COCO instances


def coco_truth(result: le.PanopticResult) -> dict[str, Any]:
    height, width = result.segmentation.shape[1:]
    return {
        "images": [{"id": i, "height": height, "width": width, "file_name": f"{i}.png"} for i in range(len(result))],
        "categories": [{"id": c, "name": str(c)} for c in sorted(THINGS)],
        "annotations": result.to_coco_instances(range(len(result))),
    }


@pytest.mark.parametrize("library", ["pycocotools", "hotcoco"])
@pytest.mark.parametrize("seed", range(4))
def test_run_lengths_are_those_of_coco(library: str, seed: int) -> None:
    mask = pytest.importorskip(f"{library}.mask")
    generator = np.random.default_rng(seed)
    semantic = generator.integers(0, 3, (1, *generator.integers(1, 70, 2)))  # runs of a pixel, runs of many
    semantic = semantic.repeat(generator.integers(1, 9), 1).repeat(generator.integers(1, 900 // semantic.shape[2]), 2)
    maps = torch.from_numpy(semantic)
    result = le.PanopticResult.from_maps(maps, torch.ones_like(maps), things={0, 1, 2})
    annotations = result.to_coco_instances([5])
    assert len(annotations) == len(np.unique(semantic))
    for annotation, segment in zip(annotations, result.segments[0], strict=True):
        own = (semantic[0] == segment.category).astype(np.uint8)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # pycocotools, of NumPy
            runs = mask.encode(np.asfortranarray(own))["counts"]
            np.testing.assert_array_equal(mask.decode(annotation["segmentation"]), own)
        assert annotation["segmentation"]["counts"] == (runs if isinstance(runs, str) else runs.decode())
        assert annotation["area"] == own.sum()


def test_things_alone_become_instances_with_ids_of_their_own(pair: Any) -> None:
    result = pair[1]
    names = [7, 300, 12, 90]
    annotations = result.to_coco_instances(["a", "b"], category_ids=names, first_id=11)
    expected = [(i, s) for i, picture in zip("ab", result.segments, strict=True) for s in picture if s.is_thing]
    assert [a["id"] for a in annotations] == list(range(11, 11 + len(expected)))
    assert [(a["image_id"], a["category_id"]) for a in annotations] == [(i, names[s.category]) for i, s in expected]
    assert json.loads(json.dumps(annotations)) == annotations
    volume = le.PanopticResult(torch.zeros(1, 2, 2, 2, dtype=torch.int32), ((),))
    with pytest.raises(ValueError, match=r"segmentation must have shape \(B, H, W\) to become COCO annotations"):
        volume.to_coco_instances([1])


def test_pycocotools_scores_the_annotations(pair: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    coco = pytest.importorskip("pycocotools.coco")
    cocoeval = pytest.importorskip("pycocotools.cocoeval")
    prediction, truth = pair
    (tmp_path / "truth.json").write_text(json.dumps(coco_truth(truth)))
    data = coco.COCO(tmp_path / "truth.json")

    def ap(result: le.PanopticResult) -> float:
        evaluation = cocoeval.COCOeval(data, data.loadRes(result.to_coco_instances(range(len(result)))), "segm")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        capsys.readouterr()
        return float(evaluation.stats[0])

    assert ap(truth) == 1.0
    assert 0 < ap(prediction) < 1


# kornia, MONAI and their like: the values of others, where conventions are the same


def test_kornia_users_get_their_values() -> None:
    losses = pytest.importorskip("kornia.losses")
    logits, target = torch.randn(3, 4, 9, 11), torch.randint(0, 3, (3, 9, 11))  # class 3 is absent
    ours = le.lovasz_softmax(logits, target, classes="all", per_image=True, ignore_index=None)
    torch.testing.assert_close(ours, losses.lovasz_softmax_loss(logits, target))
    mask = (target == 1).long()
    torch.testing.assert_close(le.lovasz_hinge(logits[:, 0], mask), losses.lovasz_hinge_loss(logits[:, :1], mask))


def test_monai_volumes_and_channels_go_in() -> None:
    losses = pytest.importorskip("monai.losses")
    logits = torch.randn(2, 3, 6, 7, 8, requires_grad=True)  # (B, C, D, H, W)
    label = torch.randint(0, 3, (2, 1, 6, 7, 8))  # MONAI keeps a channel axis on labels
    dice = losses.DiceCELoss(to_onehot_y=True, softmax=True)(logits, label)
    loss = dice + le.LovaszSoftmax(ignore_index=None)(logits, label[:, 0])
    (gradient,) = torch.autograd.grad(loss, logits)
    assert gradient.shape == logits.shape
    assert gradient.abs().sum() > 0
    onehot = torch.nn.functional.one_hot(label[:, 0], 3).movedim(-1, 1)
    hinge = le.lovasz_hinge(logits, onehot, multilabel=True)  # as MONAI with sigmoid=True: a mask per channel
    apart = [le.lovasz_hinge(logits[:, c], onehot[:, c]) for c in range(3)]
    torch.testing.assert_close(hinge, torch.stack(apart).mean())


def test_monai_tensors_with_metadata_give_what_plain_ones_give() -> None:
    meta = pytest.importorskip("monai.data").MetaTensor
    values, semantic, instance = torch.randn(1, 4, 4, 5, 6), torch.randint(0, 3, (1, 4, 5, 6)), torch.ones(1, 4, 5, 6)

    def scores(wrap: Any) -> list[Tensor]:
        embedding, categories = wrap(values).requires_grad_(), wrap(semantic)
        levels = le.panoptic_levels(categories, wrap(instance.int()), things={1, 2})
        losses = [
            le.lovasz_softmax(embedding, categories),
            le.lovasz_hinge(embedding[:, 0], categories == 1),
            le.lovasz_hinge(embedding[:, 0], categories == 1, method="binned"),
            le.hierarchical_lovasz_hinge(embedding, levels).loss,
        ]
        (gradient,) = torch.autograd.grad(sum(losses), embedding)
        means = le.class_means(embedding.detach(), categories, num_classes=3).means
        result = le.segment(embedding.detach(), means, things={1, 2}, radius=1.0)
        clusters = le.cluster_embeddings(embedding, categories == 1, radius=1.0)
        answers = [*losses, gradient, means, result.segmentation, clusters.labels]
        return [torch.as_tensor(answer).detach() for answer in answers]

    for with_metadata, without in zip(scores(meta), scores(torch.clone), strict=True):
        np.testing.assert_array_equal(with_metadata.numpy(), without.numpy())


def test_a_volume_goes_from_labels_to_its_quality() -> None:
    """(B, D, depth, height, width), without any other library."""
    semantic = torch.zeros(1, 6, 8, 8, dtype=torch.long)
    instance = torch.zeros(1, 6, 8, 8, dtype=torch.int32)
    semantic[:, 1:5, 1:7, 1:7] = 1
    instance[:, 1:5, 1:7, 1:4], instance[:, 1:5, 1:7, 4:7] = 1, 2
    truth = le.PanopticResult.from_maps(semantic, instance, things={1})
    at = torch.tensor([[0.0, 0.0], [9.0, 0.0], [9.0, 3.0]])  # background and two instances in two dimensions
    embedding = at[instance.long()].movedim(-1, 1).requires_grad_()
    levels = le.panoptic_levels(semantic, instance, things={1})
    le.hierarchical_lovasz_hinge(embedding, levels).loss.backward()
    assert embedding.grad is not None
    assert embedding.grad.shape == embedding.shape
    means = le.class_means(embedding.detach(), semantic, num_classes=2).means
    result = le.segment(embedding.detach(), means, things={1}, radius=1.0)
    assert le.panoptic_quality(result, truth).pq == 1.0
