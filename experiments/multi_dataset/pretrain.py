"""Does training on a union first help a data set of its own? The question of the paper's Table 11, at CPU scale."""

from __future__ import annotations

import argparse
from pathlib import Path

import yaml
from common import HERE, add_line, evaluate, network, train

SIDE, BATCH = 160, 16
STARTS = ("scratch", "union", "other")


def main() -> None:
    """Train on the target from random weights, and with the same epochs from weights of a union and of another set."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--target", type=Path, required=True, help="folder that is measured, such as cards")
    parser.add_argument("--others", type=Path, nargs="+", required=True, help="folders that the union also has")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--starts", nargs="+", default=["scratch", "union"], choices=STARTS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--pretrain-epochs", type=int, default=30)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--out", type=Path, default=HERE)
    arguments = parser.parse_args()
    work = arguments.work
    model = network(work / "structure.json", side=SIDE, num_classes=1)
    folders = {"union": [arguments.target, *arguments.others], "other": arguments.others}
    for seed in arguments.seeds:
        for start in arguments.starts:
            sets: tuple[str, ...] = ()
            if start != "scratch":
                union = write_union(work / f"{start}.yaml", folders[start])
                first = work / f"first-{start}-seed{seed}"
                weights = train(
                    first, union, model=model, epochs=arguments.pretrain_epochs, batch=BATCH, seed=100 + seed
                )
                sets = (f"model.weights={weights}",)
            out = work / f"{start}-seed{seed}"
            last = train(out, arguments.target, model=model, epochs=arguments.epochs, batch=BATCH, seed=seed, sets=sets)
            figures = evaluate(last, arguments.target, out / "eval")["metrics"]
            line = {"run": f"{arguments.target.name}-{start}-seed{seed}", "epochs": arguments.epochs}
            line["pretrain_epochs"] = 0 if start == "scratch" else arguments.pretrain_epochs
            figures = {name: round(100 * figures[name], 1) for name in ("ap", "ap50", "ap75")}
            add_line(arguments.out / "results_pretrain.csv", line | figures)


def write_union(path: Path, folders: list[Path]) -> Path:
    """A union file of data folders, each under its own name."""
    sources = [{"name": folder.name, "path": str(folder.resolve())} for folder in folders]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump({"sources": sources}, sort_keys=False))
    return path


if __name__ == "__main__":
    main()
