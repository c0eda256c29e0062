"""What the legend calls curves, and that small differences look small."""

from __future__ import annotations

from dataclasses import replace

import pytest
from plot_cases import HERE, point

from maenas.plot_picture import SMALLEST_SPAN, draw
from maenas.plot_points import grouped
from maenas.plot_styles import curve_name, how_measured, mark_notes

INT8 = replace(HERE, precision="int8", threads=2)


def test_curves_of_one_laboratory_are_told_apart_by_what_differs():
    groups = grouped([point(8.0, 60.0), point(3.0, 60.1, conditions=INT8)], mix=True)
    names = [curve_name((group.points[0].series, place), groups) for place, group in enumerate(groups)]
    assert [name.partition(" (")[2] for name in names] == [
        "maenas benchmark, fp32, threads 1)",
        "maenas benchmark, int8, threads 2)",
    ]


def test_other_laboratories_are_named_alone():
    paper = replace(HERE, device="T4", runtime="TensorRT", precision="fp16", protocol="paper", measured_by="authors")
    groups = grouped([point(8.0, 60.0), point(3.0, 60.1, conditions=paper)], mix=True)
    names = [curve_name((group.points[0].series, place), groups) for place, group in enumerate(groups)]
    assert [name.partition(" (")[2] for name in names] == ["maenas benchmark)", "paper, authors)"]


@pytest.mark.parametrize("heights", [(60.0, 60.1), (50.0,), (30.0, 60.0)])
def test_a_tenth_of_a_point_does_not_fill_the_picture(heights):
    groups = grouped([point(3.0 + number, ap) for number, ap in enumerate(heights)])
    low, high = draw(groups).figure.axes[0].get_ylim()
    assert high - low >= SMALLEST_SPAN - 1e-9 and low < min(heights) and max(heights) < high


def test_two_precisions_timed_alike_are_no_mixture():
    groups = grouped([point(8.0, 60.0), point(3.0, 60.1, conditions=replace(HERE, precision="int8"))], mix=True)
    assert how_measured(groups) == str(HERE).replace("fp32", "fp32 and int8")
    assert mark_notes(groups)[0] == "Each precision has marks and a front of its own."
    (alone,) = grouped([point(8.0, 60.0)])
    assert how_measured([alone]) == str(HERE)


def test_two_ways_of_measuring_are_a_mixture():
    groups = grouped([point(8.0, 60.0), point(3.0, 60.1, conditions=INT8)], mix=True)
    assert how_measured(groups) == "MIXED: 2 unlike ways of measuring"
    assert mark_notes(groups)[0].startswith("MIXED: 2 unlike ways")
