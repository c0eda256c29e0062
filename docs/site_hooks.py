"""Builds the site of mkdocs.yml from the whole repository: README sections, experiments, linked files, formulas.

Documents keep links that work where the code is read: relative to the file they are in. Here those links are turned
into links of the site, and what they lead to outside of `docs/` is taken along under its path in the repository. A
paragraph that is nothing but a link to a section of README.md becomes that section, one that is nothing but a link to
the folder of experiments a list of them. `$...$` becomes MathML, so that pages need no script.
"""

from __future__ import annotations

import html
import os
import re
from pathlib import Path, PurePosixPath

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

README = "README.md"
LEFT_OUT = {"more"}
"""Sections of the README that the site has no use for: a list of the pages that its navigation lists."""

FENCED = re.compile(r"(^ *```.*?^ *```[^\n]*$|`[^`\n]+`)", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(\]\()([^)\s]+)(\))")
SECTION_LINK = re.compile(r"^\[[^\]\n]+\]\((?:\.\./)+README\.md(#[\w-]+)?\)$", re.MULTILINE)
EXPERIMENTS_LINK = re.compile(r"^\[[^\]\n]+\]\(\.\./experiments\)$", re.MULTILINE)
FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Every experiment is in the navigation, below the entry that lists them."""
    for entry in config.nav or []:
        if isinstance(entry, dict) and "Experiments" in entry:
            entry["Experiments"] += [_repository_path(path, _root(config)) for path in _experiments(_root(config))]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the documents outside of `docs/`, and every file that a document links to."""
    root = _root(config)
    waiting = [_source(file.src_uri, root) for file in files.documentation_pages()]
    waiting += [_repository_path(path, root) for path in _experiments(root)]
    waiting += [README, "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md"]
    seen: set[str] = set()
    while waiting:
        path = waiting.pop()
        if path in seen:
            continue
        seen.add(path)
        place = _site_path(path)
        if path != README and files.get_file_from_path(place) is None:
            files.append(File.generated(config, place, abs_src_path=str(root / path)))
        if path.endswith(".md"):
            waiting += [target for target in _linked(path, root) if (root / target).is_file()]
    _section_pages(files, root)
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Sections of the README and a list of experiments in place of links to them; all links as links of the site."""
    root = _root(config)
    markdown = EXPERIMENTS_LINK.sub(lambda link: _experiment_list(root), markdown)
    pages = _section_pages(files, root)
    sections = _readme_sections(root)
    parts = []
    end = 0
    for link in SECTION_LINK.finditer(markdown):
        parts += [(markdown[end : link.start()], _source(page.file.src_uri, root))]
        parts += [(sections[(link[1] or "#")[1:]], README)]
        end = link.end()
    parts += [(markdown[end:], _source(page.file.src_uri, root))]
    return "".join(_relinked(text, source, page.file.src_uri, pages) for text, source in parts)


def on_page_content(content: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Formulas as MathML."""

    def formula(match: re.Match[str]) -> str:
        display = "block" if match[2] == "[" else "inline"
        return convert(html.unescape(match[3]).strip(), display=display)

    return FORMULA.sub(formula, content)


def _root(config: MkDocsConfig) -> Path:
    return Path(config.config_file_path).resolve().parent


def _experiments(root: Path) -> list[Path]:
    return sorted(root.glob("experiments/*/README.md"))


def _experiment_list(root: Path) -> str:
    """A link to each experiment; its title is its question."""
    titles = [
        (path, path.read_text(encoding="utf-8").split("\n", 1)[0].removeprefix("# ")) for path in _experiments(root)
    ]
    return "\n".join(f"- [{title}](../{_repository_path(path, root)})" for path, title in titles)


def _repository_path(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()


def _source(src_uri: str, root: Path) -> str:
    """Path in the repository of a file of the site."""
    return f"docs/{src_uri}" if (root / "docs" / src_uri).is_file() else src_uri


def _site_path(path: str) -> str:
    return path.removeprefix("docs/")


def _targets(text: str) -> list[str]:
    """Relative link targets of a text, code left out."""
    return [link[1] for link in LINK.findall(FENCED.sub("", text)) if not re.match(r"[a-z]+:|#", link[1])]


def _resolved(target: str, source: str) -> tuple[str, str]:
    """Path in the repository and anchor that a link in the file `source` leads to."""
    path, _, anchor = target.partition("#")
    joined = os.path.normpath(PurePosixPath(source).parent / path) if path else source
    return PurePosixPath(joined).as_posix(), anchor


def _linked(path: str, root: Path) -> list[str]:
    text = (root / path).read_text(encoding="utf-8")
    return [_resolved(target, path)[0] for target in _targets(text)]


def _readme_sections(root: Path) -> dict[str, str]:
    """Anchor to text of each `##` section; the empty anchor is what comes before the first, without the title."""
    text = (root / README).read_text(encoding="utf-8")
    lead, *rest = re.split(r"^(?=## )", FENCED.sub(lambda code: code[0].replace("\n## ", "\n\0## "), text), flags=re.M)
    sections = {"": lead.split("\n", 1)[1].strip()}
    for section in rest:
        heading = section.split("\n", 1)[0].removeprefix("## ")
        sections[re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")] = section.replace("\0", "").strip()
    return sections


def _section_pages(files: Files, root: Path) -> dict[str, str]:
    """Anchor of each README section to the page of the site that shows it.

    Raises:
        PluginError: A section is on no page, or a page asks for one that does not exist.
    """
    pages = {}
    for file in files.documentation_pages():
        if (root / "docs" / file.src_uri).is_file():
            text = (root / "docs" / file.src_uri).read_text(encoding="utf-8")
            pages |= {(link[1] or "#")[1:]: file.src_uri for link in SECTION_LINK.finditer(text)}
    unlike = (set(_readme_sections(root)) - LEFT_OUT) ^ set(pages)
    if unlike:
        raise PluginError(
            f"sections of README.md that no page shows, or that are not there: {', '.join(sorted(unlike))}"
        )
    return pages


def _relinked(text: str, source: str, src_uri: str, pages: dict[str, str]) -> str:
    """A text of the file `source` with its links as they are written on the page `src_uri`."""
    folder = PurePosixPath(src_uri).parent

    def relinked(match: re.Match[str]) -> str:
        target = match[2]
        if re.match(r"[a-z]+:", target):
            return match[0]
        path, anchor = _resolved(target, source)
        place = pages[anchor] if path == README else _site_path(path)
        link = "" if place == src_uri and anchor else os.path.relpath(place, folder)
        return f"{match[1]}{link}{'#' + anchor if anchor else ''}{match[3]}"

    parts = FENCED.split(text)
    parts[::2] = [LINK.sub(relinked, part) for part in parts[::2]]
    return "".join(parts)
