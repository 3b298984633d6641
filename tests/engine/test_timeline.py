"""What an engine did step by step, its waste and its picture; nothing of it needs torch."""

import itertools
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hone.core.errors import ConfigError
from hone.engine.timeline import StepRecord, Timeline, draw


def timeline(places, steps, arrivals):
    made = Timeline(places)
    for request, moment in arrivals.items():
        made.arrive(request, moment)
    for step in steps:
        made.on_step(StepRecord(*step))
    return made


# a and b come at 0 and run together from 1 to 4; b is done at 3. c comes at 2, and is taken at 4
# (static) or as soon as b's place is free (continuous).
A, B, C = ("a", 0, 1, "decode"), ("b", 0, 1, "decode"), ("c", 0, 1, "decode")
READ = [("a", 0, 5, "prompt"), ("b", 0, 3, "prompt")]
STATIC = [
    (1.0, 2.0, READ),
    (2.0, 3.0, [A, B]),
    (3.0, 4.0, [A]),
    (4.0, 5.0, [("c", 0, 2, "prompt")]),
    (5.0, 6.0, [C]),
]
CONTINUOUS = [
    (1.0, 2.0, READ),
    (2.0, 3.0, [A, B]),
    (3.0, 4.0, [A, ("c", 0, 2, "prompt")]),
    (4.0, 5.0, [C]),
]
ARRIVALS = {"a": 0.0, "b": 0.0, "c": 2.0}


@pytest.mark.smoke
def test_waste_is_what_stands_empty_while_a_request_waits():
    found = timeline(2, STATIC, ARRIVALS).figures()
    # Both places from 0 to 1, and that of b from 3 to 4, of two places for 6 seconds.
    assert found.waste == pytest.approx(3 / 12)
    assert found.useful == pytest.approx(7 / 12)
    assert found.tokens == 3 + 4  # the first of each, and those of the decoding rows
    assert found.rate == pytest.approx(7 / 6)
    assert found.ttft == pytest.approx((2 + 2 + 3) / 3)
    assert found.ttft_p95 == pytest.approx(3)
    assert found.latency == pytest.approx((4 + 3 + 4) / 3)

    better = timeline(2, CONTINUOUS, ARRIVALS).figures()
    assert better.waste == pytest.approx(2 / 10)
    assert better.useful == pytest.approx(7 / 10)
    assert better.ttft < found.ttft
    assert better.rate > found.rate


def test_a_row_that_has_ended_and_is_held_is_waste():
    steps = [(0.0, 1.0, READ), (1.0, 2.0, [A, ("b", 0, 1, "idle")])]
    found = timeline(2, steps, {"a": 0.0, "b": 0.0}).figures()
    assert (found.useful, found.waste) == (pytest.approx(3 / 4), pytest.approx(1 / 4))
    assert found.latency == pytest.approx(1.5)
    assert found.tokens == 3


def test_an_empty_engine_without_requests_wastes_nothing():
    steps = [(0.0, 1.0, [("a", 0, 5, "prompt")]), (9.0, 10.0, [("b", 0, 3, "prompt")])]
    found = timeline(2, steps, {"a": 0.0, "b": 9.0}).figures()
    assert (found.useful, found.waste) == (pytest.approx(2 / 20), 0.0)


def test_a_row_keeps_its_place_and_a_free_one_is_taken():
    bars = timeline(2, CONTINUOUS, ARRIVALS).bars()
    assert {bar.place for bar in bars if bar.kind == "prompt" and bar.start == 3.0} == {1}
    assert {bar.place for bar in bars if bar.kind == "decode" and bar.start == 4.0} == {1}


def test_several_outputs_of_a_request_are_rows_of_their_own():
    steps = [
        (0.0, 1.0, [("a", 0, 5, "prompt")]),
        (1.0, 2.0, [("a", 0, 1, "decode"), ("a", 1, 1, "decode")]),
    ]
    found = timeline(2, steps, {})
    assert {bar.place for bar in found.bars() if bar.start == 1.0} == {0, 1}
    assert found.figures().ttft == pytest.approx(1.0)


@st.composite
def runs(draw_one):
    """Steps of any rows in places enough for them, and arrivals before the first of each."""
    places = draw_one(st.integers(1, 4))
    now, steps, first = 0.0, [], {}
    for _ in range(draw_one(st.integers(1, 8))):
        start = now + draw_one(st.sampled_from((0.0, 0.5)))
        now = start + draw_one(st.sampled_from((0.25, 1.0)))
        names = draw_one(st.sets(st.sampled_from("abcdefg"), min_size=1, max_size=places))
        kinds = [draw_one(st.sampled_from(("prompt", "decode", "idle"))) for _ in names]
        rows = [(name, 0, 1, kind) for name, kind in zip(sorted(names), kinds, strict=True)]
        steps.append((start, now, rows))
        for name in names:
            first.setdefault(name, start)
    early = {name: at - draw_one(st.sampled_from((0.0, 0.3, 2.0))) for name, at in first.items()}
    return places, steps, early


@given(runs())
def test_no_place_does_two_things_at_once(run):
    places, steps, arrivals = run
    made = timeline(places, steps, arrivals)
    by_place = {}
    for bar in made.bars():
        assert 0 <= bar.place < places
        assert bar.start < bar.end
        by_place.setdefault(bar.place, []).append((bar.start, bar.end))
    for bars in by_place.values():
        bars.sort()
        assert all(one[1] <= other[0] for one, other in itertools.pairwise(bars))
    computed = sum((step[1] - step[0]) * len(step[2]) for step in steps)
    drawn = sum(bar.end - bar.start for bar in made.bars() if bar.kind != "empty")
    assert drawn == pytest.approx(computed)
    if any(kind != "idle" for step in steps for *_, kind in step[2]):
        figures = made.figures()
        assert 0 <= figures.useful + figures.waste <= 1 + 1e-9


def test_the_picture_is_drawn(tmp_path):
    both = {
        "static": timeline(2, STATIC, ARRIVALS),
        "continuous": timeline(2, CONTINUOUS, ARRIVALS),
    }
    draw(both, tmp_path / "timeline.svg", "two policies")
    text = (tmp_path / "timeline.svg").read_text(encoding="utf-8")
    assert text.startswith("<?xml")
    for colour in ("#4c72b0", "#55a868", "#e8b9ba"):  # prompts, tokens, waste
        assert colour in text
    assert not list(tmp_path.glob(".hone-tmp-*"))
    with pytest.raises(ConfigError, match=r"timeline\.txt is not the name of a picture"):
        draw(both, tmp_path / "timeline.txt")


def test_it_needs_no_torch():
    code = "import sys, hone.engine.timeline; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
