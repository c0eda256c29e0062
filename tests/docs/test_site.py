"""The documentation site builds without a warning, is complete, and loads nothing from elsewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from doc_commands import ROOT

pytestmark = pytest.mark.slow

for module in ("mkdocs", "material", "mkdocstrings_handlers.python", "latex2mathml"):
    pytest.importorskip(module, reason="the site needs the extra docs")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built strictly: dead links, anchors and names are errors."""
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_every_document_and_experiment_has_a_page(site: Path):
    wanted = {path.relative_to(ROOT / "docs").with_suffix(".html") for path in (ROOT / "docs").rglob("*.md")}
    wanted |= {path.relative_to(ROOT).with_name("index.html") for path in ROOT.glob("experiments/*/README.md")}
    wanted |= {Path(f"{name}.html") for name in ("ARCHITECTURE", "CONTRIBUTING", "CHANGELOG")}
    assert not {page for page in wanted if not (site / page).is_file()}


def test_sections_of_the_readme_are_shown_where_they_belong(site: Path):
    page = (site / "search.html").read_text(encoding="utf-8")
    assert 'id="budgets"' in page and "cannot be met in space res" in page
    assert 'src="experiments/fronts/res.png"' in page
    assert (site / "experiments" / "fronts" / "res.png").is_file()


def test_formulas_are_mathml(site: Path):
    page = (site / "solver.html").read_text(encoding="utf-8")
    assert page.count("<math ") > 20 and "arithmatex" not in page


def test_nothing_is_loaded_from_elsewhere(site: Path):
    """Scripts, styles, fonts and pictures are the site's own; links to other sites are links."""
    for page in site.rglob("*.html"):
        loaded = re.findall(
            r"<(?:script|img|iframe|link)\b[^>]*?(?:src|href)=\"?(https?:[^\" >]+)", page.read_text("utf-8")
        )
        assert not loaded, page
    for style in site.rglob("*.css"):
        assert not re.search(r"url\(\s*['\"]?https?:", style.read_text(encoding="utf-8")), style
