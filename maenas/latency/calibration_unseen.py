"""The test set of the calibrations: latencies printed in the paper's tables that no fit has used.

Their networks are the published structures and the neck variants that the paper's ablation tables describe, rebuilt by
our own lowering; a rebuild whose arithmetic differs from the printed one is shown but not counted.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from maenas.latency.calibration_facts import read_published
from maenas.latency.calibration_report import Calibration, TestedNetwork
from maenas.lowering.costs import num_flops
from maenas.lowering.detector import lower
from maenas.resources import data_folder
from maenas.structure import load_structure

if TYPE_CHECKING:
    from rich.table import Table

UNSEEN: dict[str, tuple[str, dict[str, Any]]] = {
    "DAMO-YOLO-L": ("damo-yolo-l", {}),
    "DAMO-YOLO-S neck depth 2 width (192 192 192)": (
        "damo-yolo-s",
        {"num_blocks": 2, "hidden_ratio": 1.0, "out_channels": (192, 192, 192)},
    ),
    "DAMO-YOLO-S neck depth 2 width (128 256 512)": ("damo-yolo-s", {"num_blocks": 2, "hidden_ratio": 1.0}),
    "DAMO-YOLO-S neck depth 3 width (160 160 160)": (
        "damo-yolo-s",
        {"num_blocks": 3, "hidden_ratio": 1.0, "out_channels": (160, 160, 160)},
    ),
    "DAMO-YOLO-S queen-fusion none": ("damo-yolo-s", {"extra_edges": "none"}),
    "DAMO-YOLO-S queen-fusion upsampling only": ("damo-yolo-s", {"extra_edges": "up"}),
    "DAMO-YOLO-S queen-fusion both": ("damo-yolo-s", {"extra_edges": "both"}),
    "DAMO-YOLO-S fusion Conv": ("damo-yolo-s", {"fusion": "conv"}),
    "DAMO-YOLO-S fusion CSP": ("damo-yolo-s", {"fusion": "csp"}),
    "DAMO-YOLO-Nl": ("damo-yolo-nl", {}),
}
"""Networks no fit has seen: the shipped structure and what the ablation changes in its neck."""

SAME_GFLOPS = 0.025
"""A rebuilt network further than this from its printed GFLOPs is another network; it is listed but not counted."""


@dataclass(frozen=True, slots=True)
class Unseen:
    """A network in no fit: the comparison, and whether the rebuilt network is the published one."""

    result: TestedNetwork
    gflops: float
    published_gflops: float

    @property
    def counted(self) -> bool:
        """Its arithmetic is the published network's."""
        return abs(self.gflops / self.published_gflops - 1) <= SAME_GFLOPS

    def to_dict(self) -> dict[str, object]:
        """Plain values for JSON."""
        result = {
            name: value if isinstance(value, str) else round(value, 4) for name, value in asdict(self.result).items()
        }
        return result | {
            "gflops": self.gflops,
            "published_gflops": self.published_gflops,
            "counted": self.counted,
        }


def unseen_networks(calibration: Calibration) -> list[Unseen]:
    """The test rows of a device whose network our own lowering can rebuild, and how far off the calibration is."""
    networks = []
    for row in read_published(calibration.device, use="test"):
        if row.model not in UNSEEN:
            continue
        name, changes = UNSEEN[row.model]
        structure = load_structure(data_folder("structures") / f"{name}.json")
        ops = lower(replace(structure, neck=replace(structure.neck, **changes)))
        (result,) = calibration.evaluate([(row.model, row.latency_ms, ops)])
        networks.append(Unseen(result, round(float(num_flops(ops)) / 1e9, 2), row.published_gflops))
    return networks


def mean_abs(unseen: list[Unseen]) -> float:
    """Mean absolute relative error of the counted networks."""
    errors = [abs(network.result.error) for network in unseen if network.counted]
    return sum(errors) / len(errors)


def unseen_table(unseen: list[Unseen]) -> Table:
    """The test rows side by side with their predictions."""
    from rich.table import Table

    table = Table("network in no fit", "published", "predicted", "one sigma", "error", "GFLOPs (published)")
    for network in unseen:
        test = network.result
        table.add_row(
            test.name,
            f"{test.published_ms:.2f}",
            f"{test.predicted_ms:.2f}",
            f"{test.sigma_ms:.2f}",
            f"{test.error:+.1%}" if network.counted else f"({test.error:+.1%})",
            f"{network.gflops:.1f} ({network.published_gflops:.1f})",
        )
    counted = sum(network.counted for network in unseen)
    table.caption = f"mean error over {counted} networks {mean_abs(unseen):.1%}; in brackets: not the same network"
    return table
