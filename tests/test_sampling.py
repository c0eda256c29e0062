"""Random structures of the shipped spaces."""

import numpy as np
import pytest

from maenas.errors import SpaceError
from maenas.lowering.costs import num_flops
from maenas.lowering.detector import lower
from maenas.sampling import random_structures
from maenas.spaces import load_space

SPACES = ("res", "csp", "mob")


@pytest.mark.parametrize("name", SPACES)
def test_structures_are_members_and_different(name: str):
    space = load_space(name)
    structures = list(random_structures(space, 40, seed=3))
    assert len({structure.digest for structure in structures}) == 40
    assert [space.why_not(structure) for structure in structures] == [None] * 40


def test_the_seed_decides():
    space = load_space("mob")
    first, again, other = ([s.digest for s in random_structures(space, 5, seed=seed)] for seed in (1, 1, 2))
    assert first == again != other


@pytest.mark.parametrize("name", SPACES)
def test_widths_spread_over_the_range(name: str):
    space = load_space(name)
    structures = list(random_structures(space, 200, seed=0))
    stage = space.stages[-1].out_channels.values
    widths = np.array([structure.backbone.stages[-1].out_channels for structure in structures])
    middle = np.sqrt(stage[0] * stage[-1])
    # Growth limits let later stages lean to large widths, but both halves must be there.
    assert 0.04 < (widths < middle).mean() < 0.96
    depths = {structure.backbone.stages[2].depth for structure in structures}
    assert depths == set(space.stages[2].depth.values.tolist())
    assert len({structure.neck for structure in structures}) > 1


def test_flops_limit_holds():
    space = load_space("res")
    limit = 15e9
    structures = list(random_structures(space, 20, seed=0, max_flops=limit))
    assert max(num_flops(lower(structure)) for structure in structures) <= limit
    with pytest.raises(SpaceError, match=r"space res gave 0 of 2 random structures .* and 0.001 GFLOPs"):
        list(random_structures(space, 2, seed=0, max_flops=1e6))
