"""Files of settings: recipes by name, one on top of another, as plain values."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from maenas.records import parse_yaml as plain_yaml

from .errors import ConfigError, did_you_mean, reason_of

RECIPES = Path(__file__).parent / "recipes"
MAX_FILE_BYTES = 1_000_000


def recipe_names() -> list[str]:
    """The recipes that come with the package."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def read_settings(source: str | Path, depth: int = 0) -> dict[str, Any]:
    """The content of a recipe or YAML file on top of the one that it extends.

    Args:
        source: Name of a recipe or path of a file; of several joined by plus signs (`damo-yolo-s+one-gpu`) each goes on
            top of those before it.
        depth: Files that led here.

    Raises:
        ConfigError: An unknown recipe (with the nearest name), or a file that cannot be read or is no YAML.
    """
    layers = str(source).split("+")
    if len(layers) > 1 and not Path(source).is_file():
        joined: dict[str, Any] = {}
        for layer in layers:
            joined = _merged(joined, read_settings(layer, depth))
        return joined
    path = _recipe_path(source)
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise ConfigError(f"{path}: is larger than {MAX_FILE_BYTES} bytes; expected a file of settings")
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as text ({reason_of(error)})") from error
    content = parse_yaml(text, str(path))
    content = {} if content is None else content
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: is {type(content).__name__}; expected sections with fields")
    base = content.pop("extends", None)
    if base is None:
        return content
    if not isinstance(base, str) or depth >= 8:
        raise ConfigError(f"{path}: extends is {base!r}; expected one recipe or file, in a chain of at most 8")
    beside = path.parent / base
    return _merged(read_settings(beside if beside.is_file() else base, depth + 1), content)


def _recipe_path(source: str | Path) -> Path:
    path = Path(source)
    if path.suffix in (".yaml", ".yml"):
        return path
    if str(source) in recipe_names():
        return RECIPES / f"{source}.yaml"
    hint = did_you_mean(str(source), recipe_names())
    raise ConfigError(f"recipe {str(source)!r} is unknown; expected a .yaml file or {', '.join(recipe_names())}{hint}")


def _merged(base: dict[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    for key, value in top.items():
        both = isinstance(value, dict) and isinstance(base.get(key), dict)
        base[key] = _merged(base[key], value) if both else value
    return base


def set_field(content: dict[str, Any], name: str, value: object) -> None:
    """Set a value by its dotted name, making sections on the way.

    Raises:
        ConfigError: A part of the name is a value already.
    """
    *sections, last = name.split(".")
    for section in sections:
        inner = content.setdefault(section, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"{name}: {section} is no section")
        content = inner
    content[last] = value


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, with 1e-4 as a number: YAML 1.1 wants a point in it."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def parse_yaml(text: str, source: str) -> Any:  # noqa: ANN401
    """Plain values of a YAML text.

    Raises:
        ConfigError: It is none.
    """
    try:
        return plain_yaml(text, loader=_Loader)
    except ValueError as error:
        raise ConfigError(f"{source}: is not valid YAML ({str(error)[:200]})") from error
