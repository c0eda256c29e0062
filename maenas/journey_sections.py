"""Sections of a journey's page about the answer: budget and latency, what was chosen and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from maenas.journey_charts import Chart
from maenas.journey_html import (
    DASH,
    TIMES,
    Section,
    counted,
    drawing,
    duration,
    esc,
    paragraph,
    points,
    signed,
    size,
    table,
    tile,
)

Facts = Mapping[str, Any]

_RUNTIMES = {"openvino": "OpenVINO", "onnxruntime": "ONNX Runtime", "tensorrt": "TensorRT", "torch": "PyTorch"}


def headline(facts: Facts) -> str:
    """Title of the page."""
    device = facts["device"]
    return f"A detector for {data_name(facts)} in {facts['budget_ms']:g} ms on {device['device']}"


def data_name(facts: Facts) -> str:
    """The data set, shortly."""
    return str(facts["data"]["name"]).partition("/")[0] or str(facts["data"]["source"])


def runtime_name(backend: str) -> str:
    """A backend as its makers write it."""
    return _RUNTIMES.get(backend, backend)


def how_measured(device: Facts) -> str:
    """Runtime and conditions of a latency, in words."""
    runtime = runtime_name(device["backend"])
    version = f" {device['backend_version']}" if device["backend_version"] else ""
    threads = "" if device["threads"] is None else f", {counted(device['threads'], 'thread')}"
    return f"{runtime}{version}, {device['precision'].upper()}, batch {device['batch']}{threads}"


def verdict(facts: Facts) -> str:
    """Whether the budget was met, in one sentence."""
    latency, budget = facts["latency"], facts["budget_ms"]
    if latency["final_ms"] is None:
        sure = "not measured here: the device of the budget is another machine"
        text = f"<strong>Predicted: {latency['predicted_ms']:.2f} ms</strong> of {budget:g} ms, {sure}."
        return paragraph(text, "verdict calm")
    off = 100 * latency["deviation"]
    what = f"<strong>{latency['final_ms']:.2f} ms</strong> measured, {signed(off)} % from the budget of {budget:g} ms"
    doubt = "" if latency["undisturbed"] else " Other work disturbed the timing: repeat it on a quiet machine."
    if latency["verdict"] == "missed":
        lost = "too slow" if off > 0 else "faster than it had to be, at the cost of accuracy"
        text = f"<strong>Budget missed by more than 5 %.</strong> {what}: {lost}.{doubt}"
        return paragraph(text, "verdict bad")
    if off > 0:
        text = f"<strong>Budget met within 5 %, but above it.</strong> {what}.{doubt}"
        return paragraph(text, "verdict good")
    return paragraph(f"<strong>Budget met.</strong> {what}.{doubt}", "verdict good")


def tiles(facts: Facts) -> str:
    """The figures that matter most."""
    latency, network, accuracy = facts["latency"], facts["network"], facts["accuracy"]
    final = latency["final_ms"]
    first = facts["artifacts"][0]
    shown = [
        tile("Latency", f"{latency['predicted_ms'] if final is None else final:.2f}", "ms",
             "predicted" if final is None else "measured, trained network"),
        tile("AP", points(accuracy["metrics"]["ap"]), "", f"AP50 {points(accuracy['metrics'].get('ap50'))}"),
        tile("Parameters", f"{network['params'] / 1e6:.2f}", "M", f"{network['flops'] / 1e9:.2f} GFLOPs"),
        tile("File", size(first["size_bytes"]), "", f"{first['format'].upper()}, {first['precision']}"),
        tile("Input", TIMES.join(map(str, network["image_size"])), "", f"pixels, {network['num_classes']} classes"),
        tile("Whole journey", duration(facts["total_seconds"]), "", f"{len(facts['steps'])} steps"),
    ]  # fmt: skip
    return f'<dl class="tiles">{"".join(shown)}</dl>'


def latency_section(facts: Facts, charts: Mapping[str, Chart]) -> Section:
    """Predicted against measured."""
    latency, device, budget = facts["latency"], facts["device"], facts["budget_ms"]
    rows = [("Budget", f"{budget:g}", "", "what was asked for")]

    def add(name: str, ms: float | None, note: str) -> None:
        if ms is not None:
            rows.append((name, f"{ms:.3f}", f"{signed(100 * (ms / budget - 1))} %", note))

    sigma = latency["predicted_sigma_ms"]
    add("Predicted", latency["predicted_ms"], f"table {esc(device['table'])}, one sigma: {sigma:.3f} ms")
    add("Measured in the search", latency["searched_ms"], "exported network, not trained yet")
    add(
        "The same file, timed again at the end", latency["again_ms"], "beside the trained one: has the machine changed?"
    )
    if latency["final"] is not None:
        final = latency["final"]
        spread = f"median {final['p50_ms']:.3f}, 90 % below {final['p90_ms']:.3f} ms, {final['runs']} runs"
        add("Measured at the end", latency["final_ms"], f"{esc(latency['final_what'])}; {spread}")
    body = [paragraph(f"All on {esc(device['device'])} with {esc(how_measured(device))}. Measured values are the lower "
                      "quartile of the runs, the same for search and end; boxes are decoded in the trained files, and "
                      "suppression is not part of the budget.")]  # fmt: skip
    if latency["final_ms"] is None:
        body = [paragraph(f"The budget is for {esc(device['device'])} with {esc(how_measured(device))}, not for the "
                          "machine that this ran on. So <strong>nothing was measured</strong>: the latency is what "
                          f"the {esc(device['provenance'])} table {esc(device['table'])} predicts.")]  # fmt: skip
    body.append(chart_figure(charts["latency"]))
    cells = [(f'{esc(name)}<br><span class="note">{note}</span>', ms, off) for name, ms, off, note in rows]
    body.append(table(["", "ms", "from budget"], cells))
    body += [paragraph(text, "note") for text in _latency_notes(facts)]
    return Section("latency", "Latency", "\n".join(body))


def _latency_notes(facts: Facts) -> list[str]:
    latency, device = facts["latency"], facts["device"]
    notes = []
    if device["test"]:
        test = device["test"]
        notes.append(
            f"The table was tried on {test['n']} networks that it had not seen: {100 * test['mean_abs']:.1f} % off on "
            f"average, {100 * test['max_abs']:.1f} % at most."
        )
    if latency["verdict"] == "missed" and latency["again_ms"] is not None and latency["searched_ms"] is not None:
        change = 100 * (latency["again_ms"] / latency["searched_ms"] - 1)
        if change * latency["deviation"] > 0:
            notes.append(
                f"The very file that the search timed took {signed(change)} % at the end: that much of the miss is the "
                "machine's, not the network's. Time it again when the machine is quiet."
            )
    if latency["undisturbed"] is False:
        notes.append("Other work disturbed the timings; they were kept because that was asked for.")
    notes += [f"Flags of the table: {esc(flag)}." for flag in device["flags"]]
    if device["stale"]:
        notes.append(f"{esc(device['stale'])}.")
    return notes


def network_section(facts: Facts, charts: Mapping[str, Chart]) -> Section:
    """The structure, and where its milliseconds go."""
    network = facts["network"]
    rows = [("stem", esc(network["stem"]["kind"]), "2", "", "", str(network["stem"]["out_channels"]))]
    for number, stage in enumerate(network["stages"], start=1):
        hidden = stage["hidden_channels"]
        width = f"{hidden[0]}" if len(set(hidden)) == 1 else f"{min(hidden)}{DASH}{max(hidden)}"
        unit = f"{esc(network['family'])} {stage['kernel_size']}{TIMES}{stage['kernel_size']}"
        figures = (str(stage["stride"]), str(stage["depth"]), width, str(stage["out_channels"]))
        rows.append((f"stage\N{NO-BREAK SPACE}{number}", unit, *figures))
    widths = f" {esc('/')} ".join(map(str, network["neck"]["out_channels"]))
    rows.append(("neck", "RepGFPN", "", str(network["neck"]["num_blocks"]), "", widths))
    rows.append(("head", "ZeroHead", "", "", "", f"{network['num_classes']} classes"))
    text = (
        f"<code>{esc(network['name'])}</code>, structure <code>{esc(network['digest'])}</code>: "
        f"{network['params'] / 1e6:.3f} M parameters, {network['flops'] / 1e9:.3f} GFLOPs (2 {TIMES} "
        f"multiply-accumulates), {network['layers']} convolutions deep, largest working set "
        f"{size(network['memory_bytes'])} in half precision."
    )
    structure = table(["part", "unit", "stride", "units", "hidden", "out"], rows, kinds="ttnnnn")
    return Section(
        "network",
        "The network",
        f'{paragraph(text)}<div class="pair"><div>{structure}</div>{chart_figure(charts["shares"])}</div>',
    )


def choice_section(facts: Facts, charts: Mapping[str, Chart]) -> Section:
    """Why this network and no other one."""
    choice = facts["choice"]
    if choice is None:
        given = [one for one in facts["given"] if one["what"] != "latency table"]
        what = ", ".join(f"{esc(one['what'])} <code>{esc(one['value'])}</code>" for one in given)
        return Section("choice", "Why this network", paragraph(f"It was given, not searched: {what}."))
    question, measured = choice["question"], choice["measured"]
    here = "the machine of its table" if choice["given"] else "this machine"
    limits = ", ".join(
        f"{metric.replace('_', ' ').removesuffix(' ms')} {value:g}{' ms' if metric == 'latency_ms' else ''}"
        for metric, value in question["budgets"].items()
    )
    body = [
        paragraph(
            f"Of all networks in the space <code>{esc(question['space'])}</code> (variant {esc(question['variant'])}, "
            f"{TIMES.join(map(str, question['image_size']))} px), it has the highest <em>{esc(question['score'])}</em> "
            f"score within the budget ({esc(limits)}). The score says how much a network can express before it is "
            "trained; it stands in for accuracy, which only training shows."
        ),
        f"<h3>Certificate</h3>{paragraph(_certificate(choice))}",
    ]
    if measured is not None:
        body.append(
            "<h3>Measured choice</h3>"
            + paragraph(
                f"{counted(len(measured['timed']), 'network')} timed on {here} in "
                f"{counted(measured['rounds'], 'round')}; near this budget the table is off by a factor of "
                f"{measured['bias']:.3f}. Chosen is the highest score whose <em>measured</em> latency is within "
                "the budget."
            )
        )
    if choice["given"]:
        source = "no latency table" if question["device"] is None else f"table <code>{esc(question['device'])}</code>"
        body.append(paragraph(f"This search was made before, with {source}, and given: this is what it wrote.", "note"))
    body.append(_shortlist(choice))
    beside = chart_figure(charts["search"]) if "search" in charts else ""
    front = chart_figure(charts["front"]) if "front" in charts else ""
    body.append(f'<div class="pair">{beside}{front}<div>{_trades(facts)}</div></div>')
    return Section("choice", "Why this network", "\n".join(body))


def _certificate(choice: Facts) -> str:
    certificate, evolution = choice["certificate"], choice["evolution"]
    if certificate is None:
        tried = "" if evolution is None else f" {evolution['candidates']:,} candidates were drawn."
        return f"None: an evolutionary search proves nothing, a better network may exist.{tried}"
    limit = choice["measured"]["searched_ms"] if choice["measured"] else choice["question"]["budgets"]["latency_ms"]
    after = ", the budget as the last round corrected it" if choice["measured"] else ""
    return (
        f"Proven: no network of this space scores above <strong>{certificate['upper_bound']:.4f}</strong> at a "
        f"predicted latency of {limit:.3f} ms{after}. {certificate['labels']:,} partial networks were followed, "
        f"{certificate['pruned']:,} were ruled out by bounds that lose no optimum; the gap is "
        f"{certificate['gap']:.1g}. The proof is about score and predicted latency, not about AP."
    )


def _shortlist(choice: Facts) -> str:
    timed = any(each["measured_ms"] is not None for each in choice["shortlist"])
    rows, picked = [], None
    for number, each in enumerate(choice["shortlist"]):
        picked = number if each["chosen"] else picked
        cells = [f"<code>{esc(each['digest'])}</code>", f"{each['score']:.2f}", _ms(each["latency_ms"])]
        cells += [_ms(each["measured_ms"])] if timed else []
        rows.append([*cells, f"{each['params'] / 1e6:.2f}", f"{each['flops'] / 1e9:.2f}"])
    headings = ["network", "score", "predicted ms", *(["measured ms"] if timed else []), "params M", "GFLOPs"]
    caption = "Alternatives that were near (within the budget)" if timed else "Alternatives that were near"
    return table(headings, rows, caption=caption, picked=picked)


def _trades(facts: Facts) -> str:
    """What other budgets would buy, in a few rows of the front."""
    front, budget = facts["choice"]["front"], facts["budget_ms"]
    rows = []
    base = _best_within(front, budget)
    for share in (0.8, 0.9, 1.0, 1.1, 1.2):
        best = _best_within(front, share * budget)
        if best is None or base is None:
            continue
        gain = DASH if share == 1.0 else signed(best - base, 2)
        rows.append([f"{share * budget:.2f} ms", f"{best:.2f}", gain])
    if not rows:
        return ""
    return table(
        ["budget", "best score", "against this budget"], rows, caption="What other budgets would buy (predicted)"
    )


def _best_within(front: Sequence[Sequence[float]], limit: float) -> float | None:
    return max((score for ms, score in front if ms <= limit), default=None)


def _ms(value: float | None) -> str:
    return DASH if value is None else f"{value:.3f}"


def chart_figure(chart: Chart) -> str:
    """A chart as part of the page."""
    return drawing(chart.svg, title=chart.title, text=chart.text, anchor=f"chart-{chart.name}")
