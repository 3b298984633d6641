"""What the engine asks of a proposer, and what it is told."""

import pytest

from hone.engine.request import Request
from hone.engine.sequence import Draft, Sequence
from hone.engine.speculation import Speculation
from hone.engine.speculation.adaptive import Lengths


class Counting:
    """Guesses 7s, and remembers what it was asked."""

    stepwise = False

    def __init__(self):
        self.asked = []

    def propose(self, sequences, most):
        self.asked.append([(one.key, limit) for one, limit in zip(sequences, most, strict=True)])
        return [Draft([7] * limit) for limit in most]

    def observe(self, sequences, hidden_RE):
        pass

    def forget(self, sequence):
        self.asked.append(f"forget {sequence.key}")


def sequences(count):
    return [Sequence(n, Request(str(n), (1,)), 0, 0, 0.0, [1, 2], 1) for n in range(count)]


@pytest.mark.smoke
def test_only_those_with_something_to_gain_are_asked():
    proposer, some = Counting(), sequences(3)
    speculation = Speculation(proposer, 4)
    speculation.lengths.choose = lambda keys, limits: [2, 0, 1]
    drafts = speculation.propose(some, [4, 4, 4])
    assert [draft.tokens for draft in drafts] == [[7, 7], [], [7]]
    assert proposer.asked == [[(0, 2), (2, 1)]]
    speculation.checked(some[0], 2, 1)
    speculation.checked(some[2], 1, 1)
    assert (speculation.drafted, speculation.accepted) == (3, 2)
    speculation.forget(some[0])
    assert proposer.asked[-1] == "forget 0"


def test_passes_that_read_prompts_too_tell_nothing_of_what_a_row_costs():
    speculation, some = Speculation(Counting(), 4), sequences(2)
    speculation.lengths.choose = lambda keys, limits: [2, 2]
    for rows in (2, 4, 6, 200, 6, 2, 6, 5):
        speculation.propose(some, [4, 4])
        speculation.took(rows, 1.0 + 0.1 * rows if rows < 10 else 50.0)
    step, row = speculation.lengths.passes.line(2)
    assert step == pytest.approx(1.2)
    assert row == pytest.approx(0.1)
    speculation.took(2, 99.0)  # nobody was asked for this one
    assert speculation.lengths.passes.line(2) == (step, row)


def test_a_proposer_that_is_slow_is_asked_less():
    def rows_of(drafting):
        lengths, drafted = Lengths(4), 0
        for _ in range(300):
            (asked,) = lengths.choose([0], [4])
            if asked:
                lengths.drafted(drafting, asked)
                lengths.acceptance.add(0, asked, asked // 2)
            lengths.passes.add(1 + asked, 1.05 + 0.05 * asked)
            drafted += asked
        return drafted

    assert rows_of(0.0) > 5 * rows_of(5.0)
