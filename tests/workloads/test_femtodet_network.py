"""The torch module equals the official model in all its forms. The losses wait for training: no test of them yet."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from edgewatt.workloads.femtodet import cost, fold
from edgewatt.workloads.femtodet.checkpoint import synthetic
from edgewatt.workloads.femtodet.layout import Conv, state_layout
from edgewatt.workloads.femtodet.variants import VARIANTS
from support.plain_femtodet import forward

torch = pytest.importorskip("torch")
network = pytest.importorskip("edgewatt.workloads.femtodet.network")

pytestmark = pytest.mark.needs_torch

UNITS = Path(__file__).parent.parent / "data" / "femtodet"
PARTS = ("cls", "reg", "obj")


def net_of(state, variant, form="training"):
    net = network.FemtoDet(VARIANTS[variant], form)
    net.load_state_dict({k: torch.from_numpy(np.array(v)) for k, v in state.items()}, strict=True)
    return net.eval()


def maps(net, pictures):
    with torch.inference_mode():
        return [y.numpy() for y in net(torch.from_numpy(pictures))]


@pytest.fixture(scope="module", params=list(VARIANTS))
def golden(request, shared):
    folder = shared / "data/golden/femtodet" / request.param
    names = ("weights_train", "weights_deploy", "outputs_train", "outputs_deploy")
    return request.param, *(load_file(folder / f"{n}.safetensors") for n in names)


def assert_maps_equal(found, outputs, atol=1e-3):
    for part, array in zip(PARTS, found, strict=True):
        np.testing.assert_allclose(array, outputs[f"{part}.0"], rtol=0, atol=atol, err_msg=part)


@pytest.mark.needs_shared
def test_training_form_gives_the_official_maps_at_every_level(golden):
    variant, weights, _, outputs, _ = golden
    net = net_of(weights, variant)
    with torch.inference_mode():
        backbone = net.backbone(torch.from_numpy(outputs["input"]))
        neck = net.neck(backbone)
        head = net.bbox_head(neck)
    for k, level in enumerate(backbone):
        np.testing.assert_allclose(level.numpy(), outputs[f"backbone.{k}"], rtol=0, atol=1e-3)
    np.testing.assert_allclose(neck.numpy(), outputs["neck.0"], rtol=0, atol=1e-3)
    assert_maps_equal([y.numpy() for y in head], outputs)


@pytest.mark.needs_shared
def test_deploy_weights_load_and_give_the_official_maps(golden):
    variant, _, weights, source, outputs = golden
    assert_maps_equal(maps(net_of(weights, variant, "deploy"), source["input"]), outputs)


@pytest.mark.needs_shared
def test_merging_gives_the_official_deploy_weights_and_maps(golden):
    variant, weights, deploy_weights, outputs, deploy_outputs = golden
    merged = net_of(weights, variant).merged()
    state = merged.state_dict()
    assert set(state) == set(deploy_weights)
    for key, array in deploy_weights.items():
        np.testing.assert_allclose(state[key].numpy(), array, rtol=0, atol=1e-5, err_msg=key)
    assert_maps_equal(maps(merged, outputs["input"]), deploy_outputs)


@pytest.mark.needs_shared
@pytest.mark.parametrize("form", ["training", "deploy"])
def test_folding_all_normalisation_keeps_the_maps(golden, form):
    variant, weights, deploy_weights, outputs, _ = golden
    state = weights if form == "training" else deploy_weights
    assert_maps_equal(maps(net_of(state, variant, form).folded(), outputs["input"]), outputs)


@pytest.mark.parametrize("unit", range(3))
def test_boundary_enhancement_and_its_merge_equal_the_official_unit(unit):
    about = json.loads((UNITS / "ibe_unit.json").read_text())[unit]
    data = load_file(UNITS / "ibe_unit.safetensors")
    own = {k.removeprefix(f"{unit}."): v for k, v in data.items() if k.startswith(f"{unit}.")}
    channels = about["channels"]
    shape = Conv("unit", channels, channels, kernel=3, stride=about["stride"], groups=channels, norm="ibe")
    module = network.BoundaryEnhancement(shape).eval()
    state = {k.removeprefix("sd."): np.array(v) for k, v in own.items() if k.startswith("sd.")}
    module.load_state_dict({k: torch.from_numpy(v) for k, v in state.items()}, strict=True)
    with torch.inference_mode():
        np.testing.assert_allclose(module(torch.from_numpy(own["x"])).numpy(), own["y"], rtol=0, atol=1e-5)

    weight, bias = fold.merged_ibe({f"unit.{k}": v for k, v in state.items()}, "unit")
    np.testing.assert_allclose(weight, own["merged.weight"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(bias, own["merged.bias"], rtol=0, atol=1e-5)
    merged = network.MergedEnhancement(shape).eval()
    merged.load_state_dict(
        {"rbr_reparam.weight": torch.tensor(weight).float(), "rbr_reparam.bias": torch.tensor(bias).float()}
    )
    with torch.inference_mode():
        np.testing.assert_allclose(merged(torch.from_numpy(own["x"])).numpy(), own["y"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("form", ["training", "deploy", "inference"])
def test_module_has_exactly_the_keys_of_the_layout(variant, form):
    net = network.FemtoDet(VARIANTS[variant], form)
    found = {k: (tuple(v.shape), str(v.dtype).removeprefix("torch.")) for k, v in net.state_dict().items()}
    assert found == state_layout(VARIANTS[variant], form)
    assert sum(p.numel() for p in net.parameters()) == cost.parameters(VARIANTS[variant], form)


def test_multiply_accumulates_of_a_forward_pass_equal_the_formula():
    net, total = network.FemtoDet(VARIANTS["voc"], "deploy").eval(), 0

    def count(module, inputs, output):
        nonlocal total
        total += math.prod(module.weight.shape[1:]) * output.numel()

    for module in net.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(count)
    maps(net, np.zeros((1, 3, 416, 416), np.float32))
    assert total == cost.macs(VARIANTS["voc"], 416)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_form_equals_the_description_written_out(variant):
    state = synthetic(VARIANTS[variant], 11)
    picture = np.random.default_rng(2).normal(0, 1, (1, 3, 64, 96)).astype(np.float32)
    wanted = forward(state, picture[0])
    net = net_of(state, variant)
    for form in (net, net.merged(), net.folded(), net.merged().folded()):
        for found, map_ in zip(maps(form, picture), wanted, strict=True):
            np.testing.assert_allclose(found[0], map_, rtol=0, atol=1e-3)


def test_initialisation_is_seeded_and_starts_with_rare_objects():
    a, b, c = (network.FemtoDet(VARIANTS["voc"], seed=s).state_dict() for s in (1, 1, 2))
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert not torch.equal(a["backbone.conv1.conv.weight"], c["backbone.conv1.conv.weight"])
    for part, bias in (("cls", -4.5951), ("reg", 0.0), ("obj", -4.5951)):
        assert a[f"bbox_head.multi_level_conv_{part}.0.bias"].numpy() == pytest.approx(bias, abs=1e-4)
    assert a["backbone.layer2.0.conv.1.theta"].item() == 0


def test_only_a_training_form_is_merged():
    with pytest.raises(ValueError, match="deploy form"):
        network.FemtoDet(VARIANTS["voc"], "deploy").merged()
