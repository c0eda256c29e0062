"""Typed records from parsed JSON or YAML: unknown, missing and mistyped fields are named with their full path.

A record is a frozen dataclass whose `__post_init__` checks values by raising `ValueError("field is X; expected Y")`.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, TypeGuard, TypeVar, Union, get_args, get_origin, get_type_hints

from maenas.errors import MaenasError, did_you_mean

if TYPE_CHECKING:
    import yaml

T = TypeVar("T")
MAX_ENTRIES = 1000
"""Longest list a record may hold; more is a mistake or a trap."""
MAX_YAML_VALUES = 1_000_000
"""Most values a YAML text may stand for, with every alias written out; more is a trap."""

_EXPECTED = {int: "an integer", float: "a number", bool: "true or false", str: "a text"}


def require(condition: bool, field: str, value: object, expected: str) -> None:
    """Raise `ValueError` in the common wording unless the condition holds."""
    if not condition:
        raise ValueError(f"{field} is {shown(value)}; expected {expected}")


def is_number(value: object) -> TypeGuard[int | float]:
    """Whether a parsed value is a finite number that fits a float; true and false are none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def is_count(value: object) -> TypeGuard[int]:
    """Whether a parsed value is a whole number, 1 or more."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def shown(value: object) -> str:
    """A value as a user would write it, shortened; long lists are cut before they are written out."""
    text = json.dumps(_cut(value), default=str)
    return text if len(text) <= 80 else text[:77] + "..."


def _cut(value: object, depth: int = 3) -> object:
    """The first entries of the first levels of a value."""
    if isinstance(value, str):
        return value[:100]
    if isinstance(value, dict):
        return {
            str(key)[:100]: _cut(item, depth - 1) for key, item in itertools.islice(value.items(), 20 * (depth > 0))
        }
    if isinstance(value, list | tuple):
        return [_cut(item, depth - 1) for item in value[: 20 * (depth > 0)]]
    return value


def parse_yaml(text: str, *, loader: type[yaml.SafeLoader] | None = None) -> Any:  # noqa: ANN401
    """Plain values of a YAML text, which may come from strangers.

    Args:
        text: Of one document.
        loader: PyYAML's safe loader where None, or one derived from it.

    Raises:
        ValueError: It is none; the message is the reason, with the line where that is known.
    """
    import yaml

    try:
        # Not the C loader: it is faster, but deep nesting ends it, and the process, in a crash.
        reader = (loader or yaml.SafeLoader)(text)
        node = reader.get_single_node()
        if node is None:
            return None
        # Before anything is built: merge keys copy what their aliases hold.
        if _values_with_aliases(node, {}) > MAX_YAML_VALUES:
            raise ValueError(f"with its aliases it holds more than {MAX_YAML_VALUES} values")
        return reader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = "" if mark is None else f"line {mark.line + 1}: "
        raise ValueError(where + " ".join(str(error.problem or error.context).split())) from None
    except (yaml.YAMLError, ValueError, RecursionError, OverflowError) as error:
        raise ValueError(" ".join(str(error).split())) from None
    except (TypeError, LookupError, AttributeError):
        # So the reader fails at `!!int ''`, `!!bool x`, `!!timestamp x` ...
        raise ValueError("it has a tag on a value that does not fit") from None


def _values_with_aliases(node: yaml.Node, known: dict[int, int | None]) -> int:
    """How many values a node stands for; `known` has None for those under way."""
    key = id(node)
    if key not in known:
        known[key] = None
        # Of a scalar a text, of a sequence nodes, of a mapping pairs of nodes.
        parts = node.value if isinstance(node.value, list) else []
        below = [each for part in parts for each in (part if isinstance(part, tuple) else (part,))]
        known[key] = 1 + sum(_values_with_aliases(each, known) for each in below)
    count = known[key]
    if count is None:
        raise ValueError(f"line {node.start_mark.line + 1}: a value contains itself")
    return count


def build(cls: type[T], content: object, *, source: str, error: type[MaenasError], where: str = "") -> T:
    """A record of class `cls` from a parsed object.

    Args:
        cls: A dataclass; its fields are numbers, texts, truth values, tuples, records or optional ones of these. A
            record with a `from_scalar` method also accepts a plain number in place of an object.
        content: What the file holds.
        source: File name for messages.
        error: Error class to raise.
        where: Dotted path of this record inside the file.

    Raises:
        MaenasError: As `error`, naming source, field, value and what was expected.
    """
    label = f"{source}: {where}" if where else f"{source}:"
    if not isinstance(content, dict):
        raise error(f"{label} is {shown(content)}; expected an object")
    hints = get_type_hints(cls)
    names = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]
    prefix = f"{where}." if where else ""
    for key in content:
        if key not in names:
            hint = did_you_mean(str(key), names) or f"; expected {', '.join(names)}"
            raise error(f"{source}: {prefix}{key} is not a field{hint}")
    values = {}
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        place = prefix + field.name
        if field.name in content:
            values[field.name] = _convert(hints[field.name], content[field.name], source, error, place)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise error(f"{source}: {place} is missing")
    try:
        return cls(**values)
    except ValueError as problem:
        raise error(f"{source}: {prefix}{problem}") from None


def _convert(hint: Any, value: object, source: str, error: type[MaenasError], where: str) -> Any:  # noqa: ANN401
    """A parsed value as the annotated type."""
    if get_origin(hint) in (Union, UnionType):
        if value is None:
            return None
        (hint,) = (option for option in get_args(hint) if option is not NoneType)
    if dataclasses.is_dataclass(hint):
        if isinstance(value, int | float) and not isinstance(value, bool) and hasattr(hint, "from_scalar"):
            try:
                return hint.from_scalar(value)
            except ValueError as problem:
                raise error(f"{source}: {where}: {problem}") from None
        return build(hint, value, source=source, error=error, where=where)  # type: ignore[arg-type]
    if get_origin(hint) is tuple:
        return _convert_tuple(get_args(hint), value, source, error, where)
    numeric = isinstance(value, int | float) and not isinstance(value, bool)
    fits = numeric if hint is float else type(value) is hint
    if not fits:
        raise error(f"{source}: {where} is {shown(value)}; expected {_EXPECTED[hint]}")
    try:
        return hint(value)
    except OverflowError:
        raise error(f"{source}: {where} is {shown(value)}; expected a number that fits a float") from None


def _convert_tuple(
    arguments: tuple[Any, ...], value: object, source: str, error: type[MaenasError], where: str
) -> tuple[Any, ...]:
    if not isinstance(value, list):
        raise error(f"{source}: {where} is {shown(value)}; expected a list")
    if len(value) > MAX_ENTRIES:
        raise error(f"{source}: {where} has {len(value)} entries; expected at most {MAX_ENTRIES}")
    if arguments[-1] is Ellipsis:
        kinds = [arguments[0]] * len(value)
    else:
        kinds = list(arguments)
        if len(value) != len(kinds):
            raise error(f"{source}: {where} has {len(value)} entries; expected {len(kinds)}")
    pairs = zip(kinds, value, strict=True)
    return tuple(_convert(kind, item, source, error, f"{where}[{i}]") for i, (kind, item) in enumerate(pairs))
