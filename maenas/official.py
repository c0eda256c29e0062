"""The official file forms of a backbone: safe parsing, and the records both import and export speak in.

Three forms exist: a bare Python-literal list of records, a search result `{'space_arch': ..., 'best_structures': [..]}`
as a Python literal, and the same in JSON; class names come in two dialects (docs/structure-format.md). Nothing in a
file is ever evaluated: its tokens are checked first, then the standard library's literal parsers read it.
"""

from __future__ import annotations

import ast
import json
import re
from dataclasses import dataclass
from pathlib import Path

from maenas.errors import StructureError, reason_of
from maenas.structure import MAX_CHANNELS

DIALECTS = ("v1", "v2")
FORMS = ("list", "text", "json")
STEM_CLASS = "ConvKXBNRELU"
SUPER_CLASSES = {
    "v1": {"k1kx": "SuperResConvK1KX", "kxkx": "SuperResConvKXKX"},
    "v2": {"k1kx": "SuperResK1KX", "kxkx": "SuperResKXKX"},
}
"""Class of a super-block by dialect (v1: the detector's files and the first search tool) and block kind."""

MAX_CHARACTERS = 2_000_000
MAX_NESTING = 16
MAX_RECORDS = 65
_KINDS = {name: kind for classes in SUPER_CLASSES.values() for kind, name in classes.items()}
_IGNORED_KEYS = ("inner_class", "nbitsA", "nbitsW", "act")
_NEUTRAL_KEYS = ("g", "p", "kt", "force_resproj_skip")
_NUMPY_SCALAR = re.compile(r"\b(?:np|numpy)\.[a-z]+\d*\(([^()]*)\)")
_WORDS = ("True", "False", "None", "true", "false", "null", "NaN", "nan", "Infinity", "inf")
_TOKEN = re.compile(
    r"\s+|[\[\](){}:,]|'(?:[^'\\\n]|\\.)*'|\"(?:[^\"\\\n]|\\.)*\"|#[^\n]*"
    r"|-?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?|(?:" + "|".join(_WORDS) + r")\b"
)


@dataclass(frozen=True, slots=True)
class OfficialStem:
    """The first record of a file.

    Attributes:
        in_channels: 3 or 12, see `maenas.official_import`.
        out_channels: Width of the stem.
        kernel_size: Kernel side.
        stride: Stride as the file says.
    """

    in_channels: int
    out_channels: int
    kernel_size: int
    stride: int


@dataclass(frozen=True, slots=True)
class OfficialBlock:
    """A super-block record: `num_units` units of one width, the first with the stride.

    Attributes:
        in_channels: Key `in`.
        out_channels: Key `out`.
        bottleneck_channels: Key `btn`, the inner width of every unit.
        kernel_size: Key `k`.
        stride: Key `s`, 1 or 2.
        num_units: Key `L`.
    """

    in_channels: int
    out_channels: int
    bottleneck_channels: int
    kernel_size: int
    stride: int
    num_units: int


@dataclass(frozen=True, slots=True)
class OfficialNetwork:
    """One backbone as a file describes it.

    Attributes:
        kind: `k1kx` (units 1x1 then kxk) or `kxkx` (kxk then kxk).
        stem: First record.
        blocks: The super-blocks.
        source: File (and entry) for messages.
    """

    kind: str
    stem: OfficialStem
    blocks: tuple[OfficialBlock, ...]
    source: str


def read_content(path: str | Path) -> object:
    """What a JSON or Python-literal file holds, as lists, dicts, texts and numbers.

    Raises:
        StructureError: The file cannot be read, is larger than MAX_CHARACTERS, or holds anything but literals.
    """
    try:
        with Path(path).open(encoding="utf-8-sig") as stream:
            text = stream.read(MAX_CHARACTERS + 1)
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise StructureError(f"{path}: cannot be read as text ({reason_of(error)})") from error
    return parse_content(text, source=str(path))


def parse_content(text: str, *, source: str) -> object:
    """Parse JSON or a Python literal; `np.float64(3.0)` and its like count as the number inside.

    Raises:
        StructureError: Too large, too deeply nested, or not a literal.
    """
    if len(text) > MAX_CHARACTERS:
        raise StructureError(f"{source}: is larger than {MAX_CHARACTERS} characters; expected a structure file")
    literal = _NUMPY_SCALAR.sub(r"\1", text).strip()
    if not literal:
        raise StructureError(f"{source}: is empty; expected a structure file")
    _check_tokens(literal, source)
    try:
        return json.loads(literal)
    except (ValueError, RecursionError):
        pass
    try:
        # In parentheses the indentation of the first line means nothing, even after a comment.
        return ast.literal_eval(f"({literal}\n)")
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
        reason = getattr(error, "msg", None) or str(error) or type(error).__name__
        raise StructureError(f"{source}: is neither JSON nor a Python literal ({reason})") from None


def _check_tokens(text: str, source: str) -> None:
    """Refuse everything but literals, and nesting that could exhaust the parser's stack."""
    position = depth = 0
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            line = text.count("\n", 0, position) + 1
            shown = text[position : position + 30].split("\n")[0]
            raise StructureError(f"{source}: line {line} has {shown!r}; expected JSON or a Python literal")
        first = text[position]
        depth += (first in "[({") - (first in "])}")
        if depth > MAX_NESTING:
            raise StructureError(f"{source}: is nested more than {MAX_NESTING} levels deep; expected a structure file")
        position = match.end()


def is_official(content: object) -> bool:
    """Whether parsed content looks like one of the official forms (rather than the format of `maenas.structure`)."""
    return isinstance(content, list) or (isinstance(content, dict) and "best_structures" in content)


def read_official(path: str | Path, *, index: int = 0) -> OfficialNetwork:
    """Read and check one network of an official file.

    Args:
        path: File of any of the three forms, either dialect.
        index: Which entry of `best_structures` (best first); 0 for a bare list.

    Raises:
        StructureError: Naming file, record, key, value and what was expected.
    """
    return network_from_content(read_content(path), source=str(path), index=index)


def network_from_content(content: object, *, source: str, index: int = 0) -> OfficialNetwork:
    """`read_official` for parsed content; the same errors."""
    if isinstance(content, dict):
        if "best_structures" not in content:
            raise StructureError(f"{source}: best_structures is missing; expected a list of networks")
        networks = content["best_structures"]
        if not isinstance(networks, list) or not networks:
            raise StructureError(f"{source}: best_structures is {_show(networks)}; expected a list of networks")
    elif isinstance(content, list):
        networks = [content]
    else:
        raise StructureError(f"{source}: is {_show(content)}; expected a list of records or a search result")
    if not 0 <= index < len(networks):
        raise StructureError(f"{source}: index is {index}; expected 0 to {len(networks) - 1}")
    where = f"{source}: best_structures[{index}]" if isinstance(content, dict) else source
    return _network(networks[index], where)


def _network(records: object, source: str) -> OfficialNetwork:
    if not isinstance(records, list | tuple) or not 2 <= len(records) <= MAX_RECORDS:
        raise StructureError(f"{source}: is {_show(records)}; expected a list of 2 to {MAX_RECORDS} records")
    stem = _stem(records[0], f"{source}: entry 0")
    channels, blocks, kind = stem.out_channels, [], ""
    for index, record in enumerate(records[1:], start=1):
        where = f"{source}: entry {index}"
        kind = _block_kind(record, where, kind)
        block = _block(record, where)
        if block.in_channels != channels:
            raise StructureError(f"{where}: in is {block.in_channels}; expected {channels}, the out before it")
        blocks.append(block)
        channels = block.out_channels
    return OfficialNetwork(kind, stem, tuple(blocks), source)


def _stem(record: object, where: str) -> OfficialStem:
    name = _class(record, where)
    if name != STEM_CLASS:
        raise StructureError(f"{where}: class is {_show(name)}; expected {STEM_CLASS}, the stem")
    _check_keys(record, where, ("in", "out", "k", "s"))
    return OfficialStem(
        in_channels=_integer(record, "in", where, 1, MAX_CHANNELS),
        out_channels=_integer(record, "out", where, 1, MAX_CHANNELS),
        kernel_size=_integer(record, "k", where, 1, 31),
        stride=_integer(record, "s", where, 1, 2, default=1),
    )


def _block_kind(record: object, where: str, before: str) -> str:
    name = _class(record, where)
    if not isinstance(name, str) or name not in _KINDS:
        raise StructureError(f"{where}: class is {_show(name)}; expected one of {', '.join(_KINDS)}")
    if before not in ("", _KINDS[name]):
        raise StructureError(f"{where}: class is {name}; expected a {before} class as in the entries before it")
    return _KINDS[name]


def _block(record: object, where: str) -> OfficialBlock:
    _check_keys(record, where, ("in", "out", "btn", "k", "s", "L"))
    return OfficialBlock(
        in_channels=_integer(record, "in", where, 1, MAX_CHANNELS),
        out_channels=_integer(record, "out", where, 1, MAX_CHANNELS),
        bottleneck_channels=_integer(record, "btn", where, 1, MAX_CHANNELS),
        kernel_size=_integer(record, "k", where, 1, 31),
        stride=_integer(record, "s", where, 1, 2, default=1),
        num_units=_integer(record, "L", where, 1, 256),
    )


def _class(record: object, where: str) -> object:
    if not isinstance(record, dict):
        raise StructureError(f"{where}: is {_show(record)}; expected a record with keys class, in, out, k, s")
    if "class" not in record:
        raise StructureError(f"{where}: class is missing; expected a class name")
    return record["class"]


def _check_keys(record: object, where: str, keys: tuple[str, ...]) -> None:
    """Refuse keys that would change the network in a way that the structure format does not have."""
    assert isinstance(record, dict)
    known = ("class", *keys, *_IGNORED_KEYS, *_NEUTRAL_KEYS)
    for key in record:
        if key not in known:
            raise StructureError(f"{where}: {key} is not a key of this class; expected {', '.join(('class', *keys))}")
    neutral: dict[str, tuple[object, ...]] = {
        "g": (None, 1),
        "p": (None, (_integer(record, "k", where, 1, 31) - 1) // 2),
        "kt": (None, 1),
        "force_resproj_skip": (None, 0, False),
    }
    for key, allowed in neutral.items():
        if record.get(key) not in allowed:
            raise StructureError(f"{where}: {key} is {_show(record[key])}; expected {allowed[1]} or no such key")


def _integer(record: object, key: str, where: str, low: int, high: int, default: int | None = None) -> int:
    assert isinstance(record, dict)
    if key not in record and default is not None:
        return default
    expected = f"expected an integer from {low} to {high}"
    if key not in record:
        raise StructureError(f"{where}: {key} is missing; {expected}")
    value = record[key]
    whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    if isinstance(value, bool) or not whole or not low <= value <= high:
        raise StructureError(f"{where}: {key} is {_show(value)}; {expected}")
    return int(value)


def _show(value: object) -> str:
    """A value for a message: containers by their size, everything else cut to 60 characters."""
    if isinstance(value, list | tuple | dict | set):
        return f"a {type(value).__name__} of {len(value)}"
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
