"""Official weights: names, order, shapes, round trips and everything that can be wrong with a file."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")

from network_cases import (  # noqa: E402
    KERNEL_GAIN,
    MODELS,
    Malicious,
    assert_identical,
    filled,
    filled_state,
    key_list,
    published,
    random_structure,
)

from detector.checkpoint import Checkpoint, save_checkpoint  # noqa: E402
from detector.convert_official import (  # noqa: E402
    from_official,
    load_official,
    official_names,
    read_official,
    save_official,
    to_official,
)
from detector.errors import CheckpointError  # noqa: E402
from detector.model import Detector  # noqa: E402
from detector.reparam import deploy, fuse_reparam  # noqa: E402
from maenas.errors import MaenasError  # noqa: E402

SMALL = random_structure("res", 0)


def described(state):
    return [(key, tuple(value.shape), str(value.dtype).removeprefix("torch.")) for key, value in state.items()]


@pytest.fixture(scope="module")
def state():
    return filled_state("ns")


def save(content, path):
    torch.save(content, path)
    return path


@pytest.mark.parametrize("name", MODELS)
def test_keys_are_the_official_ones_in_order(name):
    with torch.device("meta"):
        model = Detector(published(name))
    assert described(to_official(model)) == key_list(name)
    names = official_names(model)
    assert set(names) == set(model.state_dict()) and len(set(names.values())) == len(names)


@pytest.mark.parametrize("name", MODELS)
def test_fused_keys_are_the_official_ones(name):
    """A two-branch convolution's 12 entries become one kernel and one bias; the rest stays."""
    with torch.device("meta"):
        model = fuse_reparam(Detector(published(name)))
    expected = []
    for key, shape, dtype in key_list(name):
        prefix = key.partition(".rbr_")[0]
        if ".rbr_dense.conv." in key:
            expected.append((f"{prefix}.rbr_reparam.weight", shape, dtype))
            expected.append((f"{prefix}.rbr_reparam.bias", shape[:1], dtype))
        elif ".rbr_" not in key:
            expected.append((key, shape, dtype))
    assert described(to_official(model)) == expected
    assert len(expected) == {"t": 346, "s": 370, "m": 514, "l": 634, "nl": 544}.get(name, 526)


@pytest.mark.parametrize("name", MODELS)
def test_a_round_trip_is_bit_identical(name, tmp_path):
    official = {key: filled(key, shape, KERNEL_GAIN[name]) for key, shape, _ in key_list(name)}
    model = load_official(save({"model": official}, tmp_path / "official.pth"), published(name))
    save_official(model, tmp_path / "back.pth")
    back = torch.load(tmp_path / "back.pth", weights_only=True)["model"]
    assert_identical(official, back)


@pytest.mark.parametrize("family", ["res", "kxkx", "csp", "mob"])
@pytest.mark.parametrize("change", [lambda model: model, fuse_reparam])
def test_other_structures_make_the_round_trip_too(family, change):
    for seed in range(3):
        structure = random_structure(family, seed)
        model = change(Detector(structure).eval())
        back = from_official(to_official(model), structure)
        assert_identical(model.state_dict(), back.state_dict())


def test_all_documented_layouts_load(state, tmp_path):
    structure = published("ns")
    parallel = {f"module.{key}": value for key, value in state.items()}
    training = {"epoch": 3, "model": state, "optimizer": {"state": {}, "param_groups": []}, "feature_loss": None}
    for index, content in enumerate((state, {"model": state}, parallel, {"model": parallel}, training)):
        model = load_official(save(content, tmp_path / f"{index}.pth"), structure)
        assert_identical(to_official(model), state)
        assert not model.training


def test_averaged_weights_are_preferred_where_a_file_has_both(state, tmp_path):
    other = {key: torch.zeros_like(value) for key, value in state.items()}
    files = ({"ema": state, "model": other}, {"ema": None, "state_dict": state}, {"model": state, "state_dict": other})
    for index, content in enumerate(files):
        assert_identical(read_official(save(content, tmp_path / f"{index}.pth")), state)


def test_merged_branches_load_into_the_merged_form(tmp_path):
    model = fuse_reparam(Detector(SMALL))
    save_official(model, tmp_path / "fused.pth")
    again = load_official(tmp_path / "fused.pth", SMALL)
    assert_identical(again.state_dict(), model.state_dict())


def test_every_key_that_does_not_fit_is_named(state):
    wrong = OrderedDict(state)
    del wrong["neck.merge_3.conv1.conv.weight"], wrong["head.scales.1.scale"]
    wrong["neck.extra.weight"] = torch.zeros(1)
    wrong["head.gfl_reg.2.bias"] = torch.zeros(5)
    with pytest.raises(CheckpointError, match=r"net\.pth: does not fit structure 'damo-yolo-ns'") as caught:
        from_official(wrong, published("ns"), source="net.pth")
    for part in (
        "2 missing: neck.merge_3.conv1.conv.weight, head.scales.1.scale",
        "1 unexpected: neck.extra.weight",
        "head.gfl_reg.2.bias is (5,), expected (32,)",
    ):
        assert part in str(caught.value)
    assert isinstance(caught.value, MaenasError)


def test_weights_of_another_structure_are_refused(state):
    with pytest.raises(CheckpointError, match="of another shape"):
        from_official(state, published("nm"))
    other = replace(published("ns"), head=replace(published("ns").head, num_classes=5))
    with pytest.raises(CheckpointError, match=r"head\.gfl_cls\.0\.bias is \(80,\), expected \(5,\)") as caught:
        from_official(state, other)
    assert "the file has 80 classes, the structure 5; expected head.num_classes 80" in str(caught.value)


def test_other_bins_are_refused(state):
    with pytest.raises(CheckpointError, match=r"integral\.project is \[1\.0"):
        from_official(state | {"head.integral.project": torch.arange(1.0, 9.0)}, published("ns"))


def test_the_background_channel_of_old_files(state):
    structure = published("ns")
    legacy = {key: torch.cat([value, value[-1:] + 1]) if ".gfl_cls." in key else value for key, value in state.items()}
    with pytest.raises(CheckpointError, match="one class channel too many"):
        from_official(legacy, structure)
    dropped = from_official(legacy, structure, drop_background=True)
    whole = from_official(legacy, replace(structure, head=replace(structure.head, background_class=True)))
    assert_identical(to_official(whole), legacy)
    for odd in (state, {key: value[:5] if ".gfl_cls." in key else value for key, value in state.items()}):
        with pytest.raises(CheckpointError, match=r"class channels; expected 81 .* background channel to drop"):
            from_official(odd, structure, drop_background=True)
    with pytest.raises(CheckpointError, match=r"no background: unset head\.background_class"):
        from_official(state, replace(structure, head=replace(structure.head, background_class=True)))
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        outputs = whole(images)
        first, second = whole.decode(outputs), dropped.decode(dropped(images))
    assert outputs.cls_logits.shape[2] == 81 and first[0].shape[2] == 80
    # A convolution of one channel more may run in another kernel, which rounds otherwise.
    torch.testing.assert_close(first[0], second[0], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(first[1], second[1], atol=1e-3, rtol=1e-5)


def test_a_deployed_model_has_no_official_form():
    with pytest.raises(CheckpointError, match=r"norm is folded; expected a model before deploy\(\)"):
        to_official(deploy(Detector(SMALL)))


def test_a_malicious_pickle_is_refused_and_does_nothing(tmp_path):
    marker = tmp_path / "was-run"
    path = save({"model": {"weight": Malicious(str(marker))}}, tmp_path / "bad.pth")
    with pytest.raises(CheckpointError, match=r"bad\.pth: cannot be read as weights .* expected tensors only"):
        read_official(path)
    assert not marker.exists()


def test_damaged_files_are_named(state, tmp_path):
    whole = save(state, tmp_path / "whole.pth").read_bytes()
    for name, content in (("short", whole[: len(whole) // 2]), ("zero", b""), ("text", b"no weights at all\n")):
        path = tmp_path / f"{name}.pth"
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=rf"{name}\.pth: cannot be read as weights"):
            read_official(path)
    with pytest.raises(CheckpointError, match=r"missing\.pth: cannot be read"):
        read_official(tmp_path / "missing.pth")


def test_a_checkpoint_of_ours_is_no_official_one(tmp_path):
    for path in (tmp_path / "ours.pth", tmp_path / "ours.safetensors"):
        save_checkpoint(Checkpoint(SMALL, Detector(SMALL).state_dict(), Detector(SMALL).class_names), path)
        with pytest.raises(CheckpointError, match=r"ours\..*: is a safetensors file; expected an official checkpoint"):
            read_official(path)


@pytest.mark.parametrize(
    "content, message",
    [
        ([1, 2], "holds list; expected a state dict"),
        ({}, "expected a state dict"),
        ({"epoch": 3}, "'epoch' is int; expected a tensor"),
        ({3: torch.zeros(1)}, "3 is Tensor; expected a tensor under a text key"),
        ({"a": torch.zeros(1), "module.a": torch.zeros(1)}, "a occurs twice"),
    ],
)
def test_files_that_hold_no_weights_are_refused(content, message, tmp_path):
    with pytest.raises(CheckpointError, match=message):
        read_official(save(content, tmp_path / "odd.pth"))


def test_saving_replaces_a_file_only_when_complete(tmp_path):
    model = Detector(SMALL)
    path = tmp_path / "weights.pth"
    path.write_bytes(b"old")
    with pytest.raises(CheckpointError, match="folded"):
        save_official(deploy(model), path)
    assert path.read_bytes() == b"old"
    save_official(model, path)
    assert_identical(read_official(path), to_official(model))
    assert [entry.name for entry in tmp_path.iterdir()] == ["weights.pth"]
    with pytest.raises(CheckpointError, match="cannot be written"):
        save_official(model, tmp_path / "nowhere" / "weights.pth")
