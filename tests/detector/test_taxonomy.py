"""Label spaces: what is merged, what is implied, and what a source says of classes that it does not mark."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from union_cases import space_of

from detector.data.taxonomy import LabelSpace, parse_taxonomy, similar_names
from detector.errors import DataError

THREE = {
    "coco": ("person", "car", "mouse", "tv"),
    "o365": ("person", "sedan", "mouse", "taxi"),
    "oi": ("Person", "mouse", "Television", "car"),
}
MICE = {"mouse": {"coco": "computer mouse", "o365": "computer mouse", "oi": "mouse (animal)"}}


def test_names_come_together_by_rule():
    space = space_of(
        THREE,
        same_as={"person": ("Person",), "television": ("tv", "Television")},
        narrower={"car": ("sedan", "taxi")},
        ambiguous_by_source=MICE,
    )
    assert space.class_names == ("person", "car", "computer mouse", "television", "sedan", "taxi", "mouse (animal)")
    assert space.labels == ((0, 1, 2, 3), (0, 4, 2, 5), (0, 6, 3, 1))
    assert space.labelled(2) == (0, 1, 3, 6)
    assert space.broader == ((), (), (), (), (1,), (1,), ())
    assert space.source_names == ("coco", "o365", "oi")


def test_equal_names_are_one_class_without_a_word():
    space = space_of({"a": ("x", "y"), "b": ("y", "x")})
    assert space.class_names == ("x", "y") and space.labels == ((0, 1), (1, 0))
    assert space.is_complete
    assert not space_of({"a": ("x", "y"), "b": ("y",)}).is_complete
    assert not space_of({"a": ("x", "y")}, narrower={"x": ("y",)}).is_complete


def test_a_name_of_one_source_can_get_another():
    """As for going on with one source of a union: its classes have the names of the union again."""
    space = space_of({"coco": ("cat", "mouse")}, ambiguous_by_source={"mouse": {"coco": "computer mouse"}})
    assert space.class_names == ("cat", "computer mouse")


def test_kinds_of_kinds():
    space = space_of({"a": ("vehicle", "car", "sedan", "bus")}, narrower={"car": ("sedan",), "vehicle": ("car", "bus")})
    assert space.broader == ((), (0,), (0, 1), (0,))
    assert space.implied()[2].tolist() == [True, True, True, False]


def test_what_sources_tell_of_other_classes():
    """Worked out by hand for car, sedan (a car), taxi (a car) and person."""
    sources = {"cars": ("car", "person"), "sedans": ("sedan", "person"), "all": ("car", "sedan", "taxi", "person")}
    space = space_of(sources, narrower={"car": ("sedan", "taxi")})
    assert space.class_names == ("car", "person", "sedan", "taxi")
    car, person, sedan, taxi = range(4)
    nothing = 4
    cars, sedans, everything = space.negatives()
    # Who marks cars has marked every sedan, as a car: elsewhere there is none. In a car there may be one.
    assert cars[nothing].all()
    assert cars[person].tolist() == [True, False, True, True]
    assert cars[car].tolist() == [False, True, False, False]
    # Who marks sedans says nothing of cars and taxis, and a sedan may be a taxi.
    assert sedans[nothing].tolist() == [False, True, True, False]
    assert sedans[sedan].tolist() == [False, True, False, False]
    # Who marks all of them with the narrowest name has said what each is not; but a sedan is a car.
    assert everything[car].tolist() == [False, True, True, True]
    assert everything[sedan].tolist() == [False, True, False, True]
    assert everything[taxi].tolist() == [False, True, True, False]


@given(st.data())
def test_tables_equal_their_definition(data):
    """Against a loop over classes and sets; kinds go to classes before them, so there is no circle."""
    count = data.draw(st.integers(1, 6))
    parents = [data.draw(st.sets(st.integers(0, label - 1))) if label else set() for label in range(count)]
    above: list[set[int]] = []
    for label in range(count):
        above.append({label}.union(*(above[parent] for parent in parents[label])))
    own = data.draw(st.lists(st.sets(st.integers(0, count - 1), min_size=1), min_size=1, max_size=3))
    names = tuple(str(label) for label in range(count))
    space = LabelSpace(
        names,
        tuple(tuple(sorted(above[label] - {label})) for label in range(count)),
        tuple(str(source) for source in range(len(own))),
        tuple(tuple(sorted(labels)) for labels in own),
    )
    implied, tables = space.implied(), space.negatives()
    assert [set(np.flatnonzero(row)) for row in implied] == above
    for (source, marked), row, column in itertools.product(enumerate(own), range(count + 1), range(count)):
        known = set() if row == count else above[row]
        assert tables[source, row, column] == bool((above[column] & marked) - known)


@pytest.mark.parametrize(
    ("taxonomy", "message"),
    [
        (
            {"same_as": {"person": ("Persn",)}},
            r"same_as.person: no source has a class 'Persn'; did you mean 'Person'\?",
        ),
        ({"same_as": {"a": ("tv",), "b": ("tv",)}}, "'tv' is the same as 'a' already; expected one of the two"),
        ({"same_as": {"tv": ("Television",), "x": ("tv",)}}, "'tv' is a name in the union itself; expected all in one"),
        (
            {"narrower": {"car": ("sedann",)}},
            r"narrower.car: 'sedann' is not a class of the union; did you mean 'sedan'",
        ),
        ({"narrower": {"vehicle": ("car",)}}, "narrower.vehicle: 'vehicle' is not a class of the union"),
        ({"narrower": {"car": ("sedan",), "sedan": ("taxi",), "taxi": ("car",)}}, r"in a circle \(.* -> .* -> .*\)"),
        ({"narrower": {"car": ("car",)}}, r"in a circle \(car -> car\)"),
        ({"ambiguous_by_source": {"mouse": {"cocoo": "m"}}}, r"'cocoo' is not a source; did you mean 'coco'\?"),
        (
            {"ambiguous_by_source": {"mous": {"coco": "m"}}},
            r"source 'coco' has no class 'mous'; did you mean 'mouse'\?",
        ),
        ({"ambiguous_by_source": {"mouse": {"coco": "m"}}}, "source 'o365' has this class too; expected its meaning"),
        (
            {"ambiguous_by_source": MICE, "narrower": {"mouse": ("tv",)}},
            r"'mouse' .* is ambiguous; expected one of its meanings, computer mouse, mouse \(animal\)",
        ),
    ],
)
def test_contradictions_are_named(taxonomy, message):
    with pytest.raises(DataError, match=message):
        space_of(THREE, **taxonomy)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1], r"u.yaml: taxonomy is \[1\]; expected names with what belongs to them"),
        ({"same-as": {}}, r"taxonomy.same-as is not a field; did you mean same_as\?"),
        ({"narrower": {"car": []}}, "taxonomy.narrower.car is empty; expected class names"),
        ({"narrower": {"car": [True]}}, "taxonomy.narrower.car is true; expected a name"),
        ({"ambiguous_by_source": {"mouse": "coco"}}, 'ambiguous_by_source.mouse is "coco"; expected names with what'),
    ],
)
def test_malformed_taxonomies_are_named(content, message):
    with pytest.raises(DataError, match=message):
        parse_taxonomy(content, "u.yaml")


def test_one_name_or_a_list():
    taxonomy = parse_taxonomy({"same_as": {"tv": "Television"}, "narrower": {"tv": ["monitor", 4]}}, "u.yaml")
    assert taxonomy.same_as == {"tv": ("Television",)} and taxonomy.narrower == {"tv": ("monitor", "4")}


def test_names_that_look_the_same():
    assert similar_names(["Person", "car", "traffic light", "person", "Traffic-Light"]) == [
        ("Person", "person"),
        ("traffic light", "Traffic-Light"),
    ]


def test_a_given_label_order_must_hold_every_class():
    from detector.data.taxonomy import Taxonomy, unify

    sources = [("a", ("x", "y")), ("b", ("y", "z"))]
    space = unify(sources, Taxonomy(narrower={"y": ("z",)}), source="u", class_names=("other", "z", "y", "x"))
    assert space.labels == ((3, 2), (2, 1)) and space.broader == ((), (2,), (), ())
    with pytest.raises(DataError, match="class 'z' is not one of x, y; expected only these"):
        unify(sources, Taxonomy(), source="u", class_names=("x", "y"))
