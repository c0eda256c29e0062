"""The report of a journey: nothing of a file or a user gets into it as markup, and nothing is fetched."""

from __future__ import annotations

import html
import re
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st
from journey_cases import NAUGHTY, made_facts

from maenas.journey_charts import all_charts, search_chart, size_chart
from maenas.journey_facts import _verdict
from maenas.journey_html import duration, esc, points, signed, size, table
from maenas.journey_report import report_html
from maenas.journey_samples import Sample
from maenas.journey_sections import verdict

PNG = b"\x89PNG made"
VOID = {"meta", "img", "br", "link", "input", "path", "use", "rect", "line", "circle", "hr"}


class Outline(HTMLParser):
    """Elements in their order, and whether every one is closed."""

    def __init__(self):
        super().__init__()
        self.open, self.seen, self.ids, self.links = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        self.ids += [value for name, value in attrs if name == "id"]
        if tag == "a":
            self.links.append(dict(attrs)["href"])
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        self.ids += [value for name, value in attrs if name == "id"]

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, (tag, self.open[-3:])
        self.open.pop()


def outline(text):
    found = Outline()
    found.feed(text)
    assert found.open == []
    return found


@pytest.fixture(scope="module")
def charts():
    """Drawing takes long; tests of texts share these."""
    return all_charts(made_facts())


def page(facts, charts, samples=()):
    pictures = {"latency-ap.png": PNG, "confusion.png": PNG}
    return report_html(facts, charts, samples, pictures, threshold=0.4)


@pytest.fixture(scope="module")
def naughty():
    facts = made_facts(name=NAUGHTY)
    return page(facts, all_charts(facts), [Sample(NAUGHTY, b"jpeg", b"jpeg", 3, 2)])


def test_names_are_escaped(naughty):
    assert "<script" not in naughty and html.escape(NAUGHTY) in naughty
    # Charts have them too, written by matplotlib.
    assert "alert('x')</script>" not in naughty


def test_the_page_is_whole_and_needs_nothing(naughty):
    found = outline(naughty)
    tags = [tag for tag, _ in found.seen]
    assert tags.count("h1") == 1 and "script" not in tags and "link" not in tags and "iframe" not in tags
    assert len(found.ids) == len(set(found.ids))
    assert all(link.startswith("#") and link[1:] in found.ids for link in found.links)
    for tag, attributes in found.seen:
        assert not [name for name in attributes if name.startswith("on")]
        if tag == "img":
            assert attributes["src"].startswith("data:image/") and attributes["alt"]
        if tag == "svg":
            assert attributes["role"] == "img" and attributes["aria-labelledby"] in found.ids
    assert not re.search(r"(?:src|href)=[\"']?(?:https?:|//|file:)", naughty)
    assert "default-src 'none'" in naughty
    assert 'name="viewport"' in naughty and "prefers-color-scheme: dark" in naughty


def test_references_inside_charts_lead_somewhere(naughty):
    ids = set(re.findall(r'\bid="([^"]+)"', naughty))
    used = set(re.findall(r"url\(#([^)]+)\)", naughty)) | set(re.findall(r'xlink:href="#([^"]+)"', naughty))
    assert used <= ids


def test_a_measured_journey_says_all_four_latencies(charts):
    text = page(made_facts(), charts)
    for value in ("7.800", "7.850", "7.860", "7.900"):
        assert f">{value}<" in text
    assert "Budget met.</strong> <strong>7.90 ms</strong> measured" in text
    assert "no network of this space scores above <strong>100.0000</strong>" in text


def test_a_journey_for_another_machine_says_that_nothing_was_measured(charts):
    facts = made_facts(measured=False)
    assert search_chart(facts) is None
    text = page(facts, {name: chart for name, chart in charts.items() if name != "search"})
    assert "<strong>nothing was measured</strong>" in text and "Predicted: 7.80 ms" in text
    assert "measured ms" not in text


def test_a_search_that_was_given_is_told_with_its_table(charts):
    facts = made_facts()
    assert "This search was made before" not in page(facts, charts)
    facts["choice"] |= {"given": True, "question": facts["choice"]["question"] | {"device": "<t4>"}}
    text = page(facts, charts)
    assert "This search was made before, with table <code>&lt;t4&gt;</code>, and given" in text
    assert "2 networks timed on the machine of its table" in text
    facts["choice"]["question"]["device"] = None
    assert "This search was made before, with no latency table, and given" in page(facts, charts)


@pytest.mark.parametrize(
    ("ms", "expected", "words"),
    [
        (7.61, "met", "Budget met."),
        (8.0, "met", "Budget met."),
        (8.39, "met, above", "Budget met within 5 %, but above it."),
        (8.41, "missed", "from the budget of 8 ms: too slow."),
        (7.59, "missed", "from the budget of 8 ms: faster than it had to be, at the cost of accuracy."),
    ],
)
def test_the_verdict(ms, expected, words):
    facts = made_facts()
    deviation = ms / 8 - 1
    assert _verdict(deviation) == expected
    facts["latency"] |= {"final_ms": ms, "deviation": deviation, "verdict": expected}
    said = re.sub(r"<[^>]+>", "", verdict(facts))
    assert f"{ms:.2f} ms" in said
    assert words in said and ("missed by more than 5 %" in said) == (expected == "missed")


def test_a_miss_names_the_machine_where_it_was_the_machine(charts):
    facts = made_facts()
    facts["latency"] |= {"final_ms": 9.0, "deviation": 0.125, "verdict": "missed", "again_ms": 8.9, "searched_ms": 7.9}
    assert "the very file that the search timed took +12.7 % at the end" in page(facts, charts).lower()


def test_a_disturbed_timing_is_doubted():
    facts = made_facts()
    assert "disturbed" not in verdict(facts)
    facts["latency"]["undisturbed"] = False
    assert "repeat it on a quiet machine" in verdict(facts)


def test_pieces():
    assert (duration(3.2), duration(59), duration(90), duration(7300)) == ("3.2 s", "59 s", "1.5 min", "2 h 1 min")
    assert (size(19_034_677), size(5_500)) == ("19.0 MB", "5.5 kB")
    assert (signed(-1.26), signed(0.04), signed(2.0, 2)) == ("\N{MINUS SIGN}1.3", "0.0", "+2.00")
    assert (points(0.6166), points(None)) == ("61.7", "\N{EN DASH}")
    with pytest.raises(ValueError, match="zip"):
        table(["one"], [["a", "b"]])


@given(st.text())
def test_escaped_text_has_no_markup(text):
    escaped = esc(text)
    assert not set("<>\"'") & set(escaped)
    escaped.encode("utf-8")


def test_text_that_is_no_utf_8_is_written_out():
    assert esc("a\udcffb") == "a\\udcffb"


def test_equal_records_give_equal_charts(charts):
    again = size_chart(made_facts())
    assert (again.svg, again.png) == (charts["sizes"].svg, charts["sizes"].png)
