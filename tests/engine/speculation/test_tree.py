"""The tree of guesses against all trees of its size."""

from itertools import combinations, product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hone.engine.speculation.tree import choose_tree

ACCURACIES = [[0.6, 0.2, 0.1], [0.4, 0.15, 0.1], [0.3, 0.1, 0.05]]


def worth(path, accuracies):
    value = 1.0
    for head, guess in enumerate(path):
        value *= accuracies[head][guess]
    return value


@pytest.mark.smoke
def test_a_tree_grows_from_the_best_node_to_the_next():
    tree = choose_tree(ACCURACIES, 6)
    assert tree.paths == ((0,), (0, 0), (1,), (2,), (0, 1), (1, 0))
    assert tree.parents == [-1, 0, -1, -1, 0, 2]
    assert tree.guesses == 3
    assert list(tree.worth) == pytest.approx([0.6, 0.24, 0.2, 0.1, 0.09, 0.08])


@given(st.lists(st.lists(st.floats(0.01, 0.9), min_size=2, max_size=2), min_size=2, max_size=2))
def test_no_tree_of_as_many_nodes_is_worth_more(accuracies):
    every = [path for d in (1, 2) for path in product(range(2), repeat=d)]
    for count in range(1, 6):
        best = max(
            sum(worth(path, accuracies) for path in chosen)
            for chosen in combinations(every, count)
            if all(not path[:-1] or path[:-1] in chosen for path in chosen)
        )
        assert sum(choose_tree(accuracies, count).worth) == pytest.approx(best)


def test_guesses_that_are_never_right_have_no_place():
    assert choose_tree([[0.5, 0.0], [0.0, 0.0]], 9).paths == ((0,),)
    assert len(choose_tree(ACCURACIES, 1000).paths) == 3 + 9 + 27
