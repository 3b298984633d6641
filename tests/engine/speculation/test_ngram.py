"""Prompt look-up against a search through the whole text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hone.core.errors import ConfigError
from hone.engine.request import Request
from hone.engine.sequence import Sequence
from hone.engine.speculation.ngram import NgramProposer, propose_reference


def sequence(tokens, key=0):
    return Sequence(key, Request("r", tuple(tokens)), 0, 0, 0.0, list(tokens), len(tokens))


def propose(proposer, one, most):
    (draft,) = proposer.propose([one], [most])
    assert draft.parents is None
    return draft.tokens


@pytest.mark.smoke
def test_the_latest_place_of_the_longest_suffix_is_copied():
    one = sequence([1, 2, 3, 9, 2, 3, 8, 1, 2, 3])
    assert propose(NgramProposer(), one, 4) == [9, 2, 3, 8]  # 1 2 3 stands there, 2 3 later
    one = sequence([2, 3, 9, 2, 3, 8, 7, 2, 3])
    assert propose(NgramProposer(), one, 3) == [8, 7, 2]
    assert propose(NgramProposer(), sequence([1, 2, 3, 4]), 3) == []


def test_a_copy_that_reaches_the_end_goes_on_with_itself():
    one = sequence([5, 1, 2, 1, 2])
    assert propose(NgramProposer(1, 2), one, 7) == [1, 2, 1, 2, 1, 2, 1]


@given(
    st.lists(st.integers(0, 2), min_size=1, max_size=40),
    st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=4), max_size=10),
    st.integers(1, 3),
    st.integers(0, 3),
    st.integers(1, 9),
)
def test_growing_texts_are_found_as_by_looking_everywhere(prompt, steps, least, more, limit):
    proposer, one = NgramProposer(least, least + more), sequence(prompt)
    for step in [[], *steps]:
        one.tokens.extend(step)
        expected = propose_reference(one.tokens, limit, least, least + more)
        assert propose(proposer, one, limit) == expected


def test_sequences_do_not_know_of_each_other_and_are_forgotten():
    proposer = NgramProposer()
    first, second = sequence([1, 2, 3, 1, 2], 0), sequence([1, 2, 4, 1, 2], 1)
    drafts = proposer.propose([first, second], [1, 1])
    assert [draft.tokens for draft in drafts] == [[3], [4]]
    assert [d.tokens for d in proposer.propose([first, second], [0, 1])] == [[], [4]]
    proposer.forget(first)
    proposer.forget(first)
    assert propose(proposer, sequence([7, 7, 7, 7], 0), 2) == [7, 7]


def test_lengths_that_are_none_are_refused():
    with pytest.raises(ConfigError, match="N-grams of 3 to 2 tokens"):
        NgramProposer(3, 2)
