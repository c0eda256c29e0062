"""Starting from trained weights: classes by name, frozen parts, and files that do not fit."""

from __future__ import annotations

from dataclasses import replace

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")

from network_cases import randomise_norms  # noqa: E402
from training_cases import tiny_structure  # noqa: E402

from detector.checkpoint import Checkpoint, load_checkpoint, save_checkpoint  # noqa: E402
from detector.convert_official import save_official  # noqa: E402
from detector.errors import CheckpointError, ConfigError  # noqa: E402
from detector.fine_tune import frozen_modules, read_weights, transfer_weights  # noqa: E402
from detector.model import Detector  # noqa: E402
from detector.reparam import fuse_reparam  # noqa: E402


def network(*names: str, seed: int = 0, **options) -> Detector:
    torch.manual_seed(seed)
    model = Detector(tiny_structure(num_classes=len(names), **options), class_names=names)
    for conv in model.head.class_convs:
        torch.nn.init.normal_(conv.bias)
    randomise_norms(model, seed)
    return model


def checkpoint_of(model: Detector) -> Checkpoint:
    return Checkpoint(model.structure, model.state_dict(), model.class_names)


def test_classes_are_matched_by_name():
    trained, model = network("cat", "dog", "fox"), network("fox", "owl", "cat", seed=1)
    initial = {name: value.clone() for name, value in model.state_dict().items()}
    taken = transfer_weights(model, checkpoint_of(trained), source="t")
    assert (taken.matched_classes, taken.new_classes) == (("fox", "cat"), ("owl",))
    assert taken.notes("t") == ("weights: from t; classes taken over: fox, cat; new: owl",)
    for level in range(3):
        for kind in ("weight", "bias"):
            key = f"head.class_convs.{level}.{kind}"
            found, theirs = model.state_dict()[key], trained.state_dict()[key]
            assert torch.equal(found[0], theirs[2]) and torch.equal(found[2], theirs[0])
            assert torch.equal(found[1], initial[key][1])
    for key, value in trained.state_dict().items():
        if ".class_convs." not in key:
            assert torch.equal(model.state_dict()[key], value), key


def test_a_new_head_keeps_no_class():
    trained, model = network("cat", "dog"), network("cat", "dog", seed=1)
    initial = model.state_dict()["head.class_convs.0.weight"].clone()
    taken = transfer_weights(model, checkpoint_of(trained), source="t", class_head="new")
    assert taken.new_classes == ("cat", "dog") and "all 2 start anew" in taken.notes("t")[0]
    assert torch.equal(model.state_dict()["head.class_convs.0.weight"], initial)
    assert torch.equal(model.state_dict()["head.box_convs.0.weight"], trained.state_dict()["head.box_convs.0.weight"])


def test_the_same_classes_give_the_same_network():
    trained, model = network("cat", "dog"), network("cat", "dog", seed=1)
    transfer_weights(model, checkpoint_of(trained), source="t")
    for name, value in trained.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name


def test_another_structure_is_named():
    trained, model = network("cat", width=12), network("cat")
    message = (
        f"t: holds weights of structure {trained.structure.digest} .tiny., which do not fit {model.structure.digest} "
        r".tiny.: backbone\.stem\..* is 12x12x3x3, expected 8x12x3x3; .*and \d+ more; give the checkpoint itself"
    )
    with pytest.raises(CheckpointError, match=message):
        transfer_weights(model, checkpoint_of(trained), source="t")
    deeper = replace(trained.structure, neck=replace(trained.structure.neck, num_blocks=2))
    other = Detector(deeper)
    with pytest.raises(CheckpointError, match="is unknown"):
        transfer_weights(network("cat", width=12), checkpoint_of(Detector(deeper, class_names=["cat"])), source="t")
    with pytest.raises(CheckpointError, match="is missing"):
        transfer_weights(other, checkpoint_of(trained), source="t")


def test_merged_weights_are_refused():
    merged = fuse_reparam(network("cat"))
    with pytest.raises(CheckpointError, match="are merged for deployment; expected a checkpoint as training writes it"):
        transfer_weights(network("cat"), checkpoint_of(merged), source="t")


def test_only_image_sizes_may_differ():
    trained, model = network("cat", size=64), network("cat", seed=1, size=96)
    assert transfer_weights(model, checkpoint_of(trained), source="t").matched_classes == ("cat",)


def test_our_files_and_official_ones_are_read(tmp_path):
    trained = network("cat", "dog")
    save_checkpoint(checkpoint_of(trained), tmp_path / "ours.safetensors")
    save_official(trained, tmp_path / "official.pth")
    ours = read_weights(tmp_path / "ours.safetensors", trained.structure)
    assert ours.class_names == load_checkpoint(tmp_path / "ours.safetensors").class_names == ("cat", "dog")
    # The structure's own number of classes does not matter.
    official = read_weights(tmp_path / "official.pth", tiny_structure(num_classes=7))
    assert official.class_names == ("class_0", "class_1")
    for name, value in trained.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(official.weights[name], value), name
    coco = Detector(tiny_structure(num_classes=80))
    save_official(coco, tmp_path / "coco.pth")
    assert read_weights(tmp_path / "coco.pth", tiny_structure()).class_names[:2] == ("person", "bicycle")


def test_files_that_are_no_weights(tmp_path):
    (tmp_path / "a.safetensors").write_bytes(b"hello")
    (tmp_path / "a.pth").write_bytes(b"hello")
    for name in ("a.safetensors", "a.pth", "gone.safetensors"):
        with pytest.raises(CheckpointError, match=rf"{name}: cannot be read"):
            read_weights(tmp_path / name, tiny_structure())


def test_frozen_parts():
    model = network("cat")
    parts = frozen_modules(model, ["stage 2", "neck"])
    assert parts == [model.backbone.stem, model.backbone.stages[0], model.backbone.stages[1], model.neck]
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen == {
        name
        for name, _ in model.named_parameters()
        if name.startswith(("neck.", "backbone.stem.", "backbone.stages.0.", "backbone.stages.1."))
    }
    assert frozen_modules(model, ["backbone"]) == [model.backbone]
    with pytest.raises(ConfigError, match="freeze is 'stage 9'; the network has 4 stages"):
        frozen_modules(model, ["stage 9"])
