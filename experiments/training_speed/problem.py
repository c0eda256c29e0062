"""The batch that every network learns from, and how a worker is asked for one step; needs numpy alone."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

IMAGE_SIZE = 320
BATCH_SIZE = 16
NUM_CLASSES = 3
WARM_UP_STEPS = 3


def make_images() -> NDArray[np.float32]:
    """(16, 3, 320, 320) in 0 ... 255."""
    shape = (BATCH_SIZE, 3, IMAGE_SIZE, IMAGE_SIZE)
    return np.random.default_rng(0).uniform(0, 255, shape).astype(np.float32)


def make_boxes() -> list[tuple[NDArray[np.float32], NDArray[np.int64]]]:
    """Per image 1 to 25 boxes of 20 to 100 pixels, xyxy, and their labels: about as many as in blood cell images."""
    rng = np.random.default_rng(1)
    images = []
    for _ in range(BATCH_SIZE):
        count = int(rng.integers(1, 26))
        centers, sizes = rng.uniform(0, IMAGE_SIZE, (count, 2)), rng.uniform(20, 100, (count, 2))
        boxes = np.concatenate([centers - sizes / 2, centers + sizes / 2], axis=1).clip(0, IMAGE_SIZE)
        images.append((boxes.astype(np.float32), rng.integers(0, NUM_CLASSES, count)))
    return images


def timed(work: Callable[[], object]) -> str:
    """Wall and CPU seconds of a piece of work."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return f"{time.perf_counter() - wall} {time.process_time() - cpu}"


def serve(steps: dict[str, Callable[[], str]], *, num_params: int) -> None:
    """Run the named step for each line on stdin, and answer with what it says, until stdin ends."""
    for _ in range(WARM_UP_STEPS):
        steps["step"]()
    print(num_params, flush=True)
    for line in sys.stdin:
        print(steps[line.strip()](), flush=True)
