"""Tools that make what is measured, or what measures: models to deploy, and the native agent."""

from __future__ import annotations

from pathlib import Path

import click

from edgewatt.harness.commands.terminal import say


@click.group()
def convert() -> None:
    """Tools of the workloads: checkpoints to deployable models."""


@convert.command(name="femtodet")
@click.option("--checkpoint", type=click.Path(path_type=Path), help="An mmcv .pth or a .safetensors file.")
@click.option("--variant", type=click.Choice(["voc", "coco_large"]), default="voc", show_default=True)
@click.option("--graphs", is_flag=True, help="Export the packaged graph structures anew from the torch code.")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="Folder to write into.")
def convert_femtodet(checkpoint: Path | None, variant: str, graphs: bool, output: Path) -> None:
    """FemtoDet as a deployable ONNX graph with every BatchNorm folded."""
    from edgewatt.harness.api import UsageError
    from edgewatt.workloads.femtodet import checkpoint as checkpoints
    from edgewatt.workloads.femtodet import fold, graph
    from edgewatt.workloads.femtodet.variants import VARIANTS

    chosen = VARIANTS[variant]
    if graphs:
        try:
            from edgewatt.workloads.femtodet import export as exporting
        except ImportError as error:
            raise UsageError(f"making graphs needs {error.name}; pip install 'edgewatt[torch]'") from error
        written = exporting.write_structures(output)
    elif checkpoint is not None:
        written = [graph.write(output, fold.folded(checkpoints.load(checkpoint, chosen), chosen), chosen)]
    else:
        raise UsageError("convert femtodet: name a --checkpoint, or ask for --graphs")
    for path in written:
        say(str(path))


@click.group()
def agent() -> None:
    """The program that samples and runs models on devices without Python."""


@agent.command(name="build")
@click.option("--abi", default="arm64-v8a", show_default=True, help="The phone's: arm64-v8a, armeabi-v7a, x86_64.")
@click.option(
    "--ndk", type=click.Path(path_type=Path), help="Android's NDK; without it arm64-v8a gets the sampler alone."
)
@click.option("--onnxruntime-include", "include", type=click.Path(path_type=Path), envvar="EDGEWATT_ORT_INCLUDE",
              help="Folder with onnxruntime_c_api.h, to run models.")  # fmt: skip
def build_agent(abi: str, ndk: Path | None, include: Path | None) -> None:
    """Compile the native agent for phones of one kind; it is then found by itself (docs/native-agent.md)."""
    from edgewatt.devices.android import build

    say(str(build.build(abi, ndk=ndk, include=include)))
