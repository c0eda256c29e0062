"""Trains one of our networks step by step, as asked on stdin."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import torch
from problem import NUM_CLASSES, make_boxes, make_images, serve, timed
from torch import Tensor

from detector.cpu_memory import keep_freed_memory
from detector.criterion import Criterion
from detector.model import build_detector
from detector.targets import Targets
from detector.types import HeadOutput
from maenas.published import load_published
from maenas.structure import load_structure


def main() -> None:
    """Build the network, then wait for orders."""
    options = json.loads(sys.argv[1])
    torch.set_num_threads(options["threads"])
    torch.manual_seed(0)
    if options.get("keep", True):
        keep_freed_memory()
    name = options["network"]
    structure = load_structure(name) if Path(name).is_file() else load_published(name)
    model = build_detector(replace(structure, head=replace(structure.head, num_classes=NUM_CLASSES))).train()
    order = torch.channels_last if options.get("channels_last", True) else torch.contiguous_format
    model.to(memory_format=order)
    network = torch.compile(model) if options.get("compile") else model
    images = torch.from_numpy(make_images()).contiguous(memory_format=order)
    boxes = [(torch.from_numpy(boxes), torch.from_numpy(labels)) for boxes, labels in make_boxes()]
    targets = Targets.from_lists([entry[0] for entry in boxes], [entry[1] for entry in boxes])
    criterion = Criterion()
    fused = options.get("fused") or None
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, nesterov=True, fused=fused)

    def loss_of(output: HeadOutput) -> Tensor:
        return criterion(output, targets, strides=model.strides, num_classes=NUM_CLASSES).total

    def step() -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=options.get("bf16", False)):
            output = network(images)
        optimizer.zero_grad(set_to_none=True)
        loss_of(output).backward()
        optimizer.step()

    def loss_alone() -> str:
        """Assignment and losses, forward and backward down to the logits."""
        with torch.no_grad():
            output = network(images)
        leaves = [value.detach().requires_grad_() for value in (output.cls_logits, output.box_logits)]
        return timed(lambda: loss_of(HeadOutput(*leaves, output.level_shapes)).backward())

    num_params = sum(value.numel() for value in model.parameters())
    serve({"step": lambda: timed(step), "loss": loss_alone}, num_params=num_params)


if __name__ == "__main__":
    main()
