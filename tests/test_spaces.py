"""Search spaces: the shipped files, membership, soft penalties, and every error a file can cause."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import yaml
from search_cases import ROOT, all_structures, content_of, write_space

from maenas.errors import SpaceError
from maenas.published import PUBLISHED, load_published
from maenas.space_parts import Range, Regularisers, StageSpace
from maenas.spaces import Choice, load_space, space_names

SHIPPED = ("csp", "mob", "res", "res-small", "tinynas-medium", "tinynas-small", "tinynas-tiny")
FAMILIES = ("res", "csp", "mob", "kxkx")


@pytest.fixture
def load(tmp_path):
    """Load a space from the content of its file."""

    def from_content(content):
        return load_space(write_space(tmp_path, content))

    return from_content


# Shipped files


def test_the_shipped_spaces_are_known():
    assert tuple(space_names()) == SHIPPED


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_space_loads(name):
    space = load_space(name)
    assert space.name == name
    assert space.description
    assert space.graph == ("reference" if name.startswith("tinynas") else "deployed")
    smallest = space.structure(Choice.smallest(space), space.variants[0])
    assert smallest.backbone.family == space.family


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_wide_space_of_a_family_contains_its_published_nets(name):
    structure = load_published(name)
    for family in ("res", "csp", "mob"):
        reason = load_space(family).why_not(structure)
        if family == structure.backbone.family:
            assert reason is None
            assert structure in load_space(family)
        else:
            assert reason == f"backbone.family is {structure.backbone.family}; the space has {family}"


@pytest.mark.parametrize(
    ("name", "variant"),
    [
        ("damo-yolo-t", "t"),
        ("damo-yolo-s", "s"),
        ("damo-yolo-m", "m"),
        ("damo-yolo-l", "l"),
        ("damo-yolo-ns", "n"),
        ("damo-yolo-nm", "n"),
        ("damo-yolo-nl", "n"),
        ("damo-yolo-n", "n-focus"),
    ],
)
def test_the_variant_of_a_published_net(name, variant):
    structure = load_published(name)
    space = load_space(structure.backbone.family)
    assert space.nearest_variant(structure).name == variant
    rebuilt = space.structure(Choice.of(structure), space.variant(variant))
    assert rebuilt.digest == structure.digest


def test_a_neck_that_no_variant_has_takes_the_first():
    space, structure = load_space("res"), load_published("damo-yolo-s")
    other = replace(structure, neck=replace(structure.neck, num_blocks=7))
    assert space.nearest_variant(other).name == "s"


@pytest.mark.parametrize("family", FAMILIES)
def test_every_structure_of_a_space_is_in_it(load, family):
    content = content_of(family)
    space = load(content)
    structures = list(all_structures(content))
    assert len(structures) > 100
    assert len({structure.digest for structure in structures}) == len(structures)
    for structure in structures[::7]:
        assert space.why_not(structure) is None


def _published_s(**stage_changes):
    """DAMO-YOLO-S with some fields of its second stage changed."""
    structure = load_published("damo-yolo-s")
    stages = list(structure.backbone.stages)
    stages[1] = replace(stages[1], **stage_changes)
    return replace(structure, backbone=replace(structure.backbone, stages=tuple(stages)))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"kernel_size": 5}, "backbone.stages[1].kernel_size is 5"),
        ({"out_channels": 144}, "backbone.stages[1].out_channels is 144"),
        ({"hidden_channels": (88,) * 6}, "backbone.stages[1].depth is 6"),
        ({"hidden_channels": (88, 96)}, "backbone.stages[1].hidden_channels are [88, 96] (a space has one width per"),
        ({"hidden_channels": (24,)}, "backbone.stages[1].hidden_channels is 24 at out_channels 128"),
        ({"hidden_channels": (90,)}, "backbone.stages[1].hidden_channels is 90 at out_channels 128"),
        ({"spp": True}, "backbone.stages[1].stride, se or spp differs"),
        ({"out_channels": 96}, "backbone.stages[1].out_channels / in_channels is 0.75"),
    ],
)
def test_why_a_stage_is_not_in_a_space(changes, reason):
    found = load_space("res").why_not(_published_s(**changes))
    assert found is not None
    assert found.startswith(reason)


def test_why_a_detector_is_not_in_a_space():
    space, structure = load_space("res"), load_published("damo-yolo-s")
    wide_stem = replace(structure.backbone, stem=replace(structure.backbone.stem, out_channels=56))
    assert "backbone.stem.out_channels is 56" in space.why_not(replace(structure, backbone=wide_stem))
    classes = replace(structure, head=replace(structure.head, num_classes=20))
    reason = space.why_not(classes)
    assert "neck or head differ from variant s" in reason
    assert "neck or head differ from variant t" in reason
    small = replace(structure, image_size=(320, 320))
    assert "image size" in space.why_not(small)
    short = replace(
        structure.backbone, stages=structure.backbone.stages[:3] + structure.backbone.stages[4:], out_stages=(2, 3, 4)
    )
    assert "4 stages; the space has 5" in space.why_not(replace(structure, backbone=short))


# Values and bounds


@pytest.mark.parametrize(
    ("limits", "values"),
    [
        (Range(8, 32, 8), [8, 16, 24, 32]),
        (Range(10, 33, 8), [16, 24, 32]),
        (Range(0, 2, 1), [0, 1, 2]),
        (Range(7, 7, 8), [7]),
        (Range.from_scalar(12), [12]),
        (Range.from_scalar(12.0), [12]),
    ],
)
def test_values_of_a_range(limits, values):
    assert limits.values.tolist() == values


def stage_space(**changes) -> StageSpace:
    fields = {"stride": 2, "out_channels": Range(8, 512, 8), "hidden_channels": Range(8, 512, 8), "depth": Range(1, 3)}
    return StageSpace(**(fields | changes))


@pytest.mark.parametrize(
    ("ratios", "divisor", "outs", "low", "high"),
    [
        # 0.1 x 128 = 12.8 is nearer to 16 than to 8; 0.1 x 40 = 4 lies half way and goes to 0, so the bound is none.
        ((0.1, 1.0), 8, [40, 128, 512], [1, 16, 48], [40, 128, 512]),
        ((0.25, 0.5), 8, [8, 24, 80], [1, 8, 16], [8, 16, 40]),
        ((0.3, 0.6), 16, [64, 100], [16, 32], [32, 64]),
        ((0.0, 0.01), 8, [64], [1], [8]),
        ((2.0, 6.0), 8, [24], [48], [144]),
    ],
)
def test_bounds_of_the_hidden_width_are_rounded_to_its_divisor(ratios, divisor, outs, low, high):
    stage = stage_space(
        hidden_channels=Range(divisor, 64 * divisor, divisor), min_hidden_ratio=ratios[0], max_hidden_ratio=ratios[1]
    )
    found_low, found_high = stage.hidden_bounds(np.array(outs))
    assert found_low.tolist() == low
    assert found_high.tolist() == high


def test_soft_penalties_counted_on_paper():
    weights = Regularisers(depth=0.5, growth=2.0, hidden=3.0, hidden_target=0.25)
    found = weights.penalty(2, np.array([16]), np.array([64]), np.array([32]), 3)
    # out / (2 in) = 2; hidden / (0.25 out) = 2.
    assert found[0] == pytest.approx(0.5 * 9 + 2 * math.log(2) ** 2 + 3 * math.log(2) ** 2, rel=1e-12)
    even = weights.penalty(1, np.array([64]), np.array([64]), np.array([16]), 1)
    assert even[0] == pytest.approx(0.5, rel=1e-12)
    assert Regularisers().penalty(2, np.array([8]), np.array([64]), np.array([8]), 9)[0] == 0.0


def test_a_variant_by_name():
    space = load_space("res")
    assert space.variant().name == "s"
    assert space.variant("t").name == "t"
    with pytest.raises(SpaceError, match="space res has no variant 'x'; expected one of s, t"):
        space.variant("x")


# Errors


def changed(family, path, value):
    """The content of a tiny space with one field set; `path` names keys and places."""
    content = content_of(family)
    inner = content
    for step in path[:-1]:
        inner = inner[step]
    if value is KeyError:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    return content


def stage_path(*rest):
    return ("stages", 1, *rest)


NAN, INF = math.nan, math.inf
MALFORMED = [
    ("res", ("stagse",), [], "stagse is not a field; did you mean stages?"),
    ("res", ("zzz",), 1, "zzz is not a field; expected name, description, family"),
    ("res", stage_path("kernel_size"), [3], r"stages\[1\]\.kernel_size is not a field; did you mean kernel_sizes\?"),
    ("res", stage_path("out_channels", "divsor"), 8, r"stages\[1\]\.out_channels\.divsor .* did you mean divisor\?"),
    ("res", ("family",), KeyError, "family is missing"),
    ("res", stage_path("depth"), KeyError, r"stages\[1\]\.depth is missing"),
    ("res", ("family",), "resnet", 'family is "resnet"; expected one of res, csp, mob, kxkx'),
    ("res", ("activation",), "gelu", 'activation is "gelu"; expected one of relu, silu'),
    ("res", ("graph",), "official", 'graph is "official"; expected one of deployed, reference'),
    ("csp", ("graph",), "reference", r"graph is \"reference\"; expected deployed \(the reference graph covers"),
    ("res", ("name",), 3, "name is 3; expected a text"),
    ("res", ("max_layers",), "many", 'max_layers is "many"; expected an integer'),
    ("res", ("max_layers",), 0, "max_layers is 0; expected above 0, or null"),
    ("res", ("max_layers",), True, "max_layers is true; expected an integer"),
    ("res", ("image_size",), 640, "image_size is 640; expected a list"),
    ("res", ("image_size",), [640], r"image_size has 1 entries; expected 2"),
    ("res", ("image_size",), [640, 100], r"image_size\[1\] is 100; expected a multiple of 32"),
    ("res", ("stages",), {}, r"stages is \{\}; expected a list"),
    ("res", ("stages", 1), 5, r"stages\[1\].* is 5; expected an object"),
    ("res", ("stem", "kind"), "patch", 'stem.kind is "patch"; expected one of focus, conv'),
    ("res", ("stem", "stride"), 2, "stem.stride is 2; expected 1 for a focus stem"),
    ("res", ("stem", "kernel_size"), 4, "stem.kernel_size is 4; expected an odd integer"),
    ("res", ("stem", "out_channels"), {"min": 0, "max": 8, "divisor": 8}, "stem.out_channels.min is 0; expected at"),
    ("res", stage_path("stride"), 3, r"stages\[1\]\.stride is 3; expected 1 or 2"),
    ("res", stage_path("out_channels", "min"), 64, r"stages\[1\]\.out_channels\.min is 64; expected 0 to max \(32\)"),
    ("res", stage_path("out_channels", "min"), "8", r'stages\[1\]\.out_channels\.min is "8"; expected an integer'),
    ("res", stage_path("out_channels", "min"), 8.5, r"stages\[1\]\.out_channels\.min is 8\.5; expected an integer"),
    ("res", stage_path("out_channels", "max"), 70_000, r"stages\[1\]\.out_channels\.max is 70000; expected at most"),
    ("res", stage_path("out_channels", "divisor"), 0, r"stages\[1\]\.out_channels\.divisor is 0; expected at least 1"),
    (
        "res",
        stage_path("out_channels"),
        {"min": 17, "max": 30, "divisor": 16},
        r"stages\[1\]\.out_channels\.divisor is 16; expected one with a multiple from 17 to 30",
    ),
    ("res", stage_path("out_channels"), 16.5, r"stages\[1\]\.out_channels: 16\.5 is not a whole number"),
    ("res", stage_path("out_channels"), NAN, r"stages\[1\]\.out_channels"),
    ("res", stage_path("out_channels"), INF, r"stages\[1\]\.out_channels"),
    ("res", stage_path("hidden_channels"), 0, r"stages\[1\]\.hidden_channels\.min is 0; expected at least 1"),
    ("res", stage_path("depth"), 0, r"stages\[1\]\.depth\.min is 0; expected at least 1"),
    ("mob", stage_path("depth"), {"min": 0, "max": 2}, r"stages\[1\]\.depth\.min is 0; expected at least 1"),
    ("res", stage_path("depth"), 65, r"stages\[1\]\.depth\.max is 65; expected at most 64"),
    ("res", stage_path("kernel_sizes"), [], r"stages\[1\]\.kernel_sizes is \[\]; expected at least one odd number"),
    ("res", stage_path("kernel_sizes"), [3, 4], r"stages\[1\]\.kernel_sizes is \[3, 4\]; expected odd numbers from 1"),
    ("res", stage_path("min_hidden_ratio"), 2.0, r"stages\[1\]\.min_hidden_ratio is 2\.0; expected 0 to max_hidden"),
    ("res", stage_path("min_hidden_ratio"), NAN, r"stages\[1\]\.min_hidden_ratio is NaN; expected 0 to max"),
    ("res", stage_path("max_growth"), 0.5, r"stages\[1\]\.min_growth is 1\.0; expected 0 to max_growth \(0\.5\)"),
    ("res", stage_path("se"), True, r"stages\[1\]\.se is true; expected false \(mob only\)"),
    ("res", stage_path("se"), 1, r"stages\[1\]\.se is 1; expected true or false"),
    (
        "csp",
        stage_path("out_channels"),
        {"min": 16, "max": 33, "divisor": 1},
        r"stages\[1\]\.out_channels is .*; expected even widths only",
    ),
    ("res", ("stages", 3, "out_channels"), 63, r"stages\[3\]\.out_channels is .*; expected even widths only"),
    ("res", ("out_stages",), [1, 2, 4], r"out_stages is \[1, 2, 4\]; expected the last two stages and an earlier one"),
    ("mob", ("out_stages",), [1, 4, 5], r"out_stages is \[1, 4, 5\]; expected strides 8, 16, 32"),
    ("res", ("score_weights",), [1, 1], r"score_weights is \[1\.0, 1\.0\]; expected 5 numbers, one per level"),
    ("res", ("score_weights",), [0, 0, 1, 1, NAN], "score_weights"),
    ("res", ("score_weights",), [0, 0, 1, 1, INF], "score_weights"),
    ("res", ("variants",), [], r"variants is \[\]; expected at least one neck and head setting"),
    ("res", ("variants", 0, "head", "num_classes"), 0, "num_classes is 0; expected an integer from 1"),
    ("res", ("variants", 0, "neck", "num_blocks"), -1, "num_blocks is -1; expected an integer from 0 to 64"),
    ("res", ("variants", 0, "neck", "fusion"), "sum", 'fusion is "sum"; expected one of conv, csp'),
    ("res", ("variants", 0, "neck", "out_channels"), [64, 128], r"neck\.out_channels has 2 entries; expected 3"),
    ("res", ("regularisers",), {"depth": -1.0}, "regularisers.depth is -1.0; expected a number from 0 to"),
    ("res", ("regularisers",), {"growth": NAN}, "regularisers.growth is NaN; expected a number from 0 to"),
    ("res", ("regularisers",), {"depth": INF}, "regularisers.depth"),
    ("res", ("regularisers",), {"hidden_target": 0}, "regularisers.hidden_target is 0.0; expected a number above 0"),
    ("res", ("schema_version",), 2, "schema_version is 2; expected 1"),
    ("res", ("schema_version",), "1", 'schema_version is "1"; expected 1'),
    ("res", ("schema_version",), KeyError, "schema_version is null; expected 1"),
]  # fmt: skip


@pytest.mark.parametrize(("family", "path", "value", "message"), MALFORMED)
def test_a_malformed_field_is_named_with_what_was_expected(tmp_path, family, path, value, message):
    file = write_space(tmp_path, changed(family, path, value))
    with pytest.raises(SpaceError, match=message) as caught:
        load_space(file)
    assert str(caught.value).startswith(f"{file}: ")
    assert "\n" not in str(caught.value)


def test_variants_must_have_different_names(load):
    content = content_of("res")
    content["variants"] *= 2
    with pytest.raises(SpaceError, match=r'variants is \["a", "a"\]; expected different names'):
        load(yaml.safe_load(yaml.safe_dump(content)))


def test_a_later_variant_is_checked_too(load):
    content = content_of("res")
    content["variants"].append({**content["variants"][0], "name": "b", "neck": {"num_blocks": -1, "hidden_ratio": 0.5}})
    with pytest.raises(SpaceError, match="num_blocks is -1; expected an integer from 0 to 64"):
        load(content)


def test_a_csp_stage_has_stride_two(load):
    content = changed("csp", stage_path("stride"), 1) | {"score_weights": [0, 1, 1, 16]}
    with pytest.raises(SpaceError, match=r"stages\[1\]\.stride is 1; expected 2"):
        load(content)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1, 2", "is not valid YAML"),
        ("a: b: c", "is not valid YAML"),
        ("\tstages:", "is not valid YAML"),
        ("- 1\n- 2\n", r"is \[1, 2\]; expected a mapping of fields"),
        ("", "is null; expected a mapping of fields"),
        ("3", "is 3; expected a mapping of fields"),
        ("name: !!python/object:os.system {}", "is not valid YAML .*python/object"),
        ("name: !!python/object/apply:os.system ['true']", "is not valid YAML .*python/object/apply"),
        ("1: 2\nschema_version: 1", "1 is not a field"),
    ],
)
def test_a_file_that_is_no_space(tmp_path, text, message):
    path = tmp_path / "space.yaml"
    path.write_text(text)
    with pytest.raises(SpaceError, match=message) as caught:
        load_space(str(path))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_yaml_tag_runs_nothing(tmp_path):
    trap = tmp_path / "trap"
    path = tmp_path / "space.yaml"
    path.write_text(f"name: !!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path ['{trap}']]")
    with pytest.raises(SpaceError, match="is not valid YAML"):
        load_space(str(path))
    assert not trap.exists()


def test_deep_nesting_is_an_error_and_no_crash(tmp_path):
    path = tmp_path / "space.yaml"
    path.write_text("name: " + "[" * 300_000)
    program = (
        "import sys\n"
        "from maenas.errors import SpaceError\n"
        "from maenas.spaces import load_space\n"
        "try:\n    load_space(sys.argv[1])\n"
        "except SpaceError as error:\n    print('refused')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(path)], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (0, "refused\n")


def test_unreadable_files(tmp_path):
    with pytest.raises(SpaceError, match=r"absent\.yaml: cannot be read as text"):
        load_space(str(tmp_path / "absent.yaml"))
    folder = tmp_path / "folder.yaml"
    folder.mkdir()
    with pytest.raises(SpaceError, match=r"folder\.yaml: cannot be read as text"):
        load_space(str(folder))
    binary = tmp_path / "binary.yml"
    binary.write_bytes(b"\xff\xfe\x00name")
    with pytest.raises(SpaceError, match=r"binary\.yml: cannot be read as text"):
        load_space(str(binary))
    large = tmp_path / "large.yaml"
    large.write_text("#" * 1_000_001)
    with pytest.raises(SpaceError, match=r"large\.yaml: is larger than 1000000 bytes"):
        load_space(str(large))


@pytest.mark.parametrize("name", ["wide", "../x", "../search_spaces/res", "/etc/passwd", "", ".", "res.json", "Res"])
def test_unknown_names_are_listed_and_paths_refused(name):
    with pytest.raises(SpaceError, match=r"unknown search space .*; expected one of csp, mob, res, res-small, tiny"):
        load_space(name)
