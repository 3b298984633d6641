import pytest
from hypothesis import given
from hypothesis import strategies as st

from hone.core.errors import ConfigError
from hone.data import split_groups


@given(st.lists(st.integers(0, 20), max_size=60), st.floats(0, 0.99), st.integers(0, 5))
def test_groups_stay_together_and_nothing_is_lost(items, share, seed):
    train, held_out = split_groups(items, share, seed, key=lambda item: item)
    assert not set(train) & set(held_out)
    assert sorted(train + held_out) == sorted(items)
    assert train or not items
    assert bool(held_out) == (share > 0 and len(set(items)) > 1)


def test_the_share_is_kept_and_the_seed_decides():
    items = list(range(1000))
    train, held_out = split_groups(items, 0.2, 1)
    assert len(held_out) == 200
    assert train == sorted(train)
    assert split_groups(items, 0.2, 1) == (train, held_out)
    assert split_groups(items, 0.2, 2) != (train, held_out)


def test_a_share_of_all_is_refused():
    with pytest.raises(ConfigError, match=r"not 1\.0"):
        split_groups([1, 2], 1.0, 0)
