"""What the machine offers to torch; torch is imported when it is asked."""

from __future__ import annotations

from typing import Any


def torch_devices() -> list[dict[str, Any]]:
    """Every device that torch can compute on: the CPU with its threads, then accelerators with their memory in bytes.

    Raises:
        ImportError: torch is missing or does not load.
    """
    import torch

    found: list[dict[str, Any]] = [{"device": "cpu", "name": f"{torch.get_num_threads()} threads", "memory": None}]
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            found.append({"device": f"cuda:{index}", "name": properties.name, "memory": properties.total_memory})
    if torch.backends.mps.is_available():
        found.append({"device": "mps", "name": "Apple GPU", "memory": None})
    return found
