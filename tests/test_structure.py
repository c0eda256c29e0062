"""The structure format: round trips, the digest, every message of a bad file, whole files or none."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from maenas.errors import OutputError, StructureError
from maenas.official_export import export_official
from maenas.official_import import import_official
from maenas.published import PUBLISHED, PUBLISHED_FACTS, load_published, resolve_structure
from maenas.structure import (
    MAX_CHANNELS,
    Backbone,
    Head,
    Neck,
    Stage,
    Stem,
    Structure,
    load_structure,
    save_structure,
    structure_from_dict,
)

MISSING = object()
SE_STAGE = {"out_channels": 8, "hidden_channels": [3], "stride": 2, "kernel_size": 5, "se": True}


def small(family: str = "res") -> Structure:
    """A small structure of any family with three stages more than the stem needs."""
    stages = tuple(Stage(16 * 2**i, (8, 12), 2, 3, spp=i == 3) for i in range(4))
    backbone = Backbone(family, "relu", Stem("focus", 3, 8, 3, 1), stages, (2, 3, 4))
    return Structure("small", (64, 96), backbone, Neck((8, 16, 32), 1, 1.0, "silu", False), Head(3, 7, 1))


def changed(path: str, value: object, family: str = "res") -> dict[str, Any]:
    """The JSON object of `small` with one field replaced (or removed, for MISSING); list indices count as keys."""
    content = small(family).to_dict()
    *parents, last = [int(key) if key.isdigit() else key for key in path.split(".")]
    place: Any = content
    for key in parents:
        place = place[key]
    if value is MISSING:
        del place[last]
    else:
        place[last] = value
    return content


@pytest.mark.parametrize("family", ["res", "csp", "mob", "kxkx"])
def test_round_trip_through_a_file(family: str, tmp_path: Path):
    structure = small(family)
    save_structure(structure, tmp_path / "net.json")
    assert load_structure(tmp_path / "net.json") == structure
    text = (tmp_path / "net.json").read_text(encoding="utf-8")
    assert text.endswith("}\n") and next(iter(json.loads(text))) == "schema_version"


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_structures_are_saved_canonically(name: str, tmp_path: Path):
    structure = load_published(name)
    save_structure(structure, tmp_path / "net.json")
    shipped = Path(__file__).parents[1] / "maenas" / "structures" / f"{name}.json"
    assert (tmp_path / "net.json").read_bytes() == shipped.read_bytes()
    assert structure.name == name


def test_digest_ignores_key_order_and_name():
    content = small().to_dict()
    backwards = {key: content[key] for key in reversed(content)}
    backwards["backbone"] = {key: content["backbone"][key] for key in reversed(content["backbone"])}
    backwards["name"] = "another"
    other = structure_from_dict(backwards)
    assert other.name == "another"
    assert other.digest == small().digest
    assert re.fullmatch(r"[0-9a-f]{12}", other.digest)


def test_digest_sees_every_field():
    original = small("mob")
    digests = {original.digest}
    changes: list[tuple[str, object]] = [
        ("image_size", [96, 64]),
        ("backbone.activation", "silu"),
        ("backbone.stem.out_channels", 9),
        ("backbone.stages.0.hidden_channels", [8, 13]),
        ("backbone.stages.0.se", True),
        ("backbone.stages.3.spp", False),
        ("neck.hidden_ratio", 0.5),
        ("neck.extra_edges", "up"),
        ("head.background_class", True),
    ]
    for path, value in changes:
        digests.add(structure_from_dict(changed(path, value, "mob")).digest)
    assert len(digests) == len(changes) + 1


def test_defaults_may_be_left_out():
    content = changed("head.background_class", MISSING)
    del content["neck"]["fusion"], content["backbone"]["stages"][0]["se"]
    assert structure_from_dict(content) == small()


def test_a_whole_number_is_a_number():
    assert structure_from_dict(changed("neck.hidden_ratio", 1)).digest == small().digest


BAD_FIELDS: list[tuple[str, object, str]] = [
    ("schema_version", 2, "schema_version is 2; expected 1"),
    ("schema_version", MISSING, "schema_version is null; expected 1"),
    ("name", 3, "name is 3; expected a text"),
    ("name", MISSING, "name is missing"),
    ("image_size", 640, "image_size is 640; expected a list"),
    ("image_size", [640], "image_size has 1 entries; expected 2"),
    ("image_size", [640, 650], r"image_size\[1\] is 650; expected a multiple of 32 from 32 to 8192"),
    ("image_size", [0, 640], r"image_size\[0\] is 0; expected a multiple of 32"),
    ("image_size", [640, 8224], r"image_size\[1\] is 8224; expected a multiple of 32"),
    ("backbone", [], r"backbone is \[\]; expected an object"),
    ("backbone.family", "resnet", 'backbone.family is "resnet"; expected one of res, csp, mob, kxkx'),
    ("backbone.activation", "gelu", 'backbone.activation is "gelu"; expected one of relu, silu, leaky_relu'),
    ("backbone.stages", [], "backbone.stages is 0; expected 3 to 64 stages"),
    (
        "backbone.out_stages",
        [2, 2, 4],
        r"backbone.out_stages is \[2, 2, 4\]; expected three or four increasing of 1 to 4",
    ),
    (
        "backbone.out_stages",
        [2, 3, 5],
        r"backbone.out_stages is \[2, 3, 5\]; expected three or four increasing of 1 to 4",
    ),
    ("backbone.out_stages", [1, 3, 4], r"backbone.out_stages is \[1, 3, 4\]; expected strides 8, 16, 32"),
    ("backbone.out_stages", [2, 3], r"backbone.out_stages is \[2, 3\]; expected three or four increasing of 1 to 4"),
    (
        "backbone.out_stages",
        [1, 2, 3, 4],
        r"neck.out_channels is \[.*\]; expected 4 widths, as many as backbone.out_st",
    ),
    ("neck.out_channels", [8, 8], r"neck.out_channels is \[8, 8\]; expected three or four widths"),
    ("neck.out_channels", [8, 8, 8, 8], r"neck.out_channels is \[8, 8, 8, 8\]; expected 3 widths"),
    ("backbone.stem.kind", "patch", 'backbone.stem.kind is "patch"; expected one of focus, conv'),
    ("backbone.stem.in_channels", 0, f"backbone.stem.in_channels is 0; expected an integer from 1 to {MAX_CHANNELS}"),
    ("backbone.stem.out_channels", -8, "backbone.stem.out_channels is -8; expected an integer from 1"),
    ("backbone.stem.kernel_size", 4, "backbone.stem.kernel_size is 4; expected an odd integer from 1 to 31"),
    ("backbone.stem.stride", 2, "backbone.stem.stride is 2; expected 1 for a focus stem"),
    ("backbone.stages.1.out_channels", MAX_CHANNELS + 1, r"stages\[1\].out_channels is 65537; expected"),
    ("backbone.stages.1.out_channels", 10**30, r"stages\[1\].out_channels is 10+; expected an integer from 1"),
    ("backbone.stages.1.out_channels", 16.0, r"stages\[1\].out_channels is 16.0; expected an integer"),
    ("backbone.stages.1.out_channels", True, r"stages\[1\].out_channels is true; expected an integer"),
    ("backbone.stages.1.out_channels", None, r"stages\[1\].out_channels is null; expected an integer"),
    ("backbone.stages.1.out_channels", float("nan"), r"stages\[1\].out_channels is NaN; expected an integer"),
    ("backbone.stages.1.hidden_channels", [8, -1], r"stages\[1\].hidden_channels\[1\] is -1; expected an integer from"),
    ("backbone.stages.1.hidden_channels", [8, "8"], r'stages\[1\].hidden_channels\[1\] is "8"; expected an integer'),
    ("backbone.stages.1.hidden_channels", [8] * 257, r"stages\[1\].hidden_channels is \[8.*expected at most 256 units"),
    ("backbone.stages.1.hidden_channels", [], r"stages\[1\].hidden_channels is \[\]; expected at least one unit"),
    ("backbone.stages.1.stride", 3, r"stages\[1\].stride is 3; expected 1 or 2"),
    ("backbone.stages.1.kernel_size", 33, r"stages\[1\].kernel_size is 33; expected an odd integer"),
    ("backbone.stages.1.se", 1, r"stages\[1\].se is 1; expected true or false"),
    ("backbone.stages.1.se", True, r"stages\[1\].se is true; expected false \(only family mob has SE\)"),
    ("backbone.stages.3.out_channels", 33, r"stages\[3\].out_channels is 33; expected an even number with spp"),
    ("neck.out_channels", [1, 8, 8], r"neck.out_channels\[0\] is 1; expected an integer of at least 2"),
    ("neck.num_blocks", -1, "neck.num_blocks is -1; expected an integer from 0 to 64"),
    ("neck.num_blocks", True, "neck.num_blocks is true; expected an integer"),
    ("neck.hidden_ratio", 0.0, "neck.hidden_ratio is 0.0; expected a number above 0, at most 8"),
    ("neck.hidden_ratio", 9, "neck.hidden_ratio is 9.0; expected a number above 0"),
    ("neck.hidden_ratio", float("nan"), "neck.hidden_ratio is NaN; expected a number above 0"),
    ("neck.hidden_ratio", float("inf"), "neck.hidden_ratio is Infinity; expected a number above 0"),
    ("neck.hidden_ratio", "1", 'neck.hidden_ratio is "1"; expected a number'),
    ("neck.activation", "none", 'neck.activation is "none"; expected one of'),
    ("neck.depthwise", 0, "neck.depthwise is 0; expected true or false"),
    ("neck.fusion", "elan", 'neck.fusion is "elan"; expected one of conv, csp, csp_reparam, csp_elan'),
    ("neck.extra_edges", "all", 'neck.extra_edges is "all"; expected one of none, down, up, both'),
    ("head.num_classes", 0, "head.num_classes is 0; expected an integer from 1 to 100000"),
    ("head.reg_max", 129, "head.reg_max is 129; expected an integer from 1 to 128"),
    ("head.kernel_size", 2, "head.kernel_size is 2; expected an odd integer"),
    ("head.tower_depth", 17, "head.tower_depth is 17; expected an integer from 0 to 16"),
    ("head.tower_channels", 0, "head.tower_channels is 0; expected an integer from 1"),
    ("head.num_clases", 3, "head.num_clases is not a field; did you mean num_classes?"),
    ("head.reg_max", MISSING, "head.reg_max is missing"),
    ("zzz", 1, "zzz is not a field; expected name, image_size, backbone, neck, head"),
]


@pytest.mark.parametrize(("path", "value", "message"), BAD_FIELDS)
def test_a_bad_field_is_named(path: str, value: object, message: str):
    with pytest.raises(StructureError, match=message) as caught:
        structure_from_dict(changed(path, value), source="net.json")
    assert str(caught.value).startswith("net.json: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("family", "path", "value", "message"),
    [
        ("csp", "backbone.stages.1.stride", 1, r"stages\[1\].stride is 1; expected 2 \(a csp stage starts"),
        ("csp", "backbone.stages.1.out_channels", 33, r"stages\[1\].out_channels is 33; expected an even number"),
        ("mob", "backbone.stages.1", SE_STAGE, r"stages\[1\].hidden_channels\[0\] is 3; expected at least 4 with SE"),
    ],
)
def test_a_field_that_the_family_excludes_is_named(family: str, path: str, value: object, message: str):
    with pytest.raises(StructureError, match=message):
        structure_from_dict(changed(path, value, family))


def test_depthwise_needs_the_elan_fusion():
    content = changed("neck.depthwise", True)
    content["neck"]["fusion"] = "csp"
    with pytest.raises(StructureError, match=r'neck\.fusion is "csp"; expected csp_elan when depthwise is true'):
        structure_from_dict(content)


def test_csp_stages_may_be_without_units():
    assert structure_from_dict(changed("backbone.stages.1.hidden_channels", [], "csp")).backbone.stages[1].depth == 0


@pytest.mark.parametrize("content", [None, [], "text", 3])
def test_only_objects_are_structures(content: object):
    with pytest.raises(StructureError, match="expected a JSON object"):
        structure_from_dict(content)


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "{'name': 1}", "\x00", "[" * 100_000 + "]" * 100_000])
def test_a_file_that_is_not_json_is_refused(text: str, tmp_path: Path):
    (tmp_path / "net.json").write_text(text, encoding="utf-8")
    with pytest.raises(StructureError, match=r"net\.json: is not valid JSON"):
        load_structure(tmp_path / "net.json")


def test_an_unreadable_file_is_refused(tmp_path: Path):
    (tmp_path / "latin.json").write_bytes(b'{"name": "\xe9"}')
    for path in (tmp_path, tmp_path / "none.json", tmp_path / "latin.json"):
        with pytest.raises(StructureError, match="cannot be read as text"):
            load_structure(path)


def test_a_constructor_checks_too():
    with pytest.raises(ValueError, match="kernel_size is 2; expected an odd integer"):
        dataclasses.replace(small().head, kernel_size=2)


def test_an_interrupted_save_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "net.json"
    save_structure(small(), path)
    before = path.read_bytes()

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_structure(small("csp"), path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["net.json"]


def test_an_unwritable_place_is_named(tmp_path: Path):
    with pytest.raises(OutputError, match=r"none/net\.json: cannot be written \(No such file or directory\)"):
        save_structure(small(), tmp_path / "none" / "net.json")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError, match="folder: cannot be written"):
        save_structure(small(), tmp_path / "folder")
    assert os.listdir(tmp_path) == ["folder"]


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="the superuser may write into every folder")
def test_a_folder_without_permission_is_named(tmp_path: Path):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(OutputError, match="cannot be written"):
            save_structure(small(), tmp_path / "net.json")
    finally:
        tmp_path.chmod(0o700)


def test_published_names_are_found_in_any_case():
    assert load_published("DAMO-YOLO-Ns").name == "damo-yolo-ns"
    assert resolve_structure("Damo-Yolo-S") == load_published("damo-yolo-s")
    assert set(PUBLISHED_FACTS) == set(PUBLISHED) - {"damo-yolo-n"}


def test_an_unknown_name_lists_the_known_and_the_nearest():
    with pytest.raises(StructureError, match=r"'damo-yolo-xs' is unknown; .*damo-yolo-nl.*did you mean damo-yolo-s\?"):
        resolve_structure("damo-yolo-xs")


def test_a_missing_path_is_no_unknown_name(tmp_path: Path):
    with pytest.raises(StructureError, match=r"none\.json: cannot be read as text"):
        resolve_structure(tmp_path / "none.json")


def test_resolve_reads_our_files_and_official_ones(tmp_path: Path):
    ours, theirs = tmp_path / "ours.json", tmp_path / "theirs.txt"
    structure = load_published("damo-yolo-s")
    save_structure(structure, ours)
    theirs.write_text(export_official(structure), encoding="utf-8")
    assert resolve_structure(ours) == structure
    assert resolve_structure(theirs).digest == structure.digest
    assert resolve_structure(theirs, family="mob") == import_official(theirs, family="mob")
    with pytest.raises(StructureError, match="family is given; expected it for an official file only"):
        resolve_structure(ours, family="res")
    with pytest.raises(StructureError, match=r"ours\.json: index is given"):
        resolve_structure(ours, index=0)


def test_to_dict_shares_nothing_with_the_structure():
    structure = small()
    before = copy.deepcopy(structure.to_dict())
    structure.to_dict()["backbone"]["stages"][0]["out_channels"] = 1
    assert structure.to_dict() == before


def test_the_documented_example_is_the_shipped_network():
    text = (Path(__file__).parents[1] / "docs" / "structure-format.md").read_text(encoding="utf-8")
    example = text.partition("```json\n")[2].partition("```")[0]
    assert structure_from_dict(json.loads(example)) == load_published("damo-yolo-ns")
