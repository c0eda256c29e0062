"""Find the data folders that ship with maenas, and the user's own table folder.

`latency_tables/` and `search_spaces/` live beside pyproject.toml in a checkout and inside the package when installed;
`structures/` always lives inside the package. The environment is read at each call.
"""

from __future__ import annotations

import os
from pathlib import Path

from maenas.files import expanded

_PACKAGE = Path(__file__).resolve().parent
_BESIDE_PYPROJECT = ("latency_tables", "search_spaces")
_IN_PACKAGE = ("structures",)


def data_folder(name: str) -> Path:
    """Folder of shipped data: `latency_tables`, `search_spaces` or `structures`.

    Raises:
        FileNotFoundError: The installation lacks the folder; names the places that were tried.
        ValueError: No such data folder is known.
    """
    if name not in _BESIDE_PYPROJECT + _IN_PACKAGE:
        known = ", ".join(_BESIDE_PYPROJECT + _IN_PACKAGE)
        raise ValueError(f"data folder {name!r} is unknown; expected one of {known}")
    places = [_PACKAGE / name]
    checkout = _PACKAGE.parent
    if name in _BESIDE_PYPROJECT and (checkout / "pyproject.toml").is_file():
        places.insert(0, checkout / name)
    for place in places:
        if place.is_dir():
            return place
    tried = " and ".join(str(place) for place in places)
    raise FileNotFoundError(f"data folder {name!r} was not found at {tried}; reinstall maenas")


def user_table_folder() -> Path:
    """Where the user's own latency tables live; the folder need not exist.

    The environment variable MAENAS_TABLES names it; else it is `maenas/latency_tables` in the user's data folder
    (XDG_DATA_HOME, by default `~/.local/share`).
    """
    chosen = os.environ.get("MAENAS_TABLES")
    if chosen:
        return expanded(chosen)
    data_home = os.environ.get("XDG_DATA_HOME")
    base = Path(data_home) if data_home and Path(data_home).is_absolute() else expanded("~/.local/share")
    return base / "maenas" / "latency_tables"
