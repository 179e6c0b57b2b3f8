"""Weights into networks: what is held, in which precision, by which kernels, and how much memory the loading takes."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("onnx")

from safetensors.torch import load_file  # noqa: E402

from edgewatt.harness.api import UsageError  # noqa: E402
from edgewatt.workloads.imp.variants import VARIANTS as IMP  # noqa: E402
from edgewatt.workloads.mobilevlm.variants import VARIANTS as MOBILEVLM  # noqa: E402
from edgewatt.workloads.vlm import layouts, load, memory, network, quantised, synthetic  # noqa: E402
from edgewatt.workloads.vlm.architecture import Architecture, Text, Vision, of_config  # noqa: E402

pytestmark = [pytest.mark.needs_torch, pytest.mark.usefixtures("one_thread")]

LLAMA = Architecture(
    system="mobilevlm",
    vision=Vision("clip", 64, 96, 3, 2, heads=2, patch=14, image_px=56, eps=1e-5),
    text=Text("llama", 64, 160, 2, heads=2, kv_heads=2, vocab=300, positions=512, eps=1e-6, rope_theta=1e4),
    projector="ldpnet",
    image_mode="pad",
    template="v1",
    max_length=None,
)
PHI = replace(
    LLAMA, system="imp", vision=replace(LLAMA.vision, kind="siglip", layers=2), projector="mlp2x_gelu",
    text=replace(LLAMA.text, kind="phi", rotary_share=0.5),
)  # fmt: skip


def loaded(architecture, precision, **options):
    vlm = network.empty(architecture)
    return vlm, load.load(vlm, synthetic.tensors(vlm.official_keys(), 0), precision, **options)


def logits_of(vlm):
    pixels = torch.rand(1, 3, 56, 56, generator=torch.Generator().manual_seed(0)) * 2 - 1
    logits, cache = vlm.prefill(vlm.spliced([1, 7, -200, 5, 6], vlm.encode(pixels)))
    return torch.stack([logits, vlm.decode(9, cache)]).float()


@pytest.fixture(scope="module")
def reference():
    """Logits in float32 with the same weights."""
    return {a.system: logits_of(loaded(a, "fp32")[0]) for a in (LLAMA, PHI)}


@pytest.mark.parametrize("architecture", [LLAMA, PHI], ids=["mobilevlm", "imp"])
@pytest.mark.parametrize(
    ("precision", "exact", "error"),
    [("bf16", False, 0.03), ("fp16", False, 0.01), ("int8", False, 0.05), ("int8", True, 0.05), ("int4", False, 0.4),
     ("int4", True, 0.4)],
)  # fmt: skip
def test_every_precision_runs_and_is_near_float32(reference, architecture, precision, exact, error):
    """`error`: of the logits, root mean square, relative. 4 bits have steps of max / 7: a twelfth of the deviation."""
    vlm, facts = loaded(architecture, precision, exact=exact)
    found, wanted = logits_of(vlm), reference[architecture.system]
    assert ((found - wanted).square().mean() / wanted.square().mean()).sqrt() < error
    assert facts["precision"] == precision and facts["compute_dtype"] in ("bfloat16", "float16")
    assert vlm.dtype == (torch.float16 if precision == "fp16" else torch.bfloat16)


def test_fast_and_exact_int4_differ_by_less_than_quantising_does(reference):
    fast, exact = (logits_of(loaded(PHI, "int4", exact=e)[0]) for e in (False, True))
    quantising = (exact - reference["imp"]).square().mean()
    assert 0 < (fast - exact).square().mean() < quantising / 4


# Bytes by hand, for PHI: rows * (columns + 2) in int8, rows * ceil(columns / 32) * 18 in int4 (28 in onnxruntime's
# hands, for what is no table), the rest 2 each.
def bytes_by_hand(architecture, each):
    return sum(each(k, s) for k, s in layouts.official_keys(architecture).items() if layouts.is_run(architecture, k))


def plain(shape, size):
    return int(np.prod(shape)) * size


def in_groups(size):
    def each(key, shape):
        is_table = "embed_tokens" in key or "position_embedding" in key
        group = 18 if is_table else size
        return shape[0] * -(-shape[1] // 32) * group if len(shape) == 2 else plain(shape, 2)

    return each


@pytest.mark.parametrize("architecture", [LLAMA, PHI], ids=["mobilevlm", "imp"])
@pytest.mark.parametrize(
    ("precision", "exact", "each"),
    [
        ("fp32", False, lambda k, s: plain(s, 4)),
        ("bf16", False, lambda k, s: plain(s, 2)),
        ("int8", False, lambda k, s: s[0] * (s[1] + 2) if len(s) == 2 else plain(s, 2)),
        ("int4", True, in_groups(18)),
        ("int4", False, in_groups(28)),
    ],
)
def test_model_bytes_are_those_of_what_is_held(architecture, precision, exact, each):
    vlm, facts = loaded(architecture, precision, exact=exact)
    buffers = sum(b.nbytes for b in vlm.buffers())  # rotary frequencies and position numbers, which are computed
    assert 0 < buffers < 1000
    assert facts["model_bytes"] - buffers == bytes_by_hand(architecture, each)
    fast = not exact
    assert memory.Asked(architecture, precision, 10, fast=fast).needed().weights == bytes_by_hand(architecture, each)


def test_parameters_are_counted_with_and_without_those_never_run():
    _, facts = loaded(LLAMA, "bf16")
    whole = sum(plain(s, 1) for s in layouts.official_keys(LLAMA).values())
    # CLIP's last block: four matrices of 64 x 64, two of 64 x 96, their biases, two norms; and the norm after it
    idle = 4 * (64 * 64 + 64) + (64 * 96 + 96) + (96 * 64 + 64) + 4 * 64 + 2 * 64
    assert facts["parameters"] == whole and facts["parameters_run"] == whole - idle
    assert facts["not_run"] == 16 + 2


def test_kernels_are_named(monkeypatch):
    monkeypatch.setattr(quantised, "is_native", lambda dtype: dtype == torch.float32)
    assert loaded(PHI, "fp32")[1]["kernels"] == {"fp32": "torch's product in float32"}
    _, facts = loaded(PHI, "bf16")
    assert facts["kernels"]["bf16"].startswith("weights of 16 bits made float32 in blocks")
    assert facts["native_dtype"] is False
    monkeypatch.setattr(quantised, "is_native", lambda dtype: True)
    _, facts = loaded(PHI, "bf16")
    assert facts["kernels"] == {"bf16": "torch's product in bfloat16"} and facts["native_dtype"] is True
    assert "onnxruntime MatMulNBits" in loaded(PHI, "int4")[1]["kernels"]["int4"]
    assert "onnxruntime" not in loaded(PHI, "int4", exact=True)[1]["kernels"]["int4"]
    assert "_weight_int8pack_mm" in loaded(PHI, "int8")[1]["kernels"]["int8"]


def test_any_order_and_any_dtype_gives_the_same_network():
    keys = layouts.official_keys(PHI)
    first, second = network.empty(PHI), network.empty(PHI)
    load.load(first, synthetic.tensors(keys, 0, torch.float32), "int8")
    backwards = list(synthetic.tensors(keys, 0, torch.float32))[::-1]
    load.load(second, ((k, t.double()) for k, t in backwards), "int8")
    assert torch.equal(logits_of(first), logits_of(second))


def test_progress_reaches_all_parameters():
    steps = []
    _, facts = loaded(LLAMA, "bf16", progress=lambda done, of: steps.append((done, of)))
    assert steps[-1] == (facts["parameters"],) * 2 and steps == sorted(steps)
    assert len(steps) == len(layouts.official_keys(LLAMA))


@pytest.mark.needs_shared
@pytest.mark.parametrize("case", ["mobilevlm/tiny_ldpnet", "imp/tiny_phi2", "imp/tiny_qwen2", "imp/tiny_phi3"])
def test_golden_networks_answer_in_float32_as_they_should_and_run_in_all_precisions(shared, case):
    folder = shared / "data" / "golden" / case
    config = json.loads((folder / "config.json").read_text())
    system, tower = case.partition("/")[0], None
    if system == "mobilevlm":
        tower = json.loads((folder / "vision_config.json").read_text())
    architecture = of_config(system, config, tower)
    weights = load_file(folder / ("model.safetensors" if tower else "weights.safetensors"))
    golden = np.load(folder / "outputs.npz")
    embeds = torch.from_numpy(golden["inputs_embeds"])
    for precision, least in (("fp32", 0.999999), ("bf16", 0.999), ("int8", 0.99), ("int4", 0.8)):
        vlm = network.empty(architecture)
        load.load(vlm, weights.items(), precision)
        projected = vlm.encode(torch.from_numpy(golden["pixel_values"])).float().flatten()
        wanted = torch.from_numpy(golden["projector_output"]).flatten()
        assert torch.cosine_similarity(projected, wanted, 0) > least
        logits, _ = vlm.prefill(embeds.to(vlm.dtype))
        if precision == "fp32":
            assert torch.allclose(logits, torch.from_numpy(golden["logits"][0, -1]), atol=1e-3, rtol=1e-4)
        else:
            assert torch.cosine_similarity(logits.float(), torch.from_numpy(golden["logits"][0, -1]), 0) > least


# ---------------------------------------------------------------------------------------------------------------------
# Wrong weights


def given(architecture, **changed):
    weights = dict(synthetic.tensors(layouts.official_keys(architecture), 0))
    return {k: t for k, t in {**weights, **changed}.items() if t is not None}


def refused(weights, precision, match):
    with pytest.raises(UsageError, match=match):
        load.load(network.empty(PHI), weights.items(), precision)


def test_missing_and_misshapen_weights_are_named():
    refused(given(PHI, **{"lm_head.bias": None}), "bf16", r"1 tensors are missing \(lm_head\.bias\)")
    refused(given(PHI, **{"lm_head.bias": torch.ones(299)}), "int4", r"lm_head\.bias is \[299\], wanted \[300\]")


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_no_numbers_are_refused(bad):
    weight = synthetic.tensor("lm_head.weight", (300, 64), 0)
    weight[17, 5] = bad
    refused(given(PHI, **{"lm_head.weight": weight}), "int4", r"lm_head\.weight holds values that are not finite")


@pytest.mark.parametrize("precision", ["fp16", "int4"])
def test_weights_too_large_for_float16_are_refused_where_it_is_used(precision):
    weights = given(PHI, **{"lm_head.bias": torch.full((300,), 70000.0)})
    refused(weights, precision, r"lm_head\.bias has values up to 7e\+04, float16 ends at 65504; set precision to bf16")
    load.load(network.empty(PHI), weights.items(), "bf16")


def test_keys_the_network_has_not_are_told():
    weights = given(PHI, **{f"more.{i}": torch.ones(1) for i in range(9)})
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    facts = load.load(network.empty(PHI), weights.items(), "bf16")
    assert facts["unexpected"] == [f"more.{i}" for i in range(5)] and facts["unexpected_count"] == 9


# ---------------------------------------------------------------------------------------------------------------------
# Memory

LARGE = replace(
    LLAMA,
    text=replace(LLAMA.text, hidden=1024, mlp=2816, layers=7, heads=8, kv_heads=8, vocab=32000),
)  # 152 M parameters: 305 MB in 16 bits

MEASURE = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from edgewatt.workloads.vlm import checkpoint, load, network, quantised
import onnxruntime, onnx.helper

def peak(line="VmHWM"):
    return next(int(l.split()[1]) * 1024 for l in open("/proc/self/status") if l.startswith(line))

opened = checkpoint.open(Path(sys.argv[1]), "mobilevlm")
vlm = network.empty(opened.architecture())
before = peak("VmRSS")
Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
facts = load.load(vlm, opened.tensors(vlm.official_keys()), sys.argv[2])
print(facts["model_bytes"], peak() - before, peak("VmRSS") - before)
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A checkpoint of some 300 MB in both kinds of file, each in a folder."""
    from safetensors.torch import save_file

    folders = {}
    weights = dict(synthetic.tensors(layouts.official_keys(LARGE), 0))
    text, vision = LARGE.text, LARGE.vision
    config = {
        "model_type": "mobilevlm", "vocab_size": text.vocab, "hidden_size": text.hidden,
        "num_hidden_layers": text.layers,
        "intermediate_size": text.mlp, "num_attention_heads": text.heads, "mm_projector_type": "ldpnet",
        "mm_vision_tower": "vision_config.json",
    }  # fmt: skip
    tower = {
        "hidden_size": vision.hidden, "intermediate_size": vision.mlp, "num_hidden_layers": vision.layers,
        "num_attention_heads": vision.heads, "image_size": vision.image_px,
    }  # fmt: skip
    for kind in ("safetensors", "bin"):
        folder = folders[kind] = tmp_path_factory.mktemp(kind)
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "vision_config.json").write_text(json.dumps(tower))
    save_file(weights, folders["safetensors"] / "model.safetensors")
    torch.save(weights, folders["bin"] / "pytorch_model.bin")
    return folders


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize(
    ("kind", "precision"), [("safetensors", "bf16"), ("bin", "bf16"), ("safetensors", "int8"), ("bin", "int4")]
)
def test_loading_holds_the_model_and_one_tensor(large, kind, precision):
    """The bound is 1.1 times the model and 1 GB; here a model so small that the GB would hide a second copy.

    The largest tensor, the table or the head, has 66 MB in the checkpoint.
    """
    run = subprocess.run(
        [sys.executable, "-c", MEASURE, str(large[kind]), precision], capture_output=True, text=True, check=True
    )
    model_bytes, peak, held = map(int, run.stdout.split())
    shares = {"bf16": 2, "int8": 1, "int4": 0.9}
    assert 140e6 * shares[precision] < model_bytes < 165e6 * shares[precision]
    assert held < 1.1 * model_bytes + 40e6
    assert peak < 1.1 * model_bytes + 66e6 * 2.5


@pytest.mark.parametrize(
    ("variant", "precision", "least_gb", "most_gb"),
    [
        (MOBILEVLM["v1-1.7b"], "bf16", 3.4, 5.0),  # weights 3.37 GB, and the process and a prompt
        (MOBILEVLM["v1-1.7b"], "fp32", 6.7, 8.5),
        (IMP["v1-3b"], "bf16", 6.4, 8.0),
        (IMP["v1-3b"], "int4", 1.8, 4.5),
    ],
)  # fmt: skip
def test_needed_memory_is_that_of_the_weights_and_some(variant, precision, least_gb, most_gb):
    assert least_gb * 1e9 < memory.Asked(variant.architecture, precision, 1000).needed().peak < most_gb * 1e9


def test_the_cache_is_counted():
    """MobileLLaMA 1.4B takes 196,608 bytes a position in 16 bits (24 layers, 2048 wide, keys and values)."""
    v1 = MOBILEVLM["v1-1.7b"].architecture
    long, short = (memory.Asked(v1, "bf16", n).needed() for n in (2000, 1000))
    assert long.cache - short.cache == 1000 * 196_608
    assert memory.Asked(v1, "fp32", 1000).needed().cache == 2 * short.cache


def test_too_little_memory_is_refused_with_both_figures_and_what_would_fit():
    architecture = MOBILEVLM["v1-1.7b"].architecture
    with pytest.raises(UsageError) as error:
        memory.check(memory.Asked(architecture, "fp32", 500), left=5_000_000_000)
    assert "precision=fp32 takes 7." in str(error.value) and "5.00 GB are left" in str(error.value)
    assert "set precision to bf16" in str(error.value)
    with pytest.raises(UsageError, match="set precision to int8"):
        memory.check(memory.Asked(architecture, "bf16", 500), left=3_000_000_000)
    with pytest.raises(UsageError, match="free some, or choose a smaller variant"):
        memory.check(memory.Asked(architecture, "int4", 500), left=1_000_000_000)
    assert memory.check(memory.Asked(architecture, "int4", 500), left=8_000_000_000).peak < 3e9


def group(root, path, **files):
    folder = root / "sys/fs/cgroup" / path
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)


def test_the_limit_of_a_control_group_counts(tmp_path, monkeypatch):
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("0::/user/app\n")
    monkeypatch.setattr(memory.psutil, "virtual_memory", lambda: replace_available(10_000))
    assert memory.available(tmp_path) == 10_000
    group(tmp_path, "user/app", memory__max="max\n", memory__current="700\n")
    group(tmp_path, "user", memory__max="5000\n", memory__current="3000\n", memory__stat="anon 9\ninactive_file 500\n")
    assert memory.available(tmp_path) == 2500  # the parent's; cached files make room


def test_the_limit_of_an_older_control_group_counts(tmp_path, monkeypatch):
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("5:cpu,cpuacct:/x\n4:memory:/docker/abc\n")
    monkeypatch.setattr(memory.psutil, "virtual_memory", lambda: replace_available(10_000))
    # in a container the path is the host's, and the group lies at the top
    group(tmp_path, "memory", memory__limit_in_bytes="4000\n", memory__usage_in_bytes="1500\n")
    assert memory.available(tmp_path) == 2500
    group(tmp_path, "memory", memory__limit_in_bytes="9223372036854771712\n")
    assert memory.available(tmp_path) == 10_000


def replace_available(count):
    return type("Memory", (), {"available": count})()
