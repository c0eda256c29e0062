"""Lowering and counting: arithmetic by hand, the published sizes, exported graphs, arrays against scalars."""

from __future__ import annotations

import csv
import dataclasses
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maenas.lowering.backbone import StageShape, lower_backbone, lower_stage, lower_stem
from maenas.lowering.costs import (
    FLOP_RULES,
    PARAM_FORMS,
    activation_memory,
    num_flops,
    num_layers,
    num_macs,
    num_params,
)
from maenas.lowering.detector import feature_sizes, lower
from maenas.lowering.head import lower_head
from maenas.lowering.neck import lower_neck, round_to_8
from maenas.lowering.op import Op, conv, glue
from maenas.lowering.reference import lower_reference, lower_reference_stage, reference_macs, reference_params
from maenas.published import PUBLISHED, load_published
from maenas.structure import Head, Neck, Stem, Structure

FIXTURES = Path(__file__).parent / "fixtures" / "lowering"
OP_LISTS = Path(__file__).parents[2] / "shared" / "data" / "latency" / "op_lists"


def test_a_convolution_counted_on_paper():
    op = conv(8, 16, (10, 10), kernel_size=3, activation="relu", name="c", stage="s")
    assert op.weights == 8 * 16 * 9 == 1152
    assert op.macs == 1152 * 100
    assert num_params([op]) == 1152 + 16
    assert num_params([op], "reparameterised") == num_params([op], "train") == 1152 + 32
    assert num_flops([op]) == 2 * 115_200
    assert num_flops([op], "old") == 2 * (115_200 + 2 * 1600)
    assert num_flops([op], "new") == 2 * (115_200 + 4 * 1600)
    assert activation_memory([op]) == 2 * (800 + 1600)
    assert activation_memory([op], bytes_per_element=1) == 2400


def test_a_stride_halves_upwards():
    op = conv(4, 6, (7, 5), kernel_size=1, stride=2, name="c", stage="s")
    assert op.out_size == (4, 3)
    assert op.macs == 4 * 6 * 12


def test_a_depthwise_convolution_counted_on_paper():
    op = conv(8, 8, (10, 10), kernel_size=5, depthwise=True, name="c", stage="s")
    assert (op.weights, op.macs, op.fan_in) == (200, 20_000, 25)


def test_a_reparameterised_convolution_has_two_trained_branches():
    op = conv(8, 16, (10, 10), kernel_size=3, reparam=True, residual=True, name="c", stage="s")
    assert num_params([op], "train") == 1152 + 32 + 128 + 32
    assert num_params([op], "reparameterised") == num_params([op]) == 1152 + 16
    assert num_flops([op], "new") == num_flops([op])  # no batch norm is left
    assert activation_memory([op]) == 2 * (800 + 1600 + 1600)


def test_the_other_operators_counted_on_paper():
    squeeze = glue("se", 8, (4, 4), name="se", stage="s")
    scale = glue("mul", 68, (4, 4), name="scale", stage="s")
    pool = glue("pool", 8, (4, 4), name="pool", stage="s", kernel_size=5)
    assert num_params([squeeze, scale, pool]) == 2 * 8 * 2 + 1
    assert num_macs([squeeze, scale, pool]) == 0
    assert activation_memory([pool]) == 2 * 2 * 8 * 16


def test_a_count_repeats_or_removes_an_operator():
    op = conv(8, 16, (10, 10), kernel_size=3, main_path=True, name="c", stage="s")
    twice, never = dataclasses.replace(op, count=2), dataclasses.replace(op, count=0)
    assert num_macs([twice, never]) == 2 * op.macs
    assert num_layers([twice, never]) == 2
    assert activation_memory([never]) == 0


def test_one_residual_unit_counted_on_paper():
    ops = lower_stage(stage_shape("res", 1, 8, 16, [4]))
    assert [(op.in_channels, op.out_channels, op.kernel_size, op.residual) for op in ops] == [
        (8, 4, 1, False),
        (4, 16, 3, True),
        (8, 16, 1, False),
    ]
    assert num_macs(ops) == (8 * 4 + 4 * 16 * 9 + 8 * 16) * 64
    assert len(lower_stage(stage_shape("res", 1, 16, 16, [4]))) == 2
    assert len(lower_stage(stage_shape("res", 2, 8, 16, [4]))) == 2


@pytest.mark.parametrize(("rule", "message"), [("thop", "rule is 'thop'"), ("", "rule is ''")])
def test_unknown_counting_rules_are_refused(rule: str, message: str):
    with pytest.raises(ValueError, match=message):
        num_flops([], rule)
    with pytest.raises(ValueError, match="form is"):
        num_params([], rule)
    with pytest.raises(ValueError, match="scope is"):
        lower(load_published("damo-yolo-ns"), scope="neck")


# Published size, batch 1: parameters in M as trained, re-parameterised and fully folded; GFLOPs by the three rules.
PUBLISHED_SIZES = {
    "damo-yolo-t": (8.8757, 8.4796, 8.4739, 18.01, 18.06, 18.12),
    "damo-yolo-s": (16.9356, 16.2516, 16.2427, 37.62, 37.70, 37.78),
    "damo-yolo-m": (29.2417, 28.1782, 28.1641, 61.62, 61.75, 61.88),
    "damo-yolo-l": (43.8618, 42.0581, 42.0397, 97.12, 97.28, 97.45),
    "damo-yolo-ns": (1.4057, 1.4057, 1.3923, 1.498, 1.559, 1.621),
    "damo-yolo-nm": (2.7072, 2.7072, 2.6884, 3.582, 3.692, 3.803),
    "damo-yolo-nl": (5.6886, 5.6886, 5.6594, 5.909, 6.036, 6.163),
    "damo-yolo-n": (2.3473, 2.3473, 2.3309, 4.041, 4.153, 4.265),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_sizes_of_the_published_networks(name: str):
    train, fused, folded, *gflops = PUBLISHED_SIZES[name]
    ops = lower(load_published(name))
    # The source's folded column fits all rows to the last digit without the three box scales, which we always count.
    counts = [num_params(ops, "train"), num_params(ops, "reparameterised"), num_params(ops, "folded") - 3]
    params = [count / 1e6 for count in counts]
    assert params == pytest.approx([train, fused, folded], abs=5.1e-5, rel=0)
    digits = 5.1e-4 if name.startswith("damo-yolo-n") else 5.1e-3
    assert [num_flops(ops, rule) / 1e9 for rule in FLOP_RULES] == pytest.approx(gflops, abs=digits, rel=0)


# Re-parameterised parameters in M and GFLOPs of the convolutions: backbone, neck, head.
PARTS = {
    "damo-yolo-t": ((2.170, 7.897), (5.713, 8.202), (0.597, 1.910)),
    "damo-yolo-s": ((3.539, 16.312), (11.519, 17.485), (1.194, 3.819)),
    "damo-yolo-m": ((9.836, 31.536), (17.148, 26.267), (1.194, 3.819)),
    "damo-yolo-l": ((16.994, 56.544), (23.871, 36.753), (1.194, 3.819)),
    "damo-yolo-ns": ((0.877, 1.105), (0.497, 0.350), (0.032, 0.042)),
    "damo-yolo-nm": ((1.436, 2.666), (1.221, 0.848), (0.051, 0.068)),
    "damo-yolo-nl": ((3.744, 4.519), (1.881, 1.305), (0.063, 0.085)),
    "damo-yolo-n": ((0.991, 2.725), (0.904, 0.706), (0.452, 0.611)),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_sizes_of_the_parts(name: str):
    ops = lower(load_published(name))
    backbone = lower(load_published(name), scope="backbone")
    assert [op.name for op in backbone] == [op.name for op in ops if op.stage not in ("neck", "head")]
    groups = [backbone, *([op for op in ops if op.stage == stage] for stage in ("neck", "head"))]
    for group, (params, gflops) in zip(groups, PARTS[name], strict=True):
        assert num_params(group, "reparameterised") / 1e6 == pytest.approx(params, abs=5.1e-4, rel=0)
        assert num_flops(group) / 1e9 == pytest.approx(gflops, abs=5.1e-4, rel=0)


@pytest.mark.parametrize(
    ("changes", "gflops"),
    [
        ({}, (37.62, 37.70, 37.78)),
        ({"num_blocks": 2, "hidden_ratio": 1.0}, (35.91, 35.99, 36.07)),
        ({"num_blocks": 4, "hidden_ratio": 0.5}, (36.96, 37.05, 37.13)),
        ({"extra_edges": "none"}, (33.13, 33.21, 33.29)),
        ({"extra_edges": "up"}, (37.56, 37.65, 37.74)),
        ({"extra_edges": "both"}, (42.05, 42.14, 42.23)),
        ({"fusion": "conv"}, (44.20, 44.26, 44.32)),
        ({"fusion": "csp"}, (36.57, 36.66, 36.75)),
        ({"fusion": "csp_reparam"}, (36.57, 36.65, 36.73)),
        ({"fusion": "csp_elan"}, (37.62, 37.70, 37.78)),
    ],
)
def test_neck_variants_of_the_paper(changes: dict[str, object], gflops: tuple[float, float, float]):
    structure = load_published("damo-yolo-s")
    neck = dataclasses.replace(structure.neck, **changes)
    ops = lower(dataclasses.replace(structure, neck=neck))
    assert [num_flops(ops, rule) / 1e9 for rule in FLOP_RULES] == pytest.approx(gflops, abs=5.1e-3, rel=0)


def op_rows(ops: Sequence[Op]) -> list[tuple[object, ...]]:
    """Operators in the columns that the exported lists have."""
    rows: list[tuple[object, ...]] = []
    for op in ops:
        sides = (*op.in_size, *op.out_size)
        if op.kind == "conv":
            groups = op.in_channels if op.depthwise else 1
            flags = (op.activation, int(op.residual))
            rows.append(("conv", op.in_channels, op.out_channels, op.kernel_size, op.stride, groups, *sides, *flags))
        elif op.kind == "concat":
            rows.append(("concat", op.out_channels, *op.out_size))
        elif op.kind == "pool":
            rows.append(("pool", op.in_channels, op.kernel_size, *sides))
        elif op.kind == "resize":
            rows.append(("resize", op.in_channels, *sides))
        else:
            rows.append((op.kind, op.in_elements, op.out_elements))
    return rows


def exported_rows(path: Path) -> list[tuple[object, ...]]:
    """The same columns of an exported list."""
    columns = {
        "conv": ("cin", "cout", "k", "s", "g", "h", "w", "oh", "ow", "act", "add"),
        "concat": ("cout", "h", "w"),
        "pool": ("cin", "k", "h", "w", "oh", "ow"),
        "resize": ("cin", "h", "w", "oh", "ow"),
        "elt": ("in_el", "out_el"),
    }
    rows = []
    for record in csv.DictReader(path.read_text(encoding="utf-8").splitlines()):
        values = (record[column] for column in columns[record["op"]])
        kind = record["kind"].lower() if record["op"] == "elt" else record["op"]
        rows.append((kind, *(int(value) if value.isdigit() else value for value in values)))
    return rows


@pytest.mark.parametrize(
    ("name", "exported", "neck"),
    [
        ("damo-yolo-t", "damo_t", {}),
        ("damo-yolo-s", "damo_s", {}),
        ("damo-yolo-m", "damo_m", {}),
        ("damo-yolo-ns", "damo_ns", {}),
        ("damo-yolo-nm", "damo_nm", {}),
        ("damo-yolo-n", "damo_n_res", {}),
        ("damo-yolo-s", "damo_s_neck_d4_w0.5", {"num_blocks": 4, "hidden_ratio": 0.5}),
    ],
)
def test_operators_equal_the_exported_graph(name: str, exported: str, neck: dict[str, object]):
    path = OP_LISTS / f"{exported}.csv"
    if not path.exists():
        pytest.skip("the exported operator lists are not part of the repository")
    structure = load_published(name)
    structure = dataclasses.replace(structure, neck=dataclasses.replace(structure.neck, **neck))
    assert op_rows(lower(structure)) == exported_rows(path)


def test_golden_lowering(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(FIXTURES))
    monkeypatch.delitem(sys.modules, "regenerate", raising=False)
    import regenerate

    try:
        recomputed = regenerate.golden()
    finally:
        del sys.modules["regenerate"]
    assert recomputed == json.loads((FIXTURES / "golden.json").read_text(encoding="utf-8"))


# Arrays against scalars.

WIDTHS = st.lists(st.integers(1, 40), min_size=3, max_size=3)


def stage_shape(
    family: str,
    stride: int,
    channels: object,
    out: object,
    hidden: Sequence[object],
    *,
    se: bool = False,
    spp: bool = False,
) -> StageShape:
    return StageShape(family, "silu", channels, out, hidden, stride, 3, se, spp, (8, 8), "stage1")  # type: ignore[arg-type]


def at(value: object, index: int) -> object:
    """One candidate of a channel field."""
    return int(value[index]) if isinstance(value, np.ndarray) else value


def assert_same(ops: list[Op], scalars: Callable[[int], list[Op]], size: int) -> None:
    """Every candidate of the array operators is the scalar lowering, in operators and in every cost."""
    costs = [
        *(lambda ops, form=form: num_params(ops, form) for form in PARAM_FORMS),
        *(lambda ops, rule=rule: num_flops(ops, rule) for rule in FLOP_RULES),
        num_macs,
        num_layers,
        activation_memory,
        reference_macs,
        reference_params,
    ]
    arrays = [np.broadcast_to(cost(ops), (size,)) for cost in costs]
    for index in range(size):
        single = scalars(index)
        picked = [
            dataclasses.replace(
                op,
                in_channels=at(op.in_channels, index),
                out_channels=at(op.out_channels, index),
                count=at(op.count, index),
            )
            for op in ops
        ]
        present = [dataclasses.astuple(op) for op in picked if op.count]
        assert present == [dataclasses.astuple(op) for op in single]
        assert [array[index] for array in arrays] == [cost(single) for cost in costs]


@settings(max_examples=60)
@given(
    family=st.sampled_from(["res", "kxkx", "csp", "mob"]),
    stride=st.sampled_from([1, 2]),
    channels=WIDTHS,
    out=WIDTHS,
    hidden=st.lists(WIDTHS, min_size=1, max_size=3),
    same=st.booleans(),
    se=st.booleans(),
    spp=st.booleans(),
)
def test_a_grid_of_stages_is_its_single_stages(
    family: str,
    stride: int,
    channels: list[int],
    out: list[int],
    hidden: list[list[int]],
    same: bool,
    se: bool,
    spp: bool,
):
    # `same` makes some candidates keep their width, so that skips and projections differ along the grid.
    outs = 2 * np.array([channels[0], *out[1:]] if same else out)
    ins, hiddens = 2 * np.array(channels), [4 * np.array(widths) for widths in hidden]
    flags = {"se": se and family == "mob", "spp": spp}
    stride = 2 if family == "csp" else stride

    def single(lowering: Callable[[StageShape], list[Op]], index: int) -> list[Op]:
        widths = [int(values[index]) for values in hiddens]
        return lowering(stage_shape(family, stride, int(ins[index]), int(outs[index]), widths, **flags))

    shape = stage_shape(family, stride, ins, outs, hiddens, **flags)
    assert_same(lower_stage(shape), lambda index: single(lower_stage, index), 3)
    if family in ("res", "kxkx"):
        assert_same(lower_reference_stage(shape), lambda index: single(lower_reference_stage, index), 3)


@settings(max_examples=40)
@given(
    ins=st.lists(WIDTHS, min_size=3, max_size=3),
    outs=st.lists(WIDTHS, min_size=3, max_size=3),
    fusion=st.sampled_from(["conv", "csp", "csp_reparam", "csp_elan", "depthwise"]),
    edges=st.sampled_from(["none", "down", "up", "both"]),
    blocks=st.integers(0, 2),
    ratio=st.sampled_from([0.5, 0.75, 1.0]),
)
def test_a_grid_of_necks_and_heads_is_its_single_ones(
    ins: list[list[int]], outs: list[list[int]], fusion: str, edges: str, blocks: int, ratio: float
):
    depthwise = fusion == "depthwise"
    neck = Neck((8, 8, 8), blocks, ratio, "silu", depthwise, "csp_elan" if depthwise else fusion, edges)
    head, sizes = Head(3, 7, 1, tower_depth=blocks, tower_channels=16), ((8, 8), (4, 4), (2, 2))
    grid_in, grid_out = (tuple(1 + np.array(widths) for widths in levels) for levels in (ins, outs))

    def lowered(inner: tuple[object, ...], outer: tuple[object, ...]) -> list[Op]:
        return lower_neck(neck, inner, sizes, outer) + lower_head(head, outer, sizes, "silu")  # type: ignore[arg-type]

    def single(index: int) -> list[Op]:
        inner, outer = (tuple(int(widths[index]) for widths in grid) for grid in (grid_in, grid_out))
        return lowered(inner, outer)

    assert_same(lowered(grid_in, grid_out), single, 3)


@pytest.mark.parametrize("stem", [Stem("focus", 3, 8, 3, 1), Stem("conv", 3, 8, 3, 2)])
def test_a_grid_of_stems_is_its_single_stems(stem: Stem):
    widths = np.array([4, 8, 12])
    ops = lower_stem(stem, "relu", (32, 32), widths)
    assert_same(ops, lambda index: lower_stem(stem, "relu", (32, 32), int(widths[index])), 3)
    assert op_rows(lower_stem(stem, "relu", (32, 32), 8)) == op_rows(lower_stem(stem, "relu", (32, 32)))


@settings(max_examples=60)
@given(
    family=st.sampled_from(["res", "kxkx", "csp", "mob"]),
    channels=st.integers(1, 40),
    out=st.integers(1, 40),
    hidden=st.lists(st.integers(4, 40), min_size=1, max_size=3),
    more=st.lists(st.integers(0, 9), min_size=5, max_size=5),
)
def test_more_channels_never_cost_less(family: str, channels: int, out: int, hidden: list[int], more: list[int]):
    # Stride 2: at stride 1 a stage that comes to equal its input in width loses its projection, and may get cheaper.
    narrow = lower_stage(stage_shape(family, 2, channels, 2 * out, hidden))
    widened = [width + extra for width, extra in zip(hidden, more[2:], strict=False)]
    wide = lower_stage(stage_shape(family, 2, channels + more[0], 2 * (out + more[1]), widened))
    assert num_macs(wide) >= num_macs(narrow)
    assert num_params(wide) >= num_params(narrow)


@settings(max_examples=40)
@given(level=st.integers(0, 2), extra=st.integers(1, 64), name=st.sampled_from(PUBLISHED))
def test_a_wider_neck_never_costs_less(level: int, extra: int, name: str):
    structure = load_published(name)
    widths = list(structure.neck.out_channels)
    widths[level] += extra
    wider = with_neck_channels(structure, (widths[0], widths[1], widths[2]))
    assert num_macs(lower(wider)) > num_macs(lower(structure))
    assert num_params(lower(wider)) > num_params(lower(structure))


def with_neck_channels(structure: Structure, channels: tuple[int, int, int]) -> Structure:
    return dataclasses.replace(structure, neck=dataclasses.replace(structure.neck, out_channels=channels))


def test_rounding_to_eight():
    # Halves go up; 11 and 18 would lose more than a tenth; never below 8.
    values = {1: 8, 8: 8, 10: 16, 11: 16, 12: 16, 17: 16, 18: 24, 20: 24, 84: 88, 90: 88, 630: 632, 1408: 1408}
    assert {value: round_to_8(value) for value in values} == values
    assert list(round_to_8(np.array(list(values)))) == list(values.values())


def test_feature_sizes_of_a_wide_image():
    structure = dataclasses.replace(load_published("damo-yolo-t"), image_size=(320, 640))
    assert feature_sizes(structure) == ((40, 80), (20, 40), (10, 20))
    sizes = {op.stage: op.out_size for op in lower_backbone(structure.backbone, structure.image_size)}
    assert sizes["stage5"] == (10, 20)


def test_the_reference_graph_covers_two_families():
    with pytest.raises(ValueError, match="family is 'mob'; the reference graph covers res and kxkx"):
        lower_reference(load_published("damo-yolo-ns"))


def test_one_reference_unit_counted_on_paper():
    """Stride 2, 8 to 16 through 4, on 8x8: two convs, the pooled and projected skip, its add."""
    ops = lower_reference_stage(stage_shape("res", 2, 8, 16, [4]))
    assert [op.kind for op in ops] == ["conv", "conv", "pool", "conv", "add"]
    first, second, projection = 8 * 4 + 2 * 4, 4 * 16 * 9 + 2 * 16, 8 * 16 + 2 * 16
    assert reference_params(ops) == first + second + projection
    activations, pooled, added = 4 * 64 + 16 * 16, 8 * 64, 16 * 16
    assert reference_macs(ops) == (first * 64 + second * 16 + projection * 16) + activations + pooled + added
