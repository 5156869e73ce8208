"""What the figures of bench rest on: medians, percentiles, rules, tables, and the figures that its README has."""

import json
import random
from xml.etree import ElementTree as ET

import pytest
from benching import ROOT
from hypothesis import given
from hypothesis import strategies as st

from bench import documents, measure, soak
from bench.measure import Spread, percentiles, ratio, spread
from bench.report import Report

BENCH = ROOT / "bench"


@given(st.lists(st.floats(0.001, 1e6), min_size=1), st.floats(0.001, 1e3))
def test_a_spread_lies_within_its_values(values: list[float], factor: float) -> None:
    """Invariant: low <= median <= high, all within the values, in any order; a constant ratio is found exactly."""
    found = spread(values)
    assert found
    assert min(values) <= found.low <= found.median <= found.high <= max(values)
    assert spread(random.Random(1).sample(values, len(values))) == found
    same = ratio([value * factor for value in values], [*values, 1.0])
    assert same
    assert same.median == pytest.approx(factor)
    assert same.high - same.low == pytest.approx(0, abs=factor * 1e-6)


@given(st.lists(st.floats(0, 10), min_size=1), st.floats(0.1, 100))
def test_a_percentile_is_the_smallest_value_that_is_enough(values: list[float], percent: float) -> None:
    """Invariant: that share of the values does not exceed it, and no smaller value would do."""
    (found,) = percentiles(random.Random(1).sample(values, len(values)), percent)
    milliseconds = [value * 1000 for value in values]
    assert found in milliseconds
    assert sum(value <= found for value in milliseconds) >= len(values) * percent / 100 - 1e-9
    assert sum(value < found for value in milliseconds) < len(values) * percent / 100


def test_nothing_measured_has_no_figures() -> None:
    """Without values there is no median, no ratio and no percentile; a table has a dash."""
    assert [spread([]), ratio([], [1.0]), ratio([1.0], [0.0]), *percentiles([], 50, 99)] == [None] * 5
    assert measure.number(None) == measure.with_spread(None) == "-"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        *((0.0, "0"), (0.0682, "0.0682"), (0.61, "0.610"), (8.14, "8.14"), (31.44, "31.4"), (331, "331")),
        *((0.9996, "1.00"), (9.996, "10.0"), (99.96, "100")),
    ],
)
def test_numbers_have_three_significant_digits(value: float, text: str) -> None:
    """What a table shows is as precise as what was measured."""
    assert measure.number(value) == text
    assert measure.with_spread(Spread(value, value, value, 3)) == f"{text} ({text}-{text})"
    assert measure.number(value, 1) == f"{value:,.{min(1, len(text.partition('.')[2]))}f}"


def test_growth_of_memory_is_seen() -> None:
    """A steady leak shows, an early rise to a plateau does not, and a few samples prove nothing."""
    assert soak.growth([1000 + 100 * n for n in range(40)]) == 2000
    assert soak.growth([1000 + min(n, 5) for n in range(40)]) == 0
    assert soak.growth([1000] * 8) is None


CELLS = st.lists(st.text("abc 123", max_size=8), min_size=2, max_size=2)


@given(CELLS, st.lists(CELLS, max_size=4), st.integers(0, 2))
def test_the_columns_of_a_table_are_aligned(head: list[str], rows: list[list[str]], left: int) -> None:
    """Invariant: every cell is there, in a column as wide as its widest cell."""
    lines = Report(head, rows, [], {}, left=left).text().splitlines()
    first, second = map(len, lines[1].split("  ")) if lines[1].strip() else (0, 0)
    for row, line in zip([head, *rows], [lines[0], *lines[2:]], strict=False):
        assert line[:first].strip() == row[0].strip()
        assert line[first + 2 :].strip() == row[1].strip()
        assert len(line) <= first + 2 + second


@given(
    st.dictionaries(
        st.text(st.characters(categories=["L", "P", "S"]), max_size=5),
        st.dictionaries(st.sampled_from([0.0, 1.0, 50.0, 4000.0]), st.floats(0, 1e5), min_size=1),
        min_size=1,
        max_size=8,
    )
)
def test_every_figure_is_in_the_chart(figures: dict[str, dict[float, float]]) -> None:
    """Invariant: the chart is well-formed, within its borders, and has a point for each figure; the same each time."""
    results = [
        {
            "rate": f"{rate:,.7g}" if rate else "closed",
            "server": name,
            "cpu_us": vars(Spread(value, value, value, 1)),
        }
        for name, points in figures.items()
        for rate, value in points.items()
    ]
    machine = dict.fromkeys(("commit", "kernel", "cpu", "python"), "a < b")
    chart = documents.chart({"results": results, "machine": machine})
    assert chart == documents.chart({"results": results, "machine": machine})
    points = [element for element in ET.fromstring(chart).iter() if element.get("r") == "3"]  # noqa: S314 - our own
    assert len(points) == sum(map(len, figures.values()))
    assert all(0 < float(point.attrib["cx"]) < 760 and 0 < float(point.attrib["cy"]) < 430 for point in points)


def test_the_readme_states_the_range_of_the_ratios() -> None:
    """The sentence at its top, from the least to the most that a connection costs in comparison with nginx."""
    results = json.loads((BENCH / "compare.json").read_text())["results"]
    ratios = [result["ratio"]["median"] for result in results if result["server"] == "nullsmtpd"]
    text = " ".join((ROOT / "README.md").read_text().split())
    assert f"[{min(ratios):.1f} to {max(ratios):.1f} times the CPU time of nginx]" in text
