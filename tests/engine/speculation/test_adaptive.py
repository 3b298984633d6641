"""How many tokens are asked for, against trying everything."""

from itertools import product
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hone.engine.speculation.adaptive import (
    Acceptance,
    Costs,
    Lengths,
    PassTimes,
    best_length,
    best_lengths,
    expected_tokens,
)

shares = st.floats(0, 0.98)
costs = st.builds(
    Costs, st.floats(0.1, 10), st.floats(0.001, 3), st.floats(0, 2), st.sampled_from([0.0, 0.1, 1])
)


@pytest.mark.smoke
def test_expected_tokens_are_those_of_drawing():
    random, share, count = Random(0), 0.7, 4
    total = 0
    for _ in range(20_000):
        total += 1
        for _ in range(count):
            if random.random() > share:
                break
            total += 1
    assert expected_tokens(share, count) == pytest.approx(total / 20_000, rel=0.01)
    assert expected_tokens(1.0, 3) == 4
    assert expected_tokens(0.0, 3) == 1


def chain(each, most):
    return np.array(each)[:, None] ** np.arange(1, most + 1)


@given(st.lists(shares, min_size=1, max_size=3), costs, st.data())
def test_lengths_together_are_as_good_as_the_best_of_all(each, cost, data):
    most = 3
    limits = [data.draw(st.integers(0, most)) for _ in each]
    gains = chain(each, most)

    def speed(lengths):
        tokens = sum(expected_tokens(a, n) for a, n in zip(each, lengths, strict=True))
        seconds = cost.step + cost.row * sum(lengths) + cost.level * max(lengths)
        return tokens / (seconds + (cost.draft if any(lengths) else 0))

    found = best_lengths(gains, limits, cost)
    best = max(speed(tried) for tried in product(*(range(limit + 1) for limit in limits)))
    assert all(n <= limit for n, limit in zip(found, limits, strict=True))
    assert speed(found) == pytest.approx(best)


@given(shares, costs)
def test_one_alone_gets_its_best_length(share, cost):
    alone = best_length(share, 6, cost)
    (found,) = best_lengths(chain([share], 6), [6], cost)
    speeds = [
        expected_tokens(share, n) / (cost.step + bool(n) * cost.draft + n * (cost.row + cost.level))
        for n in (alone, found)
    ]
    assert speeds[0] == pytest.approx(speeds[1])


def test_acceptance_is_found_from_drafts_that_were_cut_short():
    random, known, share = Random(1), Acceptance(), 0.8
    for _ in range(3000):
        drafted = random.randint(1, 5)
        accepted = 0
        while accepted < drafted and random.random() < share:
            accepted += 1
        known.add(random.randrange(10**9), drafted, accepted)
    assert known.share(-1) == pytest.approx(share, abs=0.05)


def test_a_sequence_is_known_by_itself_and_then_forgotten():
    known = Acceptance()
    for _ in range(30):
        known.add(1, 4, 4)
        known.add(2, 4, 0)
    assert known.share(1) > 0.9
    assert known.share(2) < 0.25
    assert known.share(2) < known.share(3) < known.share(1)
    known.forget(1)
    assert known.share(1) == known.share(3)


def test_a_tree_is_expected_to_do_as_well_as_it_does():
    curve = [0.8, 0.5, 0.3]
    known = Acceptance(curve)
    assert known.gains([1], 4).tolist() == [[0.8, 0.5, 0.3, 0.0]]
    for _ in range(60):
        known.add(1, 3, 0)
        known.add(2, 3, 2)
    assert known.gains([1], 3)[0, 0] < 0.2
    assert known.gains([2], 3)[0, 0] == pytest.approx(0.8 * 2 / 1.6, rel=0.1)


def test_costs_of_rows_are_told_from_passes():
    times, random = PassTimes(), Random(0)
    for _ in range(100):
        rows = random.randint(1, 9)
        times.add(rows, 0.010 + 0.002 * rows + random.gauss(0, 1e-5))
    step, row = times.line(1)
    assert step == pytest.approx(0.012, rel=0.02)
    assert row == pytest.approx(0.002, rel=0.02)


def run(lengths, share, step, row, steps=400, sequences=1, seed=0):
    """Tokens per second of a machine that behaves like this, and the lengths that were chosen."""
    random, keys = Random(seed), list(range(sequences))
    seconds, tokens, chosen = 0.0, 0, []
    for _ in range(steps):
        asked = lengths.choose(keys, [8] * sequences)
        chosen.append(asked)
        lengths.drafted(0.0, 1)
        took = step + row * sum(asked)
        lengths.passes.add(sequences + sum(asked), took)
        seconds += took
        for key, drafted in zip(keys, asked, strict=True):
            accepted = 0
            while accepted < drafted and random.random() < share:
                accepted += 1
            lengths.acceptance.add(key, drafted, accepted)
            tokens += accepted + 1
    return tokens / seconds, chosen


@pytest.mark.parametrize("sequences", [1, 8])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 0.9])
@pytest.mark.parametrize("row", [0.02, 0.2, 0.9])
def test_it_is_never_far_from_the_best_fixed_length(share, row, sequences):
    speed, _ = run(Lengths(8), share, 1.0, row, sequences=sequences)
    fixed = max(
        sequences * expected_tokens(share, n) / (1.0 + row * n * sequences) for n in range(9)
    )
    assert speed > 0.9 * fixed


def test_what_does_not_pay_is_turned_off_and_tried_again_ever_less_often():
    lengths = Lengths(8)
    _, chosen = run(lengths, 0.05, 1.0, 0.5, steps=2000)
    drafting = [number for number, asked in enumerate(chosen) if any(asked)]
    assert len(drafting) < 60
    assert [n for n in drafting if n > 100]
    # Now it pays, which is found out.
    _, chosen = run(lengths, 0.95, 1.0, 0.05, steps=3000)
    assert sum(bool(asked[0]) for asked in chosen[-500:]) > 450


def test_the_same_is_chosen_from_the_same():
    assert run(Lengths(8), 0.5, 1.0, 0.1) == run(Lengths(8), 0.5, 1.0, 0.1)
