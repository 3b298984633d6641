from hypothesis import given
from hypothesis import strategies as st

from hone.engine.blocks import BlockPool


def filled(pool: BlockPool, tokens: list[int]) -> list[int]:
    """A table for ``tokens``, every full block of which is remembered."""
    table = pool.allocate(pool.blocks_for(len(tokens)))
    for block, digest in zip(table, pool.hashes(tokens, []), strict=False):
        pool.remember(block, digest)
    return table


def found(pool: BlockPool, tokens: list[int], salt: bytes = b"") -> list[int]:
    return pool.find(pool.hashes(tokens, [], salt), (len(tokens) - 1) // pool.size)


def test_a_common_beginning_is_found_block_by_block():
    pool = BlockPool(8, 4)
    table = filled(pool, list(range(10)))
    assert found(pool, [*range(10), 77]) == table[:2]
    assert found(pool, [*range(6), 99, 99, 99]) == table[:1]
    assert found(pool, [9, *range(1, 10)]) == []


def test_one_token_is_always_left_to_compute():
    pool = BlockPool(8, 4)
    table = filled(pool, list(range(8)))
    assert found(pool, list(range(8))) == table[:1]
    assert found(pool, list(range(9))) == table


def test_what_a_hash_stands_for_includes_all_before_it_and_the_salt():
    pool = BlockPool(8, 2)
    filled(pool, [1, 2, 3, 4])
    assert found(pool, [5, 6, 3, 4, 0]) == []
    assert found(pool, [1, 2, 3, 4, 0], b"adapter") == []


def test_the_block_unused_for_longest_goes_first_and_a_tail_before_its_beginning():
    pool = BlockPool(4, 2)
    old, new = filled(pool, [1, 2, 3, 4]), filled(pool, [5, 6, 7, 8])
    pool.release(old)
    pool.release(new)
    assert pool.free == 4
    pool.allocate(1)
    assert found(pool, [1, 2, 3, 4, 0]) == old[:1]
    pool.allocate(1)
    assert found(pool, [1, 2, 3, 4, 0]) == []
    assert found(pool, [5, 6, 7, 8, 0]) == new


def test_use_makes_a_block_young_again():
    pool = BlockPool(2, 2)
    first, second = filled(pool, [1, 2]), filled(pool, [3, 4])
    pool.release(first)
    pool.release(second)
    pool.hold(first)
    pool.release(first)
    pool.allocate(1)
    assert found(pool, [1, 2, 0]) == first
    assert found(pool, [3, 4, 0]) == []


def test_a_block_that_is_held_is_never_given_away():
    pool = BlockPool(3, 2)
    table = filled(pool, [1, 2])
    pool.hold(table)
    pool.release(table)
    assert pool.free == 2
    assert table[0] not in pool.allocate(2)


def test_low_numbers_go_first_and_nobody_gets_block_0():
    pool = BlockPool(4, 2)
    assert pool.allocate(2) == [1, 2]
    pool.release([1, 2])
    assert pool.allocate(3) == [1, 2, 3]


def test_without_sharing_nothing_is_remembered():
    pool = BlockPool(4, 2, sharing=False)
    table = filled(pool, [1, 2, 3, 4])
    pool.release(table)
    assert found(pool, [1, 2, 3, 4, 5]) == []


def test_forgetting_keeps_what_is_held():
    pool = BlockPool(4, 2)
    held, left = filled(pool, [1, 2]), filled(pool, [3, 4])
    pool.release(left)
    pool.forget_all()
    assert found(pool, [1, 2, 0]) == found(pool, [3, 4, 0]) == []
    assert pool.free == 3
    pool.release(held)
    assert sorted(pool.allocate(4)) == [1, 2, 3, 4]


def test_what_was_begun_before_forgetting_is_not_found_by_what_begins_after():
    pool = BlockPool(8, 2)
    tokens, early, late = [1, 2, 3, 4], list[bytes](), list[bytes]()
    first, second = pool.allocate(2)
    pool.remember(first, pool.hashes(tokens, early)[0])
    pool.forget_all()
    pool.remember(second, early[1])  # who holds them goes on with what it has
    (again,) = pool.allocate(1)
    pool.remember(again, pool.hashes(tokens, late)[0])
    assert pool.find(late, 2) == [again]


def test_a_pool_of_states_has_one_block_for_any_length():
    pool = BlockPool(2, 0)
    assert pool.blocks_for(0) == 0
    assert pool.blocks_for(1) == pool.blocks_for(10_000) == 1


operations = st.lists(
    st.tuples(st.sampled_from("afrs"), st.integers(0, 5), st.lists(st.integers(0, 2), max_size=9)),
    max_size=60,
)


@given(operations, st.integers(1, 12))
def test_blocks_are_neither_lost_nor_held_twice(steps, count):
    pool, tables = BlockPool(count, 2), []
    for kind, pick, tokens in steps:
        if kind == "a" and pool.blocks_for(len(tokens)) <= pool.free:
            tables.append(filled(pool, tokens))
        elif kind == "f":
            blocks = found(pool, tokens)
            pool.hold(blocks)
            tables.append(blocks)
        elif kind == "r" and tables:
            pool.release(tables.pop(pick % len(tables)))
        elif kind == "s" and tables:
            shared = tables[pick % len(tables)]
            pool.hold(shared)
            tables.append(list(shared))
        held = {block for table in tables for block in table}
        assert pool.free == count - len(held)
        assert all(
            pool.is_shared(b) == (sum(t.count(b) for t in tables) > 1) for b in range(1, count + 1)
        )
    for table in tables:
        pool.release(table)
    assert sorted(pool.allocate(count)) == list(range(1, count + 1))
