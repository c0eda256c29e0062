"""What is measured for a table: which networks, in which role, and where their files lie.

Networks of the role `kernels` are run with layer times and give samples of single operators; `calibration` networks tie
sums of operators to whole latencies; `test` and `foreign` ones are never used for either and say how good the table is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from maenas.errors import ProfileError
from maenas.files import make_folder, write_bytes_atomically
from maenas.lowering.costs import num_flops
from maenas.lowering.detector import lower
from maenas.profiling.probes import probe_network
from maenas.sampling import random_structures
from maenas.spaces import SearchSpace
from maenas.structure import Structure

Role = Literal["kernels", "calibration", "test", "foreign"]


LIGHT, LIGHT_SIDE = "light probe", 224
"""Group of the light probes, and the side of their images."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much a campaign measures.

    Attributes:
        space_networks: Random networks of the spaces, for samples of operators.
        probes: Hand-built chains of operators over wider ranges, for more such samples.
        light_probes: Such chains of little work on 224 x 224 images, where starting an operator is most of its time.
        calibration: Whole networks that tie sums to latencies.
        test: Whole networks for the error report.
        max_gflops: Networks with more are left out (FLOPs are 2 x MACs): they would take the whole time.
    """

    space_networks: int = 18
    probes: int = 8
    light_probes: int = 8
    calibration: int = 12
    test: int = 12
    max_gflops: float = 25.0


MIN_GIVEN = 3
"""Quantised files that a table needs."""

QUICK = Sizes(space_networks=7, probes=3, light_probes=2, calibration=5, test=5)


@dataclass(frozen=True, slots=True)
class Network:
    """One network of a campaign.

    Attributes:
        key: Its name, also that of its file.
        role: What its timings are used for.
        group: Where it comes from: the space's name, `probe`, `light probe`, `published`,
            `foreign` or `quantised`.
        path: Its ONNX file.
        structure: Its structure, where it is a detector of ours.
    """

    key: str
    role: Role
    group: str
    path: Path
    structure: Structure | None = None


Exporter = Callable[[Structure, Path], None]
"""Writes the deployed detector of a structure, random weights, as ONNX with the outputs `maps`."""


def plan_networks(
    spaces: Sequence[SearchSpace],
    sizes: Sizes,
    *,
    seed: int,
    folder: Path,
    extra_test: Iterable[Structure] = (),
    foreign: Iterable[Path] = (),
) -> list[Network]:
    """The networks of a campaign; nothing is written yet.

    Args:
        spaces: Search spaces the table is for, image size and classes applied.
        sizes: How many of which.
        seed: Equal seeds give equal networks.
        folder: Where their files go.
        extra_test: Further detectors for the error report, such as published ones.
        foreign: ONNX files of other networks for an error report of their own.

    Raises:
        SpaceError: A space holds too few structures within the limit on FLOPs.
    """
    wanted: list[tuple[Role, int]] = [
        ("kernels", sizes.space_networks),
        ("calibration", sizes.calibration),
        ("test", sizes.test),
    ]
    networks: list[Network] = []
    total = sum(count for _, count in wanted)
    pools = []
    for index, space in enumerate(spaces):
        share = -(-total // len(spaces)) + len(wanted)
        limit = max(sizes.max_gflops * 1e9, 2 * smallest_flops(space))
        pools.append(iter(list(random_structures(space, share, seed=seed + index, max_flops=limit))))
    for role, count in wanted:
        for position in range(count):
            index = position % len(spaces)
            structure = next(pools[index])
            networks.append(_network(structure, role, spaces[index].name, folder))
    known = {network.key for network in networks}
    for structure in extra_test:
        network = _network(structure, "test", "published", folder)
        if network.key not in known:
            networks.append(network)
    for number in range(sizes.probes):
        key = f"probe-{seed + number}"
        networks.append(Network(key, "kernels", "probe", folder / f"{key}.onnx"))
    for number in range(sizes.light_probes):
        key = f"light-{seed + number}"
        networks.append(Network(key, "kernels", LIGHT, folder / f"{key}.onnx"))
    for path in foreign:
        networks.append(Network(path.stem, "foreign", "foreign", path))
    return networks


def _network(structure: Structure, role: Role, group: str, folder: Path) -> Network:
    key = f"{group}-{structure.digest}"
    return Network(key, role, group, folder / f"{key}.onnx", structure)


def given_networks(quantised: Sequence[Path], *, foreign: Iterable[Path] = ()) -> list[Network]:
    """The networks of a campaign of given quantised files: their layers are timed, and their whole latencies count.

    Raises:
        ProfileError: Too few files, or two of one name.
    """
    if len(quantised) < MIN_GIVEN:
        raise ProfileError(
            f"{len(quantised)} quantised files are given; expected {MIN_GIVEN} or more, each predicted from the others"
        )
    networks = [Network(path.stem, "kernels", "quantised", path) for path in quantised]
    networks += [Network(path.stem, "foreign", "foreign", path) for path in foreign]
    for network in networks:
        if sum(network.key == other.key for other in networks) > 1:
            raise ProfileError(f"{network.path}: another file is called {network.key} too; expected different names")
    return networks


def smallest_flops(space: SearchSpace) -> float:
    """FLOPs of the smallest detector that a short draw from the space finds."""
    return min(float(num_flops(lower(structure))) for structure in random_structures(space, 30, seed=0))


def write_networks(
    networks: Sequence[Network],
    *,
    seed: int,
    image_sides: Sequence[int],
    export: Exporter,
    progress: Callable[[int], None],
) -> None:
    """Write the files of a plan that are not there yet, each whole or not at all.

    Raises:
        OutputError: A file cannot be written.
        ProfileError: A given file is not there.
    """
    for done, network in enumerate(networks):
        progress(done)
        if network.group in ("foreign", "quantised"):
            if not network.path.is_file():
                raise ProfileError(f"{network.path}: not found; expected an ONNX file")
        elif not network.path.exists():
            make_folder(network.path.parent)
            if network.structure is not None:
                export(network.structure, network.path)
            else:
                number, light = int(network.key.rpartition("-")[2]), network.group == LIGHT
                side = LIGHT_SIDE if light else image_sides[(number - seed) % len(image_sides)]
                model = probe_network(number, image_side=side, light=light)
                write_bytes_atomically(network.path, model.SerializeToString())
    progress(len(networks))
