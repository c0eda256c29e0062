"""Official file forms: what they mean, what is refused, and the way back; then the `convert structure` verb."""

from __future__ import annotations

import argparse
import ast
import dataclasses
import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from maenas.cli import convert
from maenas.errors import OutputError, StructureError
from maenas.lowering.costs import num_layers
from maenas.lowering.reference import lower_reference, reference_macs, reference_params
from maenas.official import DIALECTS, FORMS, MAX_CHARACTERS, parse_content, read_official
from maenas.official_export import export_official
from maenas.official_import import import_official, import_reference
from maenas.published import PUBLISHED, load_published
from maenas.structure import Backbone, Stage, Stem, Structure, load_structure, save_structure

FIXTURES = Path(__file__).parent / "fixtures" / "structures"
ORIGINALS = Path(__file__).parents[2] / "shared" / "data" / "published_structures"
ORIGINAL_NAMES = {
    "t": "tinynas_L20_k1kx",
    "s": "tinynas_L25_k1kx",
    "m": "tinynas_L35_kxkx",
    "l": "tinynas_L45_kxkx",
    "ns": "tinynas_nano_small",
    "nm": "tinynas_nano_middle",
    "nl": "tinynas_nano_large",
    "n": "tinynas_L20_k1kx_nano",
}
# Layers, parameters in M, GMAC at 320 and operators of the reference graph .
REFERENCE = {
    "t": (19, 1.903, 3.997, 23),
    "s": (25, 3.054, 8.188, 28),
    "m": (35, 16.648, 32.769, 38),
    "l": (45, 32.407, 63.021, 48),
    "n": (19, 0.882, 2.320, None),
    "ns": (19, 0.973, 1.498, None),
    "nm": (19, 1.104, 2.359, None),
    "nl": (21, 2.242, 3.332, None),
    "tutorial": (25, 5.832, 7.351, None),
    "start-k1kx": (11, 1.132, 2.107, None),
    "start-kxkx": (11, 1.601, 4.480, None),
}


def load_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("structure_fixtures", FIXTURES / "regenerate.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SCRIPT = load_script()


def original(short: str) -> Path:
    path = ORIGINALS / f"{ORIGINAL_NAMES[short]}.txt"
    if not path.exists():
        pytest.skip("the published files are not part of the repository")
    return path


def one_fixture(short: str) -> Path:
    return min(FIXTURES.glob(f"{short}.*"))


def family_of(short: str) -> str | None:
    return "mob" if short.startswith("n") else None


def records(short: str = "s") -> list[dict[str, Any]]:
    """The records of a published network, to be spoilt."""
    content = ast.literal_eval(export_official(SCRIPT.plain_structure(short)))
    assert isinstance(content, list)
    return content


def written(tmp_path: Path, content: object) -> Path:
    path = tmp_path / "net.txt"
    path.write_text(content if isinstance(content, str) else repr(content), encoding="utf-8")
    return path


def test_fixtures_are_what_the_script_writes():
    on_disk = {path.name: path.read_text(encoding="utf-8") for path in FIXTURES.glob("*.v?.*")}
    assert on_disk == SCRIPT.files()
    assert {name.split(".")[0] for name in on_disk} == set(SCRIPT.FACTS)


@pytest.mark.parametrize("path", sorted(FIXTURES.glob("*.v?.*")), ids=lambda path: path.name)
def test_fixtures_import_as_the_published_networks(path: Path):
    short = path.name.split(".")[0]
    name = f"damo-yolo-{short}"
    if name not in PUBLISHED:
        assert import_official(path).backbone.family == ("csp" if "kxkx" in short else "res")
        return
    structure = import_official(path, family=family_of(short), recipe=name)
    assert structure.digest == load_published(name).digest
    assert structure.name == path.stem


@pytest.mark.parametrize("short", ORIGINAL_NAMES)
def test_originals_import_as_the_published_networks(short: str):
    name = f"damo-yolo-{short}"
    structure = import_official(original(short), family=family_of(short), recipe=name)
    assert structure.digest == load_published(name).digest


@pytest.mark.parametrize("short", ORIGINAL_NAMES)
def test_originals_survive_the_way_back(short: str, tmp_path: Path):
    """Every number of the file comes back, the ignored keys aside."""
    plain = import_reference(original(short))
    again = written(tmp_path, export_official(plain))
    before, after = read_official(original(short)), read_official(again)
    assert dataclasses.replace(after, source=before.source) == before
    assert import_reference(again).digest == plain.digest


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("name", PUBLISHED)
def test_export_inverts_import(name: str, dialect: str, form: str, tmp_path: Path):
    structure = load_published(name)
    path = written(tmp_path, export_official(structure, form=form, dialect=dialect))
    again = import_official(path, family=structure.backbone.family, recipe=structure)
    assert dataclasses.replace(again, name=name) == structure
    assert (read_official(path).stem.in_channels == 12) == (dialect == "v2")


@pytest.mark.parametrize("short", REFERENCE)
def test_reference_numbers(short: str):
    layers, params, gmac, num_ops = REFERENCE[short]
    ops = lower_reference(import_reference(one_fixture(short)))
    assert num_layers(ops) == layers
    assert reference_params(ops) / 1e6 == pytest.approx(params, abs=5.1e-4, rel=0)
    assert reference_macs(ops) / 1e9 == pytest.approx(gmac, abs=5.1e-4, rel=0)
    if num_ops is not None:
        assert sum(op.kind == "conv" for op in ops) == num_ops


@pytest.mark.parametrize("short", ORIGINAL_NAMES)
def test_originals_and_fixtures_read_alike_in_the_reference(short: str):
    assert import_reference(original(short)).digest == import_reference(one_fixture(short)).digest


def test_default_readings_and_recipes():
    small, medium = load_published("damo-yolo-s"), load_published("damo-yolo-m")
    tiny = import_official(one_fixture("t"))
    assert (tiny.backbone.family, tiny.head, tiny.image_size) == ("res", small.head, (640, 640))
    assert tiny.neck == dataclasses.replace(small.neck, out_channels=(96, 192, 384))
    assert import_official(one_fixture("l")).neck == medium.neck
    nano = import_official(one_fixture("nm"), family="mob")
    assert nano.digest == load_published("damo-yolo-nm").digest
    assert nano.backbone.stem == Stem("conv", 3, 16, 3, 2)


def test_a_recipe_gives_everything_but_the_layers():
    recipe = load_published("damo-yolo-t")
    recipe = dataclasses.replace(recipe, image_size=(320, 640), head=dataclasses.replace(recipe.head, num_classes=3))
    structure = import_official(one_fixture("s"), recipe=recipe)
    assert (structure.image_size, structure.neck, structure.head) == ((320, 640), recipe.neck, recipe.head)
    assert structure.neck.out_channels == (64, 128, 256)
    assert structure.backbone.stages == load_published("damo-yolo-s").backbone.stages


def test_a_kxkx_file_read_block_by_block():
    backbone = import_official(one_fixture("m"), family="kxkx").backbone
    assert [stage.depth for stage in backbone.stages] == [2, 4, 4, 4, 3]
    assert backbone.out_stages == (2, 4, 5)
    assert [stage.spp for stage in backbone.stages] == [False] * 4 + [True]


def test_csp_takes_the_width_of_the_first_block_of_the_pair(tmp_path: Path):
    content = records("m")
    content[4]["out"] = content[5]["in"] = 320
    content[4]["btn"] = 64
    stage = import_official(written(tmp_path, content), family="csp").backbone.stages[2]
    assert stage.out_channels == 256
    assert stage.hidden_channels == (256,) * 3 + (64,) * 4


def test_csp_stages_of_one_unit_are_bare_down_samplers(tmp_path: Path):
    content = records("m")
    content[1]["L"] = 1
    structure = import_official(written(tmp_path, content))
    assert structure.backbone.stages[0].hidden_channels == ()
    again = import_official(written(tmp_path, export_official(structure)), recipe=structure)
    assert again == structure


@pytest.mark.parametrize("in_channels", [3, 12])
def test_both_ways_to_say_a_focus_stem(in_channels: int, tmp_path: Path):
    content = records()
    content[0]["in"] = in_channels
    assert import_official(written(tmp_path, content)).backbone.stem == Stem("focus", 3, 32, 3, 1)


def test_a_stride_2_stem_is_a_plain_convolution(tmp_path: Path):
    content = records()
    content[0]["s"] = 2
    structure = import_official(written(tmp_path, content))
    assert structure.backbone.stem == Stem("conv", 3, 32, 3, 2)
    assert export_official(structure, dialect="v2").startswith("[{'class': 'ConvKXBNRELU', 'in': 3, 'out': 32, 's': 2")


def test_ignored_keys_change_nothing(tmp_path: Path):
    content = records()
    before = import_official(written(tmp_path, content))
    for record in content:
        record |= {"nbitsA": [8], "nbitsW": 8, "inner_class": "Anything", "act": "relu", "g": 1, "p": None}
    del content[0]["s"]
    assert import_official(written(tmp_path, content)) == before


def test_numpy_wrappers_and_layout_are_tolerated(tmp_path: Path):
    text = repr(records()).replace("'out': 128", "'out': np.float64(128.0)").replace("'L': 5", "'L': numpy.int64(5)")
    path = written(tmp_path, "\ufeff\n   # best network\n " + text.replace(", {", ",\n\n      {") + "\n\n")
    assert import_official(path).digest == load_published("damo-yolo-s").digest


def test_the_index_picks_an_entry(tmp_path: Path):
    path = written(tmp_path, {"space_arch": "CnnNet", "score": -1.5, "best_structures": [records("s"), records("t")]})
    assert import_official(path, index=1, recipe="damo-yolo-t").digest == load_published("damo-yolo-t").digest
    assert import_reference(path, index=1).name == "net-1"
    with pytest.raises(StructureError, match=r"index is 2; expected 0 to 1"):
        import_official(path, index=2)
    with pytest.raises(StructureError, match=r"index is -1; expected 0 to 1"):
        import_official(path, index=-1)


BAD_RECORDS: list[tuple[int, str, object, str]] = [
    (0, "class", "SuperResConvK1KX", "entry 0: class is SuperResConvK1KX; expected ConvKXBNRELU, the stem"),
    (0, "class", None, "entry 0: class is missing; expected a class name"),
    (0, "in", 4, "entry 0: in is 4 with s 1; expected 3 or 12 with s 1"),
    (0, "s", 3, "entry 0: s is 3; expected an integer from 1 to 2"),
    (0, "out", 24, "entry 1: in is 32; expected 24, the out before it"),
    (1, "class", "ConvKXBNRELU", "entry 1: class is ConvKXBNRELU; expected one of SuperResConvK1KX, "),
    (1, "class", "SuperResK1KXK1", "entry 1: class is SuperResK1KXK1; expected one of SuperResConvK1KX, "),
    (1, "class", ["x"], "entry 1: class is a list of 1; expected one of"),
    (2, "class", "SuperResKXKX", "entry 2: class is SuperResKXKX; expected a k1kx class as in the entries before it"),
    (2, "btn", None, "entry 2: btn is missing; expected an integer from 1 to 65536"),
    (2, "L", None, "entry 2: L is missing; expected an integer from 1 to 256"),
    (2, "L", 0, "entry 2: L is 0; expected an integer from 1 to 256"),
    (2, "L", 10**9, "entry 2: L is 1000000000; expected an integer from 1 to 256"),
    (2, "out", 64.5, "entry 2: out is 64.5; expected an integer"),
    (2, "out", "64", "entry 2: out is 64; expected an integer"),
    (2, "out", True, "entry 2: out is True; expected an integer"),
    (2, "out", -64, "entry 2: out is -64; expected an integer"),
    (2, "out", [64], "entry 2: out is a list of 1; expected an integer"),
    (2, "out", 10**12, "entry 2: out is 1000000000000; expected an integer from 1 to 65536"),
    (3, "in", 64, "entry 3: in is 64; expected 128, the out before it"),
    (3, "s", 1, "s gives strides 4, 8, 16 after the blocks; expected 8, 16 and 32 among them"),
    (3, "k", 4, "kernel_size is 4; expected an odd integer"),
    (3, "g", 2, "entry 3: g is 2; expected 1 or no such key"),
    (3, "p", 0, "entry 3: p is 0; expected 1 or no such key"),
    (3, "force_resproj_skip", True, "entry 3: force_resproj_skip is True; expected 0 or no such key"),
    (3, "bnt", 3, "entry 3: bnt is not a key of this class; expected class, in, out, btn, k, s, L"),
]


@pytest.mark.parametrize(("entry", "key", "value", "message"), BAD_RECORDS)
def test_a_bad_record_is_named(entry: int, key: str, value: object, message: str, tmp_path: Path):
    content = records()
    if value is None:
        del content[entry][key]
    else:
        content[entry][key] = value
    with pytest.raises(StructureError) as caught:
        import_official(written(tmp_path, content))
    assert message in str(caught.value)
    assert str(caught.value).startswith(str(tmp_path / "net.txt"))


def test_records_in_the_wrong_order_are_refused(tmp_path: Path):
    content = records()
    with pytest.raises(StructureError, match="entry 0: class is SuperResConvK1KX; expected ConvKXBNRELU"):
        import_official(written(tmp_path, content[::-1]))
    with pytest.raises(StructureError, match="entry 1: in is 128; expected 32, the out before it"):
        import_official(written(tmp_path, [content[0], content[3], *content[1:3], *content[4:]]))


def test_csp_needs_the_published_order_of_strides(tmp_path: Path):
    content = records("m")
    content[3]["s"], content[4]["s"] = 1, 2
    with pytest.raises(StructureError, match=r"s of the blocks is \(2, 2, 1, 2, 2\); expected \(2, 2, 2, 1, 2\)"):
        import_official(written(tmp_path, content))
    assert import_official(written(tmp_path, content), family="kxkx").backbone.out_stages == (3, 4, 5)


def test_a_family_that_the_blocks_exclude_is_refused():
    with pytest.raises(StructureError, match="family is csp; expected res or mob for a file of k1kx blocks"):
        import_official(one_fixture("s"), family="csp")
    with pytest.raises(StructureError, match="family is mob; expected csp or kxkx for a file of kxkx blocks"):
        import_official(one_fixture("m"), family="mob")
    with pytest.raises(StructureError, match="structure 'tiny' is unknown"):
        import_official(one_fixture("s"), recipe="tiny")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty; expected a structure file"),
        ("1)(1", "is neither JSON nor a Python literal"),
        ("[1, 2", "is neither JSON nor a Python literal"),
        ("{[]: 1}", "is neither JSON nor a Python literal"),
        ("__import__('os').remove('x')", r"line 1 has \"__import__"),
        ("[\n  open('x')]", "line 2 has"),
        ("[1, 2]\x00", "line 1 has"),
        ("[" * 100_000, "is nested more than 16 levels deep"),
        ("[" * 17 + "]" * 17, "is nested more than 16 levels deep"),
        ("-" * 1000 + "1", "line 1 has '---"),
        ("9" * 5000, "is neither JSON nor a Python literal"),
        ("1" + " -1" * 50_000, "is neither JSON nor a Python literal"),
        (" " * (MAX_CHARACTERS + 1), "is larger than 2000000 characters"),
        ("3", "is 3; expected a list of records or a search result"),
        ("[]", "is a list of 0; expected a list of 2 to 65 records"),
        ("[" + "1, " * 70 + "]", "is a list of 70; expected a list of 2 to 65 records"),
        ("[1, 2]", "entry 0: is 1; expected a record with keys class"),
        ("{'space_arch': 'CnnNet'}", "best_structures is missing"),
        ("{'best_structures': []}", "best_structures is a list of 0; expected a list of networks"),
        ('{"best_structures": [null]}', r"best_structures\[0\]: is None; expected a list of 2 to 65 records"),
    ],
)
def test_a_file_that_holds_no_network_is_refused(text: str, message: str, tmp_path: Path):
    with pytest.raises(StructureError, match=message):
        import_official(written(tmp_path, text))


def test_an_unreadable_file_is_refused(tmp_path: Path):
    (tmp_path / "latin.txt").write_bytes(b"'\xe9'")
    for path in (tmp_path, tmp_path / "none.txt", tmp_path / "latin.txt"):
        with pytest.raises(StructureError, match="cannot be read as text"):
            import_official(path)


def test_json_and_literals_parse_alike():
    assert parse_content('{"a": [1, true, null, -2.5e1]}', source="f") == {"a": [1, True, None, -25.0]}
    assert parse_content("{'a': [1, True, None, -2.5e1]}", source="f") == {"a": [1, True, None, -25.0]}


def with_stage(structure: Structure, index: int, **changes: Any) -> Structure:
    stages = list(structure.backbone.stages)
    stages[index] = dataclasses.replace(stages[index], **changes)
    return with_backbone(structure, stages=tuple(stages))


def with_backbone(structure: Structure, **changes: Any) -> Structure:
    return dataclasses.replace(structure, backbone=dataclasses.replace(structure.backbone, **changes))


STAGE_CHANGES: list[tuple[str, int, dict[str, object], str]] = [
    ("s", 1, {"hidden_channels": (8, 16)}, "stages[1].hidden_channels is [8, 16]; expected one width for all units"),
    ("s", 1, {"spp": True}, "stages[1].spp is true; expected SPP in the last stage only"),
    ("m", 0, {"hidden_channels": (8, 16)}, "stages[0].hidden_channels is [8, 16]; expected one width for all units"),
    ("m", 2, {"hidden_channels": (8, 16, 8)}, "stages[2].hidden_channels is [8, 16, 8]; expected at most two runs"),
    ("m", 2, {"hidden_channels": ()}, "stages[2].hidden_channels is []; expected at least one unit for file block 4"),
    ("nm", 0, {"hidden_channels": (144, 136)}, "stages[0].hidden_channels is [144, 136]; expected 144 in every unit"),
    ("nm", 0, {"kernel_size": 3}, "stages[0].kernel_size is 3; expected 5"),
    ("nm", 0, {"se": True}, "stages[0].se is true; expected false"),
]


@pytest.mark.parametrize(("short", "index", "changes", "message"), STAGE_CHANGES)
def test_a_stage_that_no_file_can_say_is_refused(short: str, index: int, changes: dict[str, object], message: str):
    structure = with_stage(load_published(f"damo-yolo-{short}"), index, **changes)
    with pytest.raises(StructureError) as caught:
        export_official(structure)
    where = f"damo-yolo-{short}: cannot be written as an official file: backbone."
    assert str(caught.value).startswith(where + message)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"out_stages": (2, 3, 5)}, r"out_stages is \[2, 3, 5\]; expected \[2, 4, 5\], the last of each stride"),
        ({"stem": Stem("focus", 1, 32, 3, 1)}, r"stem\.in_channels is 1; expected 3"),
    ],
)
def test_a_backbone_that_no_file_can_say_is_refused(changes: dict[str, object], message: str):
    with pytest.raises(StructureError, match=message):
        export_official(with_backbone(load_published("damo-yolo-s"), **changes))


def test_a_stride_1_stem_without_focus_is_refused():
    stem = Stem("conv", 3, 8, 3, 1)
    stages = tuple(Stage(8, (8,), 2, 3) for _ in range(5))
    structure = dataclasses.replace(
        load_published("damo-yolo-s"), backbone=Backbone("res", "relu", stem, stages, (3, 4, 5))
    )
    with pytest.raises(StructureError, match=r"stem\.stride is 1; expected 2 for a stem without focus"):
        export_official(structure)


def test_csp_with_another_number_of_stages_is_refused():
    structure = load_published("damo-yolo-m")
    stages = tuple(Stage(16, (8,), 2, 3) for _ in range(5))
    structure = dataclasses.replace(
        structure, backbone=Backbone("csp", "silu", Stem("focus", 3, 8, 3, 1), stages, (2, 3, 4))
    )
    with pytest.raises(StructureError, match="stages is 5 stages; expected 4 for family csp"):
        export_official(structure)


@pytest.mark.parametrize("hidden", [(8,), (8, 16), (8, 8, 16), (16,) * 5])
def test_every_expressible_csp_split_survives(hidden: tuple[int, ...], tmp_path: Path):
    structure = with_stage(load_published("damo-yolo-m"), 2, hidden_channels=hidden)
    again = import_official(written(tmp_path, export_official(structure)), recipe=structure)
    assert again.digest == structure.digest


def test_unknown_forms_and_dialects_are_refused():
    with pytest.raises(ValueError, match="form is 'yaml'; expected one of list, text, json"):
        export_official(load_published("damo-yolo-s"), form="yaml")
    with pytest.raises(ValueError, match="dialect is 'v3'; expected one of v1, v2"):
        export_official(load_published("damo-yolo-s"), dialect="v3")


# The verb.


def converted(*words: object) -> int:
    parser = argparse.ArgumentParser()
    convert.add_arguments(parser)
    return convert.run(parser.parse_args(["structure", *map(str, words)]))


def test_convert_prints_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert converted("damo-yolo-s", "--to", "json", "--dialect", "v2") == 0
    assert json.loads(capsys.readouterr().out)["best_structures"][0][0]["in"] == 12
    official, ours = tmp_path / "official.txt", tmp_path / "ours.json"
    assert converted("damo-yolo-n", official, "--to", "list") == 0
    assert converted(official, ours, "--family", "mob", "--recipe", "damo-yolo-n") == 0
    assert capsys.readouterr().out == ""
    assert load_structure(ours).digest == load_published("damo-yolo-n").digest
    assert converted(ours) == 0
    assert json.loads(capsys.readouterr().out)["schema_version"] == 1


def test_convert_overwrites_only_by_force(tmp_path: Path):
    path = tmp_path / "net.json"
    save_structure(load_published("damo-yolo-t"), path)
    with pytest.raises(OutputError, match=r"net\.json: exists already; expected a new file, or --force"):
        converted("damo-yolo-s", path)
    assert converted("damo-yolo-s", path, "--force") == 0
    assert load_structure(path).name == "damo-yolo-s"


def test_convert_refuses_options_that_do_nothing(tmp_path: Path):
    with pytest.raises(StructureError, match="--dialect is v2; expected it with --to"):
        converted("damo-yolo-s", "--dialect", "v2")
    with pytest.raises(StructureError, match="index is given; expected it for an official file only"):
        converted("damo-yolo-s", "--index", "1")
    with pytest.raises(StructureError, match="damo-yolo-q' is unknown"):
        converted("damo-yolo-q")


def test_the_example_of_the_verb_runs(capsys: pytest.CaptureFixture[str]):
    assert convert.HELP
    command, verb, what, *words = convert.EXAMPLE.split()
    assert (command, verb, what) == ("maenas", "convert", "structure")
    assert converted(*words) == 0
    assert capsys.readouterr().out.startswith("[{'class': 'ConvKXBNRELU'")
