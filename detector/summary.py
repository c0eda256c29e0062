"""Parts of a network with output shapes, parameters and multiply-accumulates, counted on the modules themselves."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class PartSummary:
    """One line of a summary.

    Attributes:
        name: Dotted name of the module, such as `backbone.stages.0`.
        kind: Its class.
        out_shapes: Shapes of what it returns.
        params: Trainable values in it.
        macs: Multiply-accumulates of its convolutions and linear layers for this input.
    """

    name: str
    kind: str
    out_shapes: tuple[Shape, ...]
    params: int
    macs: int


@dataclass(frozen=True, slots=True)
class Summary:
    """What a network costs, part by part; `str()` gives a table.

    Attributes:
        input_shape: (B, channels, H, W) it was counted for.
        parts: Stem, stages, fusion nodes and head convolutions in execution order.
        params: Trainable values of the whole network.
        macs: Multiply-accumulates of the whole network; FLOPs are twice that.
        deployed: Whether branches are merged and batch norms folded.
    """

    input_shape: Shape
    parts: tuple[PartSummary, ...]
    params: int
    macs: int
    deployed: bool

    def __str__(self) -> str:
        header = ("part", "module", "output", "params", "MMACs")
        rows = [
            (
                part.name,
                part.kind,
                " ".join("x".join(map(str, shape[1:])) for shape in part.out_shapes),
                f"{part.params:,}",
                f"{part.macs / 1e6:,.1f}",
            )
            for part in self.parts
        ]
        widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
        lines = [
            "  ".join(
                cell.ljust(width) if column < 3 else cell.rjust(width)
                for column, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in (header, *rows)
        ]
        form = "deployed" if self.deployed else "training form"
        size = "x".join(map(str, self.input_shape))
        lines.append(
            f"{self.params / 1e6:.3f} M parameters, {2 * self.macs / 1e9:.3f} GFLOPs (2 x MACs) at {size}, {form}"
        )
        return "\n".join(lines)


def summarize(model: nn.Module, input_shape: Shape, *, deployed: bool) -> Summary:
    """Count a detector on shapes alone: nothing is computed, the model is not touched.

    Args:
        model: A `Detector`.
        input_shape: (B, channels, H, W).
        deployed: What to state about its form.
    """
    # A copy without data: shapes flow through it and cost nothing.
    shadow = copy.deepcopy(model).to("meta").eval()
    names = dict(_parts(shadow))
    macs: dict[str, int] = defaultdict(int)
    shapes: dict[str, tuple[Shape, ...]] = {}
    total = 0
    owners: dict[nn.Module, list[str]] = defaultdict(list)

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        cost = _macs(module, inputs[0], output)
        total += cost
        for name in owners[module]:
            macs[name] += cost

    def note(name: str, output: Tensor | list[Tensor]) -> None:
        tensors = [output] if isinstance(output, Tensor) else output
        shapes[name] = tuple(tuple(tensor.shape) for tensor in tensors)

    for name, part in names.items():
        for module in part.modules():
            owners[module].append(name)
        part.register_forward_hook(lambda _module, _inputs, output, name=name: note(name, output))
    for module in shadow.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(count)
    with torch.no_grad():
        shadow(torch.empty(input_shape, device="meta"))
    parts = tuple(
        PartSummary(name, type(part).__name__, shapes[name], _params(part), macs[name])
        for name, part in names.items()
        if name in shapes
    )
    return Summary(input_shape, parts, _params(model), total, deployed)


def _parts(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Every first module below backbone, neck and head that is no mere list, in execution order of the detector."""

    def walk(prefix: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
        for name, child in module.named_children():
            if isinstance(child, nn.ModuleList | nn.ModuleDict):
                yield from walk(f"{prefix}.{name}", child)
            elif not (isinstance(child, nn.Sequential) and len(child) == 0):
                yield f"{prefix}.{name}", child

    for name, part in model.named_children():
        yield from walk(name, part)


def _params(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _macs(module: nn.Module, x: Tensor, output: Tensor) -> int:
    if isinstance(module, nn.Conv2d):
        height, width = module.kernel_size
        return output.numel() * (module.in_channels // module.groups) * height * width
    return output.numel() * x.shape[-1]
