"""The layout has the published keys, parameters and multiply-accumulates."""

import hashlib
import json

import pytest

from edgewatt.workloads.femtodet import cost
from edgewatt.workloads.femtodet.layout import layout, state_layout
from edgewatt.workloads.femtodet.variants import COCO_CLASSES, VARIANTS, VOC_CLASSES

OFFICIAL_FORMS = {"training": "train_state_dict", "deploy": "deploy_state_dict"}


@pytest.mark.parametrize(
    ("variant", "form", "count"),
    [
        ("voc", "training", 68_774),
        ("voc", "deploy", 66_145),
        ("voc", "inference", 64_657),
        ("coco_large", "training", 732_834),
        ("coco_large", "deploy", 722_741),
        ("coco_large", "inference", 717_909),
    ],
)
def test_parameters_are_the_published_ones(variant, form, count):
    assert cost.parameters(VARIANTS[variant], form) == count


@pytest.mark.parametrize(
    ("variant", "millions"),
    [("voc", {320: 42.41, 416: 71.67, 640: 169.64}), ("coco_large", {320: 306.85, 416: 518.58, 640: 1227.42})],
)
def test_multiply_accumulates_are_the_published_ones(variant, millions):
    assert {s: round(cost.macs(VARIANTS[variant], s) / 1e6, 2) for s in millions} == millions


# sha256 of "key shape dtype" lines, made from the official models' state dicts (the golden manifest).
@pytest.mark.parametrize(
    ("variant", "form", "digest"),
    [
        ("voc", "training", "23b0e600061aee60"),
        ("voc", "deploy", "bdc3c8334a1f0c8b"),
        ("coco_large", "training", "cd61fdd22c99c863"),
        ("coco_large", "deploy", "9adecd6d2a96e85b"),
    ],
)
def test_keys_shapes_and_their_order_are_the_official_ones(variant, form, digest):
    lines = (f"{k} {list(shape)} {dtype}" for k, (shape, dtype) in state_layout(VARIANTS[variant], form).items())
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16] == digest


@pytest.mark.needs_shared
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("form", OFFICIAL_FORMS)
def test_keys_and_shapes_equal_the_manifest(shared, variant, form):
    manifest = json.loads((shared / "data/golden/femtodet/manifest.json").read_text())[variant]
    official = {k: (tuple(v["shape"]), v["dtype"]) for k, v in manifest[OFFICIAL_FORMS[form]].items()}
    assert state_layout(VARIANTS[variant], form) == official


def test_the_residual_of_the_first_stage_depends_on_the_width():
    assert layout(VARIANTS["voc"]).stages[0][0].residual
    assert not layout(VARIANTS["coco_large"]).stages[0][0].residual


def test_there_are_thirteen_boundary_enhancements():
    assert sum(c.norm == "ibe" for c in layout(VARIANTS["voc"]).convs()) == 13


def test_class_names_are_counted_and_ordered():
    assert len(VOC_CLASSES) == len(set(VOC_CLASSES)) == 20
    assert len(COCO_CLASSES) == len(set(COCO_CLASSES)) == 80
    assert sorted(VOC_CLASSES) == list(VOC_CLASSES)
    # by COCO's category numbers 1, 18, 44 and 90 with the gaps taken out
    assert [COCO_CLASSES[k] for k in (0, 16, 39, 79)] == ["person", "dog", "bottle", "toothbrush"]
