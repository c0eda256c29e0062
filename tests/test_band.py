"""Drawing networks of about equal latency: within the band, different, repeatable, and corrected by measurements."""

from __future__ import annotations

import statistics

import numpy as np
import pytest
from search_cases import content_of, made_table, write_space

from maenas.band import Band, draw_band, draw_wide
from maenas.budgets import Budget
from maenas.errors import BudgetError
from maenas.latency.predict import predict
from maenas.lowering.detector import lower
from maenas.sampling import random_structures
from maenas.search import resolve_request
from maenas.spaces import load_space

WIDTH = 0.06


def _stage(out, hidden, depth, **others):
    low, high = out
    widths = {"min": low, "max": high, "divisor": 8}
    hiddens = {"min": 8, "max": hidden, "divisor": 8}
    return {
        "stride": 2,
        "out_channels": widths,
        "hidden_channels": hiddens,
        "depth": {"min": 1, "max": depth},
        **others,
    }


STAGES = [_stage((8, 16), 16, 2), _stage((16, 32), 24, 2), _stage((16, 48), 24, 3), _stage((32, 64), 32, 2, spp=True)]
CONTENT = content_of("res", max_layers=17, stages=STAGES, regularisers={"depth": 3.0})


@pytest.fixture(scope="module")
def request_of(tmp_path_factory):
    """A question about that space on a device where width costs as much as depth."""
    folder = tmp_path_factory.mktemp("band")
    coefficients = {"conv_ms": 0.02, "other_ms": 0.005, "ms_per_gflop": 80.0}
    table = made_table(folder / "cpu", kind="cpu-linear", coefficients=coefficients)
    space = load_space(write_space(folder, CONTENT))

    def make(limit_ms, **others):
        budgets = [Budget("latency_ms", limit_ms), *(Budget(name, value) for name, value in others.items())]
        return resolve_request(space, budgets=budgets, device=table)

    return make


@pytest.fixture(scope="module")
def middle_ms(request_of):
    """A latency that many networks of the space have."""
    request = request_of(100.0)
    latencies = [
        predict(lower(structure), request.goal.table).latency_ms
        for structure in random_structures(request.space, 20, seed=0)
    ]
    return statistics.median(latencies)


def test_networks_of_a_band(request_of, middle_ms):
    request, band = request_of(middle_ms), Band.below(middle_ms, WIDTH)
    drawn = draw_band(request, band, 4, seed=0)
    structures = [each.structure for each in drawn]
    assert len({structure.digest for structure in structures}) == 4
    assert [structure.digest for structure in structures] == sorted(structure.digest for structure in structures)
    for each in drawn:
        assert each.structure in request.space and each.measured_ms is None
        latency = predict(lower(each.structure), request.goal.table).latency_ms
        assert each.predicted_ms == latency and band.low_ms <= latency <= band.high_ms
    depths = {tuple(stage.depth for stage in structure.backbone.stages) for structure in structures}
    assert len(depths) > 2, "they differ in where their layers are"
    assert draw_band(request, band, 4, seed=0) == drawn, "the same seed, the same networks"
    assert draw_band(request, band, 4, seed=1) != drawn


def test_other_budgets_and_networks_that_are_taken(request_of, middle_ms):
    band = Band.below(middle_ms, WIDTH)
    first = draw_band(request_of(middle_ms), band, 3, seed=0)
    taken = [each.structure.digest for each in first]
    second = draw_band(request_of(middle_ms, params=1e9), band, 3, seed=0, taken=taken)
    assert not set(taken) & {each.structure.digest for each in second}


def test_a_wide_range(request_of, middle_ms):
    low, high = 0.8 * middle_ms, 1.3 * middle_ms
    drawn = draw_wide(request_of(high), low, high, 3, width=WIDTH, seed=0)
    targets = np.geomspace(low, high, 3)
    for each, target in zip(drawn, targets, strict=True):
        assert (1 - WIDTH) * target <= each.predicted_ms <= target
    assert len({each.structure.digest for each in drawn}) == 3


def test_measurements_move_the_predicted_band(request_of, middle_ms):
    request, band = request_of(middle_ms), Band.below(middle_ms, WIDTH)
    rounds = []

    def slower(structures):
        rounds.append(len(structures))
        return [1.2 * predict(lower(structure), request.goal.table).latency_ms for structure in structures]

    drawn = draw_band(request, band, 3, seed=0, measure=slower)
    assert len(rounds) > 1, "at first nearly everything was too slow"
    for each in drawn:
        assert each.measured_ms == pytest.approx(1.2 * each.predicted_ms)
        assert (1 - WIDTH) * 0.9 * middle_ms <= each.measured_ms <= 1.1 * middle_ms
    assert max(each.measured_ms for each in drawn) * (1 - WIDTH) <= min(each.measured_ms for each in drawn)


def test_only_networks_that_were_timed_together_are_compared(request_of, middle_ms):
    """A machine that is 4 % slower today: the band follows it, in one round."""
    request, rounds, timed = request_of(middle_ms), [], []

    def today(structures):
        rounds.append(len(structures))
        noise = np.random.default_rng(0).uniform(0.95, 1.05, len(structures))
        latencies = [predict(lower(each), request.goal.table).latency_ms for each in structures]
        timed.extend(1.04 * noise * latencies)
        return timed[-len(structures) :]

    drawn = draw_band(request, Band.below(middle_ms, WIDTH), 3, seed=0, measure=today)
    measured = [each.measured_ms for each in drawn]
    assert len(rounds) == 1 and min(measured) >= (1 - WIDTH) * max(measured)
    most = max(sum((1 - WIDTH) * top <= value <= top for value in timed) for top in timed)
    assert any(
        sum((1 - WIDTH) * top <= value <= top for value in timed) == most
        and all((1 - WIDTH) * top <= value <= top for value in measured)
        for top in timed
    ), "no other band holds more"


def test_a_device_that_is_never_in_the_band(request_of, middle_ms):
    calls = iter(range(1000))

    def erratic(structures):
        return [middle_ms * (1.3 if next(calls) % 2 else 0.8) for _ in structures]

    with pytest.raises(BudgetError, match=r"0 different networks of space tiny-res were found between .*; expected 3"):
        draw_band(request_of(middle_ms), Band.below(middle_ms, WIDTH), 3, seed=0, measure=erratic)


def test_messages(request_of, middle_ms):
    with pytest.raises(BudgetError, match="cannot be met in space tiny-res"):
        draw_band(request_of(middle_ms), Band.below(1e-3, WIDTH), 3, seed=0)
    with pytest.raises(BudgetError, match=r"different networks of space .* use a wider band, another budget"):
        draw_band(request_of(middle_ms), Band.below(middle_ms, 1e-9), 3, seed=0)
    with pytest.raises(BudgetError, match="the latency band is 0 %; expected a number above 0, below 100"):
        Band.below(1.0, 0.0)
    with pytest.raises(BudgetError, match="wide range is 3 to 2 ms; expected the smaller latency first"):
        draw_wide(request_of(middle_ms), 3.0, 2.0, 3, width=WIDTH, seed=0)
