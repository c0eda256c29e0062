"""`maenas convert weights`: official checkpoints to ours and back, and everything a user can hand in instead."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")

from cli_cases import answer  # noqa: E402
from network_cases import (  # noqa: E402
    KERNEL_GAIN,
    Malicious,
    assert_identical,
    filled,
    filled_state,
    key_list,
    published,
    random_structure,
)

from detector.checkpoint import load_checkpoint  # noqa: E402
from detector.coco_names import COCO_NAMES  # noqa: E402
from detector.convert_official import save_official, to_official  # noqa: E402
from detector.model import Detector  # noqa: E402
from detector.reparam import fuse_reparam  # noqa: E402
from maenas.structure import save_structure  # noqa: E402

SMALL = replace(random_structure("res", 0), head=replace(random_structure("res", 0).head, background_class=False))
CLASSES = SMALL.head.num_classes


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The current folder, with `small.json` and an official checkpoint of it, `small.pth`."""
    monkeypatch.chdir(tmp_path)
    save_structure(SMALL, tmp_path / "small.json")
    save_official(Detector(SMALL), tmp_path / "small.pth")
    return tmp_path


@pytest.fixture
def maenas(here, capsys):
    def run(*words):
        return answer(capsys, "convert", "weights", *words)

    return run


@pytest.fixture
def refused(maenas, here):
    """A command that must fail as a user's error and leave every file as it was; returns its one line."""

    def run(*words):
        before = snapshot(here)
        code, out, err = maenas(*words)
        assert (code, out) == (2, "")
        assert err.startswith("maenas: error: ") and err.count("\n") == 1
        assert snapshot(here) == before
        return err

    return run


def snapshot(folder: Path):
    return {path.name: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def changed(path, change):
    """The file again with a changed state dict."""
    torch.save(change(torch.load(path, weights_only=True)["model"]), path)


def with_class_channels(number):
    def change(state):
        return {key: value[:1].repeat(number, *[1] * (value.dim() - 1)) if ".gfl_cls." in key else value
                for key, value in state.items()}  # fmt: skip

    return change


@pytest.mark.parametrize("name", ["t", "ns"])
def test_a_published_network_there_and_back_is_bit_identical(maenas, here, name):
    official = {key: filled(key, shape, KERNEL_GAIN[name]) for key, shape, _ in key_list(name)}
    torch.save({"model": official}, "official.pth")
    code, out, err = maenas("official.pth", "ours.safetensors", "--structure", f"damo-yolo-{name}")
    assert (code, err, out.count("\n")) == (0, "", 1)
    params = sum(value.numel() for value in Detector(published(name)).parameters())
    assert out == (
        f"ours.safetensors: damo-yolo-{name}, {params:,} parameters, train form, 80 classes (person, bicycle, ...)\n"
    )
    code, out, err = maenas("ours.safetensors", "back.pth", "--to", "official", "--json")
    assert (code, err) == (0, "")
    record = json.loads(out)
    assert (record["output"], record["format"], record["params"]) == ("back.pth", "official", params)
    assert_identical(torch.load("back.pth", weights_only=True)["model"], official)


def test_what_our_checkpoint_records(maenas, here):
    code, out, err = maenas("small.pth", "ours.safetensors", "--structure", "small.json", "--json")
    assert (code, err) == (0, "")
    record = json.loads(out)
    names = [f"class_{label}" for label in range(CLASSES)]
    assert (record["structure"], record["digest"], record["form"]) == (SMALL.name, SMALL.digest, "train")
    assert (record["num_classes"], record["class_names"]) == (CLASSES, names)
    checkpoint = load_checkpoint("ours.safetensors")
    assert (checkpoint.structure, checkpoint.class_names, checkpoint.metrics) == (SMALL, tuple(names), {})
    assert checkpoint.provenance["source"] == "small.pth"
    assert checkpoint.provenance["sha256"] == hashlib.sha256(Path("small.pth").read_bytes()).hexdigest()
    assert checkpoint.provenance["converter"].startswith("maenas ")
    assert checkpoint.preprocessing["range"] == [0, 255]


def test_the_forms(maenas, refused, here):
    """Branches are merged on request, kept merged, and never taken apart."""
    merged = to_official(fuse_reparam(Detector.from_checkpoint(ours(maenas))))
    assert maenas("small.pth", "fused.safetensors", "--structure", "small.json", "--form", "fused")[0] == 0
    assert_identical(to_official(load_checkpoint("fused.safetensors").build()), merged)
    assert maenas("ours.safetensors", "fused.pth", "--to", "official", "--form", "fused")[0] == 0
    assert_identical(torch.load("fused.pth", weights_only=True)["model"], merged)
    code, out, _ = maenas("fused.pth", "again.safetensors", "--structure", "small.json")
    assert code == 0 and "fused form" in out
    assert Path("again.safetensors").stat().st_size < Path("ours.safetensors").stat().st_size
    message = "its branches are merged and cannot be taken apart; expected --form fused"
    assert message in refused("fused.pth", "x.safetensors", "--structure", "small.json", "--form", "train")
    assert message in refused("fused.safetensors", "x.pth", "--to", "official", "--form", "train")


def ours(maenas):
    assert maenas("small.pth", "ours.safetensors", "--structure", "small.json")[0] == 0
    return "ours.safetensors"


def test_another_number_of_classes(maenas, refused, here):
    wanted = CLASSES + 7
    changed("small.pth", with_class_channels(wanted))
    command = ("small.pth", "ours.safetensors", "--structure", "small.json")
    message = refused(*command)
    assert f"the file has {wanted} classes, the structure {CLASSES}; expected head.num_classes {wanted}" in message
    assert f"(--num-classes {wanted})" in message
    assert maenas(*command, "--num-classes", wanted)[0] == 0
    checkpoint = load_checkpoint("ours.safetensors")
    assert checkpoint.structure.head.num_classes == wanted and checkpoint.class_names[-1] == f"class_{wanted - 1}"
    assert f"the file has {wanted} classes, the structure 5" in refused(*command, "--num-classes", 5, "--force")
    assert "--num-classes: num_classes is 0; expected an integer" in refused(*command, "--num-classes", 0, "--force")


def test_the_model_of_701_classes(maenas, here):
    state = with_class_channels(701)(filled_state("s"))
    torch.save({"model": state}, "s701.pth")
    command = ("s701.pth", "s701.safetensors", "--structure", "damo-yolo-s")
    code, out, _ = maenas(*command, "--num-classes", 701)
    assert code == 0 and "701 classes (class_0, class_1, ...)" in out
    assert maenas("s701.safetensors", "back.pth", "--to", "official")[0] == 0
    assert_identical(torch.load("back.pth", weights_only=True)["model"], state)


def test_a_background_channel(maenas, refused, here):
    changed("small.pth", with_class_channels(CLASSES + 1))
    command = ("small.pth", "ours.safetensors", "--structure", "small.json")
    message = refused(*command)
    assert "one class channel too many" in message
    assert all(way in message for way in ("head.background_class", "--drop-background", f"--num-classes {CLASSES + 1}"))
    assert maenas(*command, "--drop-background")[0] == 0
    assert load_checkpoint("ours.safetensors").structure == SMALL
    whole = replace(SMALL, head=replace(SMALL.head, background_class=True))
    save_structure(whole, Path("whole.json"))
    assert maenas("small.pth", "whole.safetensors", "--structure", "whole.json")[0] == 0
    assert load_checkpoint("whole.safetensors").weights["head.class_convs.0.bias"].shape == (CLASSES + 1,)
    assert maenas("whole.safetensors", "whole.pth", "--to", "official")[0] == 0
    assert_identical(torch.load("whole.pth", weights_only=True)["model"], torch.load("small.pth", weights_only=True))


def test_nothing_to_drop(refused):
    message = refused("small.pth", "ours.safetensors", "--structure", "small.json", "--drop-background")
    assert f"has {CLASSES} class channels; expected {CLASSES + 1}" in message


def test_names_from_a_file(maenas, refused, here):
    command = ("small.pth", "ours.safetensors", "--structure", "small.json", "--names", "names.txt")
    names = [f"Größe {label}" for label in range(CLASSES)]
    Path("names.txt").write_text("\r\n".join(names) + "\r\n\r\n", encoding="utf-8-sig", newline="")
    assert maenas(*command)[0] == 0
    assert load_checkpoint("ours.safetensors").class_names == tuple(names)
    for content, message in (
        ("\n".join([*names, "one more"]), f"names.txt: has {CLASSES + 1} class names; expected {CLASSES}"),
        ("\n" + "\n".join(names), "names.txt: line 1 is empty; expected a class name"),
    ):
        Path("names.txt").write_text(content, encoding="utf-8")
        assert message in refused(*command, "--force")
    Path("names.txt").write_bytes(b"\xff\xfe\xff")
    assert "names.txt: cannot be read (no UTF-8 text)" in refused(*command, "--force")
    Path("names.txt").unlink()
    assert "names.txt: cannot be read (No such file" in refused(*command, "--force")


def test_eighty_classes_are_those_of_coco():
    models = pytest.importorskip("torchvision.models.detection")
    listed = models.FasterRCNN_ResNet50_FPN_Weights.DEFAULT.meta["categories"]
    assert [name for name in listed if name not in ("N/A", "__background__")] == list(COCO_NAMES)


# What is refused.


def test_a_malicious_file_does_nothing(refused, here):
    marker = here / "was-run"
    torch.save({"model": {"weight": Malicious(str(marker))}}, "bad.pth")
    message = refused("bad.pth", "ours.safetensors", "--structure", "small.json")
    assert "bad.pth: cannot be read as weights" in message and "expected tensors only" in message
    assert not marker.exists()


@pytest.mark.parametrize("kind", ["truncated", "text", "empty", "missing", "folder"])
def test_files_that_hold_no_weights(refused, here, kind):
    path = here / "odd.pth"
    whole = (here / "small.pth").read_bytes()
    if kind == "folder":
        path.mkdir()
    elif kind != "missing":
        path.write_bytes({"truncated": whole[: len(whole) // 2], "text": b"no weights\n", "empty": b""}[kind])
    assert "odd.pth: cannot be read as weights" in refused("odd.pth", "x.safetensors", "--structure", "small.json")
    assert "odd.pth: cannot be read as a checkpoint" in refused("odd.pth", "x.pth", "--to", "official", "--force")


def test_a_file_of_another_structure_lists_every_key(refused, here):
    other = replace(SMALL, neck=replace(SMALL.neck, out_channels=(21, 22, 23)))
    save_structure(other, here / "other.json")
    message = refused("small.pth", "ours.safetensors", "--structure", "other.json")
    assert "small.pth: does not fit structure" in message
    expected, actual = to_official(Detector(other)), to_official(Detector(SMALL))
    wrong = [key for key in expected if expected[key].shape != actual[key].shape]
    assert len(wrong) > 10 and all(key in message for key in wrong)


def test_checkpoints_of_the_wrong_direction(maenas, refused, here):
    path = ours(maenas)
    message = refused(path, "x.safetensors", "--structure", "small.json")
    assert "is a safetensors file; expected an official checkpoint (.pth)" in message and "--to official" in message
    assert "small.pth: cannot be read as a checkpoint" in refused("small.pth", "x.pth", "--to", "official")


def test_the_name_of_the_output_fits_the_direction(refused):
    message = refused("small.pth", "out.pth", "--structure", "small.json")
    assert "out.pth: expected a name that ends with .safetensors" in message
    assert "expected a name that ends with .pth" in refused("small.pth", "out.safetensors", "--to", "official")


def test_only_force_overwrites(maenas, refused, here):
    (here / "old.safetensors").write_bytes(b"mine")
    (here / "old.pth").write_bytes(b"mine")
    command = ("small.pth", "old.safetensors", "--structure", "small.json")
    assert "old.safetensors: exists already; expected a new file, or --force" in refused(*command)
    assert maenas(*command, "--force")[0] == 0
    assert load_checkpoint("old.safetensors").structure == SMALL
    back = ("old.safetensors", "old.pth", "--to", "official")
    assert "old.pth: exists already" in refused(*back)
    assert maenas(*back, "--force")[0] == 0


@pytest.mark.parametrize("folder", ["nowhere", "small.json"])
def test_a_folder_that_cannot_be_written(maenas, refused, here, folder):
    assert "cannot be written" in refused("small.pth", f"{folder}/x.safetensors", "--structure", "small.json")
    assert "cannot be written" in refused(ours(maenas), f"{folder}/x.pth", "--to", "official")


def test_a_missing_or_unknown_structure(refused):
    assert "--structure is missing" in refused("small.pth", "x.safetensors")
    message = refused("small.pth", "x.safetensors", "--structure", "damo-yolo-q")
    assert "'damo-yolo-q' is unknown; expected one of" in message


@pytest.mark.parametrize(
    "words", [("--structure", "damo-yolo-t"), ("--names", "n.txt"), ("--num-classes", 0), ("--drop-background",)]
)
def test_options_that_do_nothing_on_the_way_back(refused, words):
    message = refused("ours.safetensors", "x.pth", "--to", "official", *words)
    assert f"{words[0]} is given; expected it with --to maenas only" in message
