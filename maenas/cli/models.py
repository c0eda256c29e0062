"""Opening the model that a verb is given, and what is said of it."""

from __future__ import annotations

from typing import Any

RUNTIMES = ("torch", "onnxruntime", "openvino", "tensorrt")
"""As `detector.load` knows them, which is not imported to parse arguments."""


def open_model(source: str, *, runtime: str | None, device: str | None, threads: int | None) -> tuple[Any, bool]:
    """Whatever finds objects, and whether its weights are random.

    Args:
        source: A checkpoint, an exported file, its card or its folder, a structure file, or the name of a published
            network.
        runtime: By default what fits the source.
        device: Of torch.
        threads: CPU threads; by default the runtime's choice.

    Raises:
        MaenasError: It cannot be used.
    """
    from pathlib import Path

    from maenas.cli.detector import bundled
    from maenas.errors import OptionError
    from maenas.published import resolve_structure

    path = Path(source)
    if path.suffix.lower() == ".json":
        # The card of an export lies beside the file that it is about.
        exported = (path.with_suffix(suffix) for suffix in bundled("load").EXPORTED)
        path = next((file for file in exported if file.exists()), path)
    if not path.exists() and (path.suffix or path.name != source):
        raise OptionError(
            f"{source}: no such file or folder; expected a checkpoint, an exported file or its folder, or a structure"
        )
    # A bare word is a published network, unless the folder of an export has that name.
    random = path.suffix.lower() == ".json" or (not path.suffix and not path.exists())
    model = resolve_structure(source) if random else path
    predictor = bundled("load").load_predictor(model, runtime=runtime, device=device, threads=threads)
    card = getattr(predictor, "card", None)
    # An export remembers that it was made of a structure alone.
    return predictor, random or (card is not None and card.provenance.get("weights") == "random")


def structure_digest(predictor: Any) -> str | None:  # noqa: ANN401
    """Digest of the model's structure, where the model tells it."""
    # A network has its structure, an exported file its card, which has it.
    structure = getattr(getattr(predictor, "card", predictor), "structure", None)
    return getattr(structure, "digest", None)


def dataset_record(dataset: Any, *, source: str, split: str) -> dict[str, Any]:  # noqa: ANN401
    """What files of results say of the images that an AP was measured on; `maenas plot` joins by name and digest.

    Args:
        dataset: A `detector.data.dataset.Dataset`.
        source: As the user named it.
        split: Of it.
    """
    from maenas.cli.detector import bundled

    return {
        "source": source,
        "split": split,
        "name": dataset.name,
        "digest": bundled("evaluation_report").dataset_digest(dataset),
        "num_images": len(dataset),
        "categories": [
            {"id": number, "name": name} for number, name in zip(dataset.category_ids, dataset.class_names, strict=True)
        ],
    }
