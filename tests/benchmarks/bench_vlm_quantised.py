"""Linear layers of each precision against bfloat16 and float32, for one token and for a prompt, one thread.

All layers work in turns, on several matrices each so that none stays in the cache; ratios are those of medians over
the turns.

    python tests/benchmarks/bench_vlm_quantised.py [--turns 21] [--threads 1] [--inputs 2048] [--outputs 5632]

Needs the extra `vlm`. Target: 8 and 4 bits faster than bfloat16 for one token.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from edgewatt.workloads.vlm import quantised

MATRICES = 6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=21)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--inputs", type=int, default=2048)
    parser.add_argument("--outputs", type=int, default=5632)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"{options.inputs} x {options.outputs}, {options.threads} threads; {torch.backends.cpu.get_cpu_capability()}")
    for dtype in (torch.bfloat16, torch.float16):
        print(f"{dtype} is {'native' if quantised.is_native(dtype) else 'emulated'}")
    layers = {name: [make(options) for _ in range(MATRICES)] for name, make in MAKERS.items()}
    for rows, turns in ((1, options.turns), (200, max(3, options.turns // 4))):
        race(rows, layers, options.inputs, turns)


def race(rows: int, layers: dict[str, list[nn.Module]], inputs: int, turns: int) -> None:
    """Prints a table of what one product takes with so many rows of activations."""
    x = torch.randn(rows, inputs)
    given = {name: x.to(DTYPES.get(name, torch.bfloat16)) for name in layers}
    times: dict[str, list[float]] = {name: [] for name in layers}
    with torch.inference_mode():
        for _ in range(turns):
            for name, made in layers.items():
                if rows > 1 and name == TORCH_INT4:
                    continue
                begun = time.perf_counter()
                for layer in made if rows == 1 else made[:1]:
                    layer(given[name])
                times[name].append((time.perf_counter() - begun) / (MATRICES if rows == 1 else 1))
    medians = {name: statistics.median(t) for name, t in times.items() if t}
    print(f"{rows} rows of activations, medians of {turns} turns")
    for name, median_s in medians.items():
        ratio = medians["bf16 (torch)"] / median_s
        print(f"  {name:24s} {median_s * 1e3:8.2f} ms   {ratio:5.2f} times bf16")


def _weight(options: argparse.Namespace) -> Tensor:
    return torch.randn(options.outputs, options.inputs) * 0.02


def _plain(dtype: torch.dtype) -> Callable[[argparse.Namespace], nn.Module]:
    def make(options: argparse.Namespace) -> nn.Module:
        layer = nn.Linear(options.inputs, options.outputs, bias=False, device="meta")
        layer.weight = nn.Parameter(_weight(options).to(dtype), requires_grad=False)
        return layer

    return make


class TorchInt4(nn.Module):
    """torch's own 4-bit product, which torchao calls too."""

    def __init__(self, options: argparse.Namespace) -> None:
        super().__init__()
        codes = torch.randint(0, 15, (options.outputs, options.inputs), dtype=torch.int32)
        self.packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 1)
        self.scales = torch.full((options.inputs // 32, options.outputs, 2), 1e-3, dtype=torch.bfloat16)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(x, self.packed, 32, self.scales)
        return y


TORCH_INT4 = "int4 (torch, torchao)"
DTYPES = {"fp32 (torch)": torch.float32, "fp16 (torch)": torch.float16, "fp16": torch.float16}
MAKERS: dict[str, Callable[[argparse.Namespace], nn.Module]] = {
    "fp32 (torch)": _plain(torch.float32),
    "bf16 (torch)": _plain(torch.bfloat16),
    "fp16 (torch)": _plain(torch.float16),
    "bf16": lambda o: quantised.HalfLinear(_weight(o).bfloat16(), None),
    "fp16": lambda o: quantised.HalfLinear(_weight(o).half(), None),
    "int8": lambda o: quantised.Linear8(_weight(o), None, exact=False),
    "int8 exact": lambda o: quantised.Linear8(_weight(o), None, exact=True),
    "int4": lambda o: quantised.FastLinear4(_weight(o), None, "away"),
    "int4 exact": lambda o: quantised.Linear4(_weight(o), None, "away"),
    TORCH_INT4: TorchInt4,
}


if __name__ == "__main__":
    main()
