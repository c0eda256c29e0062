"""One label space for several data sets: which of their class names mean the same, one kind of another, or two things.

Tensor letters: S sources, C classes of the union.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from maenas.records import shown

from ..errors import DataError, did_you_mean
from .classes import listed

TAXONOMY_KEYS = ("same_as", "narrower", "ambiguous_by_source")


@dataclass(frozen=True, slots=True)
class Taxonomy:
    """What a union file says of class names. Equal names mean the same unless they are declared ambiguous.

    Attributes:
        same_as: Name in the union to further names of the same class.
        narrower: Broader class to classes that are kinds of it.
        ambiguous_by_source: Name to what it is called in the union, per source that has it.
    """

    same_as: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    narrower: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    ambiguous_by_source: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LabelSpace:
    """The classes of a union, and what each source says of them.

    A source is taken to mark every object of its classes, with the narrowest of its classes that fits.

    Attributes:
        class_names: In label order: sources in their order, classes in the order of their source, each once.
        broader: Per class the labels of all classes that it is a kind of, ascending; not itself.
        source_names: In the order of the union file.
        labels: Per source the label of each of its own classes, in its own order.
    """

    class_names: tuple[str, ...]
    broader: tuple[tuple[int, ...], ...]
    source_names: tuple[str, ...]
    labels: tuple[tuple[int, ...], ...]

    def labelled(self, source: int) -> tuple[int, ...]:
        """Labels of the classes that a source marks, ascending."""
        return tuple(sorted(set(self.labels[source])))

    @property
    def is_complete(self) -> bool:
        """Whether every source marks every class and none is a kind of another: as in a single data set."""
        everything = tuple(range(len(self.class_names)))
        return not any(self.broader) and all(self.labelled(s) == everything for s in range(len(self.labels)))

    def implied(self) -> NDArray[np.bool_]:
        """(C, C): whether an object of the class of the row is one of the class of the column too; itself included."""
        matrix = np.eye(len(self.class_names), dtype=np.bool_)
        for label, labels in enumerate(self.broader):
            matrix[label, list(labels)] = True
        return matrix

    def negatives(self) -> NDArray[np.bool_]:
        """(S, C + 1, C): whether a source tells that what it marks as the row's class is not of the column's class.

        The last row is for what a source does not mark at all. It tells so where it marks the class, or a broader one,
        and has not marked the object as that. A broader class of the row's own is never told to be absent.
        """
        implied = self.implied()
        rows = np.concatenate([implied, np.zeros((1, len(implied)), np.bool_)])
        tables = []
        for source in range(len(self.labels)):
            marked = np.zeros(len(implied), np.bool_)
            marked[list(self.labelled(source))] = True
            # Of the column's class and those it is a kind of, one is marked by the source and is none of the row's.
            witnesses = (implied & marked).astype(np.float32)
            tables.append((~rows).astype(np.float32) @ witnesses.T > 0)
        return np.stack(tables)


def parse_taxonomy(content: object, source: str) -> Taxonomy:
    """The taxonomy of a union file.

    Args:
        content: Parsed; None stands for none.
        source: File name for messages.

    Raises:
        DataError: Naming file, field, value and what was expected.
    """
    sections = _mapping({} if content is None else content, f"{source}: taxonomy")
    for key in sections:
        if key not in TAXONOMY_KEYS:
            hint = did_you_mean(key.replace("-", "_"), TAXONOMY_KEYS) or f"; expected {', '.join(TAXONOMY_KEYS)}"
            raise DataError(f"{source}: taxonomy.{key} is not a field{hint}")
    lists: dict[str, dict[str, tuple[str, ...]]] = {}
    for key in ("same_as", "narrower"):
        where = f"{source}: taxonomy.{key}"
        given = _mapping(sections.get(key) or {}, where)
        lists[key] = {name: _texts(names, f"{where}.{name}") for name, names in given.items()}
    where = f"{source}: taxonomy.ambiguous_by_source"
    meanings = {}
    for name, entry in _mapping(sections.get("ambiguous_by_source") or {}, where).items():
        by_source = _mapping(entry, f"{where}.{name}")
        meanings[name] = {key: _text(value, f"{where}.{name}.{key}") for key, value in by_source.items()}
    return Taxonomy(lists["same_as"], lists["narrower"], meanings)


def unify(
    sources: Sequence[tuple[str, Sequence[str]]],
    taxonomy: Taxonomy,
    *,
    source: str,
    class_names: Sequence[str] | None = None,
) -> LabelSpace:
    """Bring the classes of several data sets together.

    Args:
        sources: Name and own class names of each.
        taxonomy: Names in it that no source has are refused.
        source: File name for messages.
        class_names: Label order, of a trained network for example; it may hold more classes than the sources have.

    Raises:
        DataError: Naming file, field, value and the nearest known name.
    """
    renamed = _by_meaning(sources, taxonomy.ambiguous_by_source, source)
    known = list(dict.fromkeys(name for names in renamed for name in names))
    final = _merged(known, taxonomy, source)
    own = [[final.get(name, name) for name in names] for names in renamed]
    found = tuple(dict.fromkeys(name for names in own for name in names))
    order = found if class_names is None else tuple(class_names)
    place = {name: label for label, name in enumerate(order)}
    for name in found:
        if name not in place:
            raise DataError(f"{source}: class {name!r} is not one of {listed(order)}; expected only these classes")
    broader = _ancestors(found, final, taxonomy, source)
    return LabelSpace(
        order,
        tuple(tuple(sorted(place[name] for name in broader.get(entry, ()))) for entry in order),
        tuple(name for name, _ in sources),
        tuple(tuple(place[name] for name in names) for names in own),
    )


def similar_names(names: Iterable[str]) -> list[tuple[str, ...]]:
    """Names that differ only in case, spaces, hyphens and the like: likely to mean the same."""
    groups: dict[str, list[str]] = {}
    for name in names:
        plain = "".join(letter for letter in name.casefold() if letter.isalnum())
        groups.setdefault(plain or name, []).append(name)
    return [tuple(group) for group in groups.values() if len(group) > 1]


def _by_meaning(
    sources: Sequence[tuple[str, Sequence[str]]], ambiguous: Mapping[str, Mapping[str, str]], source: str
) -> list[list[str]]:
    """The class names of each source, ambiguous ones replaced by what they mean there."""
    own = dict(sources)
    for name, meanings in ambiguous.items():
        where = f"{source}: taxonomy.ambiguous_by_source.{name}"
        for key in meanings:
            if key not in own:
                raise DataError(f"{where}.{key}: {key!r} is not a source{_nearest(key, own)}")
            if name not in own[key]:
                raise DataError(f"{where}.{key}: source {key!r} has no class {name!r}{_nearest(name, own[key])}")
        for key, names in sources:
            if name in names and key not in meanings:
                raise DataError(f"{where}: source {key!r} has this class too; expected its meaning there ({key}: ...)")
    return [[ambiguous.get(name, {}).get(key, name) for name in names] for key, names in sources]


def _merged(known: Sequence[str], taxonomy: Taxonomy, source: str) -> dict[str, str]:
    """Name to the name that the union has for it, where that is another."""
    final: dict[str, str] = {}
    for name, members in taxonomy.same_as.items():
        where = f"{source}: taxonomy.same_as.{name}"
        for member in members:
            if member not in known:
                raise DataError(f"{where}: no source has a class {member!r}{_hint(member, known, taxonomy)}")
            if member != name and member in taxonomy.same_as:
                raise DataError(f"{where}: {member!r} is a name in the union itself; expected all in one entry")
            if final.setdefault(member, name) != name:
                raise DataError(
                    f"{where}: {member!r} is the same as {final[member]!r} already; expected one of the two"
                )
    return final


def _ancestors(
    names: Sequence[str], final: Mapping[str, str], taxonomy: Taxonomy, source: str
) -> dict[str, tuple[str, ...]]:
    """For every class that is a kind of others, all of these."""
    parents: dict[str, list[str]] = {}
    for broad, narrow_names in taxonomy.narrower.items():
        where = f"{source}: taxonomy.narrower.{broad}"
        resolved = []
        for name in (broad, *narrow_names):
            entry = final.get(name, name)
            if entry not in names:
                raise DataError(f"{where}: {name!r} is not a class of the union{_hint(name, names, taxonomy)}")
            resolved.append(entry)
        for entry in resolved[1:]:
            parents.setdefault(entry, []).append(resolved[0])
    found: dict[str, tuple[str, ...]] = {}
    for name in parents:
        above: dict[str, None] = {}
        pending: list[tuple[str, tuple[str, ...]]] = [(name, (name,))]
        while pending:
            entry, path = pending.pop()
            for parent in parents.get(entry, ()):
                if parent == name:
                    cycle = " -> ".join((*path, parent))
                    raise DataError(f"{source}: taxonomy.narrower goes in a circle ({cycle}); expected an end")
                if parent not in above:
                    above[parent] = None
                    pending.append((parent, (*path, parent)))
        found[name] = tuple(above)
    return found


def _hint(name: str, known: Iterable[str], taxonomy: Taxonomy) -> str:
    if name in taxonomy.ambiguous_by_source:
        meanings = dict.fromkeys(taxonomy.ambiguous_by_source[name].values())
        return f", which is ambiguous; expected one of its meanings, {', '.join(meanings)}"
    return _nearest(name, known)


def _nearest(name: str, known: Iterable[str]) -> str:
    names = list(known)
    return did_you_mean(name, names, quoted=True) or f"; expected one of {listed(names)}"


def _mapping(value: object, where: str) -> dict[str, object]:
    if not isinstance(value, dict):
        raise DataError(f"{where} is {shown(value)}; expected names with what belongs to them")
    return {_text(key, where): entry for key, entry in value.items()}


def _texts(value: object, where: str) -> tuple[str, ...]:
    """One name or a list of them."""
    entries = value if isinstance(value, list) else [value]
    if not entries:
        raise DataError(f"{where} is empty; expected class names")
    return tuple(_text(entry, where) for entry in entries)


def _text(value: object, where: str) -> str:
    if not isinstance(value, str | int | float) or isinstance(value, bool) or not str(value).strip():
        raise DataError(f"{where} is {shown(value)}; expected a name (in quotes, if YAML needs them)")
    return str(value)
