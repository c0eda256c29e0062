"""Sections of a journey's page about results: accuracy, found objects, training, the files and their plot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from maenas.journey_charts import Chart
from maenas.journey_html import DASH, TIMES, Section, counted, duration, esc, paragraph, picture, points, size, table
from maenas.journey_samples import Sample
from maenas.journey_sections import Facts, chart_figure, data_name, runtime_name


def accuracy_section(facts: Facts, charts: Mapping[str, Chart], pictures: Mapping[str, bytes]) -> Section:
    """AP of all kinds, and the thresholds to use."""
    accuracy, data = facts["accuracy"], facts["data"]
    metrics, best = accuracy["metrics"], accuracy["best"]
    names = (("AP", "ap"), ("AP50", "ap50"), ("AP75", "ap75"), ("small", "ap_small"), ("medium", "ap_medium"),
             ("large", "ap_large"), ("AR100", "ar100"))  # fmt: skip
    body = [
        paragraph(
            f"Measured on the {data['num_val']} validation images of {esc(data_name(facts))} with the checkpoint that "
            "did best on them while training, so expect a little less on new images."
            if facts["training"] is not None
            else f"Measured on the {data['num_val']} validation images of {esc(data_name(facts))}."
        ),
        table([name for name, _ in names], [[points(metrics.get(key)) for _, key in names]], kinds="nnnnnnn"),
    ]
    if best is not None:
        body.append(
            paragraph(
                f"Best score threshold for all classes together: <strong>{best['score_threshold']:.2f}</strong> "
                f"(precision {points(best['precision'])} %, recall {points(best['recall'])} %)."
            )
        )
    shown = [chart_figure(charts[name]) for name in ("sizes", "classes") if name in charts]
    body.append(f'<div class="pair">{"".join(shown)}</div>')
    if accuracy["classes"]:
        rows = [_class_row(one) for one in accuracy["classes"]]
        listing = table(
            ["class", "boxes", "AP", "AP50", "AP75", "threshold", "precision", "recall"], rows, caption="Class by class"
        )
        body.append(
            listing if len(rows) <= 12 else f"<details><summary>All {len(rows)} classes</summary>{listing}</details>"
        )
    if accuracy["sources"]:
        rows = [[esc(name), points(one["metrics"]["ap"])] for name, one in accuracy["sources"].items()]
        body.append(table(["data set", "AP"], rows, caption="Source by source"))
    if "confusion.png" in pictures:
        inner = picture(pictures["confusion.png"], "png", alt="Which classes are taken for which")
        body.append(
            f"<details><summary>Which classes are confused</summary><figure class='plot'>{inner}</figure></details>"
        )
    return Section("accuracy", "Accuracy", "\n".join(body))


def _class_row(one: Facts) -> list[str]:
    best = one["best"] or {}
    threshold = f"{best['score_threshold']:.2f}" if best else DASH
    figures = [points(one[name]) for name in ("ap", "ap50", "ap75")]
    return [esc(one["name"]), str(one["num_boxes"]), *figures, threshold,
            points(best.get("precision")), points(best.get("recall"))]  # fmt: skip


def samples_section(facts: Facts, samples: Sequence[Sample], threshold: float) -> Section:
    """Images with truth and detections."""
    shots = []
    for one in samples:
        truth = picture(one.truth, "jpeg", alt=f"{one.name} with its {one.num_truth} annotated objects")
        found = picture(one.found, "jpeg", alt=f"{one.name} with {one.num_found} objects that the detector found")
        caption = f"{esc(one.name)}: {one.num_truth} annotated, {one.num_found} found"
        shots.append(f'<figure><div class="two">{truth}{found}</div><figcaption>{caption}</figcaption></figure>')
    text = (
        "Validation images at equal distances through the list, none picked by hand. First as annotated, then as found "
        f"with scores above {threshold:.2f}{', the best threshold' if facts['accuracy']['best'] else ''}."
    )
    return Section("samples", "What it finds", f'{paragraph(text)}<div class="shots">{"".join(shots)}</div>')


def training_section(facts: Facts, charts: Mapping[str, Chart]) -> Section:
    """How it was trained."""
    training = facts["training"]
    recipe = f"recipe <code>{esc(training['recipe'])}</code>" if training["recipe"] else "the network's own recipe"
    teacher = f", taught by <code>{esc(training['teacher'])}</code>" if training["teacher"] else ""
    text = (
        f"{facts['data']['num_train']} images, {recipe}{teacher}: {counted(training['epochs'], 'epoch')}, "
        f"{counted(training['iterations'], 'step')} in {duration(training['seconds'])}. "
        f"The best epoch was {training['best'].get('epoch', 0):.0f}."
    )
    shown = "".join(chart_figure(charts[name]) for name in ("ap", "loss") if name in charts)
    return Section("training", "Training", f'{paragraph(text)}<div class="pair">{shown}</div>')


def precision_section(facts: Facts) -> Section:
    """The exported files beside each other."""
    artifacts = facts["artifacts"]
    timed = any(one["timing"] is not None for one in artifacts)
    base = artifacts[0]
    rows = []
    for one in artifacts:
        cells = [esc(one["precision"]), size(one["size_bytes"]), points(one["ap"]), points(one["ap50"])]
        if timed:
            cells += _times(one, base)
        rows.append(cells)
    headings = ["precision", "size", "AP", "AP50", *(["ms", "median", "faster"] if timed else [])]
    torch = points(facts["accuracy"]["metrics"]["ap"])
    body = [
        paragraph(f"Each was compared with the trained network before it was kept. AP is that of the very files, in "
                  f"{esc(runtime_name(base['runtime']))}; the checkpoint has {torch}."),
        table(headings, rows),
    ]  # fmt: skip
    for one in artifacts:
        if one["float_layers"] is not None:
            whole = one["num_layers"] - one["float_layers"]
            rest = ", the others in float to keep the AP" if one["float_layers"] else ""
            text = f"{esc(one['precision'])}: {whole} of {one['num_layers']} convolutions in whole numbers{rest}."
            body.append(paragraph(text, "note"))
    return Section("files", "The files", "\n".join(body))


def _times(one: Facts, base: Facts) -> list[str]:
    timing, first = one["timing"], base["timing"]
    if timing is None:
        return [DASH, DASH, DASH]
    faster = DASH if first is None or one is base else f"{first['p25_ms'] / timing['p25_ms']:.2f} {TIMES}"
    return [f"{timing['p25_ms']:.3f}", f"{timing['p50_ms']:.3f}", faster]


def plot_section(facts: Facts, content: bytes) -> Section:
    """The picture of `maenas plot`."""
    names = ", ".join(f"{one['precision']} AP {points(one['ap'])}" for one in facts["artifacts"])
    inner = picture(content, "png", alt=f"Accuracy against latency: {names}")
    text = (
        "Drawn by <code>maenas plot</code>; hollow marks are predictions. Give it the folders of several runs to "
        "compare them; the page beside this one, <code>plot/latency-ap.html</code>, answers to the pointer."
    )
    return Section(
        "plot", "Accuracy against latency", f'<figure class="plot">{inner}<figcaption>{text}</figcaption></figure>'
    )
