"""Trains YOLO11n step by step with its own loss, as asked on stdin.

Run by the Python of an environment in which Ultralytics (AGPL) is installed; no part of this project imports it.
"""

from __future__ import annotations

import json
import os
import sys

import torch

os.environ["YOLO_VERBOSE"] = "False"  # stdout is for answers

from problem import IMAGE_SIZE, NUM_CLASSES, make_boxes, make_images, serve, timed
from ultralytics.cfg import get_cfg
from ultralytics.nn.tasks import DetectionModel


def main() -> None:
    """Build the network, then wait for orders."""
    options = json.loads(sys.argv[1])
    torch.set_num_threads(options["threads"])
    torch.manual_seed(0)
    model = DetectionModel("yolo11n.yaml", ch=3, nc=NUM_CLASSES, verbose=False).train()
    model.args = get_cfg()
    images = torch.from_numpy(make_images()) / 255
    if options.get("channels_last", False):
        model.to(memory_format=torch.channels_last)
        images = images.contiguous(memory_format=torch.channels_last)
    if options.get("keep", False):
        import ctypes

        mallopt = ctypes.CDLL(None).mallopt
        mallopt(-4, 0), mallopt(-1, 2**31 - 1), mallopt(-2, 1 << 28)
    index, boxes, labels = [], [], []
    for image, (corners, classes) in enumerate(make_boxes()):
        xyxy = torch.from_numpy(corners) / IMAGE_SIZE
        boxes.append(torch.cat([(xyxy[:, :2] + xyxy[:, 2:]) / 2, xyxy[:, 2:] - xyxy[:, :2]], dim=1))
        labels.append(torch.from_numpy(classes).float()[:, None])
        index.append(torch.full((len(classes),), float(image)))
    batch = {"img": images, "batch_idx": torch.cat(index), "cls": torch.cat(labels), "bboxes": torch.cat(boxes)}
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, nesterov=True)

    def step() -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=options.get("bf16", False)):
            loss, _ = model(batch)
        optimizer.zero_grad(set_to_none=True)
        loss.sum().backward()
        optimizer.step()

    serve({"step": lambda: timed(step)}, num_params=sum(value.numel() for value in model.parameters()))


if __name__ == "__main__":
    main()
