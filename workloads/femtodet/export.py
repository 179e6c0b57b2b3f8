"""The shipped ONNX structures, made from the torch module. Needs the extra `torch`; not used at run time."""

from __future__ import annotations

import warnings
from pathlib import Path

import onnx
import torch
from onnx import TensorProto, helper

from edgewatt.harness.api import UsageError
from edgewatt.workloads.femtodet.graph import WEIGHTS, extents, structures
from edgewatt.workloads.femtodet.layout import Conv, layout
from edgewatt.workloads.femtodet.network import FemtoDet
from edgewatt.workloads.femtodet.variants import VARIANTS, Variant

_OPSET = 18  # the oldest torch exports to; with this IR version onnxruntime 1.17 reads it
_IR_VERSION = 8
_BLOCK = 16  # channels in onnxruntime's blocked layout on AVX-512


def write_structures(folder: Path) -> list[Path]:
    """The structure files of all variants, made from the torch module into `folder`; UsageError if it takes none."""
    paths = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for variant in VARIANTS.values():
            plain, *wide = structures(variant)
            model = structure(variant)
            made = {plain: model} | {name: widened(model, variant) for name in wide}
            for name, graph in made.items():
                paths.append(folder / name)
                paths[-1].write_bytes(graph.SerializeToString(deterministic=True))
    except OSError as error:
        raise UsageError(
            f"{folder}: the graphs cannot be written there ({error.strerror}); choose a folder that may be written to"
        ) from error
    return paths


def structure(variant: Variant) -> onnx.ModelProto:
    """The inference form as torch exports it, without weights, made free of its size and named after the state dict."""
    net = FemtoDet(variant, "inference").eval()
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter)  # the exporter leaves out biases of zero and merges equal arrays
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own deprecations
        program = torch.onnx.export(
            net,
            (torch.zeros(1, 3, variant.size_px, variant.size_px),),
            input_names=["input"],
            output_names=["cls", "reg", "obj"],
            opset_version=_OPSET,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    exported = program.model_proto.graph
    nodes = _named(list(exported.node), {o.name for o in exported.output})
    constants = _constants(nodes, [t for t in exported.initializer if t.name not in extents(variant)])
    graph = helper.make_graph(
        nodes,
        "femtodet",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 3, "height", "width"])],
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, channels, "rows", "columns"])
            for name, channels in (("cls", len(variant.classes)), ("reg", 4), ("obj", 1))
        ],
        [*_external(variant), *constants],
    )
    return _checked(graph)


def widened(model: onnx.ModelProto, variant: Variant) -> onnx.ModelProto:
    """The same function with maps of fewer than 16 channels filled up with zeros, and no group but depthwise ones.

    Only weights are padded, by nodes that onnxruntime computes once when it loads the graph.
    """
    convs = {c.name: c for c in layout(variant).convs()}
    constants: dict[str, list[int]] = {}
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        if node.op_type == "Conv":
            before, node = _wide_conv(node, convs[node.name], constants)
            nodes += before
        nodes.append(node)
    graph = onnx.GraphProto()
    graph.CopyFrom(model.graph)
    del graph.node[:]
    graph.node.extend(nodes)
    graph.initializer.extend(
        helper.make_tensor(name, TensorProto.INT64, [len(values)], values) for name, values in constants.items()
    )
    return _checked(graph)


def _wide(channels: int) -> int:
    """Channels a map is filled up to; the picture's three are read as they are."""
    return channels if channels == 3 else max(channels, _BLOCK)


def _wide_conv(
    node: onnx.NodeProto, conv: Conv, constants: dict[str, list[int]]
) -> tuple[list[onnx.NodeProto], onnx.NodeProto]:
    """Nodes that make a convolution's weights fit its wider maps, and the convolution that uses them."""
    before: list[onnx.NodeProto] = []
    wide = onnx.NodeProto()
    wide.CopyFrom(node)

    def padded(name: str, pads: list[int], result: str) -> str:
        constants[f"{result}.pads"] = pads
        before.append(helper.make_node("Pad", [name, f"{result}.pads"], [result], name=result))
        return result

    weight, bias = node.input[1], node.input[2]
    depthwise = conv.groups == conv.inputs
    groups = _wide(conv.inputs) if depthwise else 1
    if conv.groups > 1 and not depthwise:
        inputs = conv.inputs // conv.groups
        parts = [f"{weight}.{k}" for k in range(conv.groups)]
        before.append(
            helper.make_node("Split", [weight], parts, name=f"{weight}.parts", axis=0, num_outputs=len(parts))
        )
        rows = [
            padded(part, [0, inputs * k, 0, 0, 0, inputs * (conv.groups - 1 - k), 0, 0], f"{part}.row")
            for k, part in enumerate(parts)
        ]
        weight = f"{weight}.dense"
        before.append(helper.make_node("Concat", rows, [weight], name=weight, axis=0))
    more_in = 0 if depthwise else _wide(conv.inputs) - conv.inputs
    more_out = 0 if conv.norm == "bias" else _wide(conv.outputs) - conv.outputs
    if more_in or more_out:
        weight = padded(weight, [0, 0, 0, 0, more_out, more_in, 0, 0], f"{weight}.wide")
    if more_out:
        bias = padded(bias, [0, more_out], f"{bias}.wide")
    wide.input[1], wide.input[2] = weight, bias
    for attribute in wide.attribute:
        if attribute.name == "group":
            attribute.i = groups
    return before, wide


def _named(nodes: list[onnx.NodeProto], outputs: set[str]) -> list[onnx.NodeProto]:
    """The nodes with names that do not depend on the exporter's version: a convolution's is its key's prefix."""
    renamed: dict[str, str] = {}
    counts: dict[str, int] = {}
    for node in nodes:
        if node.op_type == "Conv":
            name = node.input[1].removesuffix(".weight")
        elif node.op_type == "Relu":
            name = f"{renamed[node.input[0]]}.relu"
        else:
            counts[node.op_type] = counts.get(node.op_type, 0) + 1
            name = f"{node.op_type.lower()}.{counts[node.op_type]}"
        (output,) = node.output
        renamed[output] = output if output in outputs else name
        node.name, node.doc_string = name, ""
        del node.metadata_props[:]
        node.input[:] = [renamed.get(i, i) for i in node.input]
        node.output[:] = [renamed[output]]
    return nodes


def _constants(nodes: list[onnx.NodeProto], tensors: list[TensorProto]) -> list[TensorProto]:
    """The constants that nodes still use, named after the first node that does."""
    named = []
    for tensor in tensors:
        users = [node for node in nodes if tensor.name in node.input]
        if users:
            name = f"{users[0].name}.{list(users[0].input).index(tensor.name)}"
            for node in users:
                node.input[:] = [name if i == tensor.name else i for i in node.input]
            tensor.name, tensor.doc_string = name, ""
            named.append(tensor)
    return named


def _external(variant: Variant) -> list[TensorProto]:
    """The weights as pointers into the file beside the structure."""
    shapes = FemtoDet(variant, "inference").state_dict()
    tensors = []
    for key, (offset, length) in extents(variant).items():
        tensor = TensorProto(
            name=key, data_type=TensorProto.FLOAT, dims=shapes[key].shape, data_location=TensorProto.EXTERNAL
        )
        for k, v in (("location", WEIGHTS), ("offset", offset), ("length", length)):
            tensor.external_data.add(key=k, value=str(v))
        tensors.append(tensor)
    return tensors


def _checked(graph: onnx.GraphProto) -> onnx.ModelProto:
    return helper.make_model(
        graph, producer_name="edgewatt", ir_version=_IR_VERSION, opset_imports=[helper.make_opsetid("", _OPSET)]
    )
