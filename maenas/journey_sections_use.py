"""Sections of a journey's page about use: how to deploy the files, and how all of it was made."""

from __future__ import annotations

import json
import shlex

from maenas.journey_html import Section, code, duration, esc, paragraph, table
from maenas.journey_sections import Facts


def deploy_section(facts: Facts) -> Section:
    """How to use the files."""
    first = facts["artifacts"][0]
    runtime = "openvino" if first["format"] == "openvino" or facts["device"]["backend"] == "openvino" else "onnx"
    best = facts["accuracy"]["best"]
    score = 0.25 if best is None else round(best["score_threshold"], 2)
    choose = ', runtime="openvino"' if runtime == "openvino" and first["format"] == "onnx" else ""
    python = (
        "from detector.runtime import load\n\n"
        f"model = load({json.dumps(first['folder'] + '/model.json', ensure_ascii=False)}{choose})\n"
        f'for box, score, label, name in model.predict("photo.jpg", score_threshold={score}):\n'
        "    print(name, round(score, 3), box)\n"
    )
    folder = shlex.quote(str(first["folder"]))
    shell = (
        f"pip install '.[{runtime},profile]'     # in a checkout of maenas; neither torch nor a GPU\n"
        f"maenas predict {folder} photos/ --score {score} --out found\n"
        f"maenas benchmark {folder} --backend {facts['device']['backend']}\n"
    )
    files = "".join(
        f"<li>{esc(one['precision'])}: <code>{esc(one['folder'])}</code>, SHA-256 of {esc(one['files'][0])} "
        f"<code>{esc(one['sha256'])}</code></li>"
        for one in facts["artifacts"]
    )
    body = [
        paragraph("Keep the files of a folder together: <code>model.json</code> says what they are and has their "
                  "hashes."),
        "<h3>In Python</h3>", code(python),
        "<h3>On the command line</h3>", code(shell),
        "<h3>Files</h3>", f"<ul>{files}</ul>",
    ]  # fmt: skip
    if not facts["device"]["is_here"]:
        body.append(paragraph(
            f"The budget is for {esc(facts['device']['device'])}: time the files there with <code>maenas "
            "benchmark</code> before relying on the prediction.", "note"))  # fmt: skip
    if not first["suppresses"]:
        body.append(paragraph(
            "Programs without this package are simplest with suppression inside the file: run again with "
            "<code>--nms end2end</code>.", "note"))  # fmt: skip
    return Section("deploy", "Use it", "\n".join(body))


def making_section(facts: Facts) -> Section:
    """Commands, times, environment and hashes."""
    rows = []
    for step in facts["steps"]:
        tries = "" if step["attempts"] == 1 else f" ({step['attempts']} attempts)"
        words = esc(shlex.join(step["command"]))
        command = f"<details><summary>{esc(step['purpose'])}{tries}</summary><code>{words}</code></details>"
        rows.append([esc(step["name"]), command, duration(step["seconds"])])
    rows.append(["<b>all</b>", "", f"<b>{duration(facts['total_seconds'])}</b>"])
    given = "".join(
        f"<li>{esc(one['what'])}: <code>{esc(one['value'])}</code> ({esc(one['identity'])})</li>"
        for one in facts["given"]
    )
    asked = "".join(f"<li>{esc(name)} <code>{esc(value)}</code></li>" for name, value in facts["asked"].items())
    body = [
        paragraph("Every step is a command of its own; the same command of <code>maenas run</code> goes on where one "
                  "was stopped. Seconds are wall time, evaluations in training included."),
        table(["step", "command", "time"], rows, kinds="ttn"),
    ]  # fmt: skip
    if given:
        body.append(f"<h3>Given, not made</h3><ul>{given}</ul>")
    body.append(
        f"<details><summary>Question, environment, hashes</summary><ul>{asked}</ul>{_environment(facts)}</details>"
    )
    return Section("making", "How it was made", "\n".join(body))


def _environment(facts: Facts) -> str:
    host, versions = facts["host"], facts["versions"]
    rows = []
    if host is not None:
        rows.append(
            ["processor", f"{esc(host['cpu'])}, {esc(host['physical_cores'])} cores, {esc(', '.join(host['isa']))}"]
        )
        rows.append(["system", f"{esc(host['os'])}, {esc(host['memory_gib'])} GiB"])
    rows.append(["maenas", esc(facts["maenas_version"])])
    rows += [[esc(name), esc(version)] for name, version in (versions or {}).items()]
    device = facts["device"]
    rows.append(
        ["latency table", f"{esc(device['table'])} <code>{esc(device['table_hash'])}</code>, {esc(device['date'])}"]
    )
    rows.append(["structure", f"<code>{esc(facts['network']['digest'])}</code>"])
    rows.append(["annotations", f"<code>{esc(facts['data']['digest'])}</code>"])
    for step in facts["steps"]:
        for name, value in step["outputs"].items():
            rows.append([esc(name.replace("{out}/", "")), f"<code>{esc(value[:16])}</code>"])
    return table(["", ""], rows, kinds="tt")
