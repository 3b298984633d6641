"""What steps are made of, without a model: sequences grow by a token whenever all is computed."""

from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hone.engine.blocks import BlockPool
from hone.engine.policies import Continuous
from hone.engine.request import Request
from hone.engine.scheduler import Scheduler
from hone.engine.sequence import Draft, Sequence

_keys = count()


def sequence(length=10, arrived=0, budget=5, owner="", priority=0, first=0, source=()):
    key = next(_keys)
    request = Request(f"r{key}", (0,), priority=priority, owner=owner)
    tokens = [first * 1000 + i for i in range(length)]
    return Sequence(key, request, 0, arrived, 0.0, tokens, length, source=source, budget=budget)


def scheduler(blocks=100, size=4, tokens=64, running=8, sharing=True, **settings):
    pool = BlockPool(blocks, size, sharing)
    return Scheduler(pool, Continuous(), tokens, running, **settings)


def advance(s, step):
    """As the engine does it: what was computed is noted, complete ones get a token or end."""
    for work in step.works:
        one, before = work.sequence, work.sequence.computed
        one.computed += work.new - (len(one.draft.tokens) if one.draft else 0)
        one.draft = None
        if one.pending == 0:
            one.tokens.append(7)
        s.remember(one, before)
        if one.written >= one.budget:
            s.remove(one)


def shares(step):
    return [(work.sequence.key, work.new) for work in step.works]


def test_a_prompt_is_read_in_pieces_under_the_budget_of_tokens():
    s, one = scheduler(tokens=4), sequence(10)
    s.add(one)
    sizes = []
    for _ in range(4):
        step = s.schedule(0.0)
        sizes.append([work.new for work in step.works])
        advance(s, step)
    assert sizes == [[4], [4], [2], [1]]


def test_those_that_run_go_first_and_a_prompt_takes_what_is_left():
    s = scheduler(tokens=6)
    old, new = sequence(4, arrived=0, first=1), sequence(20, arrived=1, first=2)
    s.add(old)
    advance(s, s.schedule(0.0))
    s.add(new)
    assert shares(s.schedule(0.0)) == [(old.key, 1), (new.key, 5)]


def test_a_known_beginning_is_not_computed_again():
    s = scheduler()
    first = sequence(11)
    s.add(first)
    advance(s, s.schedule(0.0))
    second = sequence(11, arrived=1)
    s.add(second)
    step = s.schedule(0.0)
    assert shares(step)[-1] == (second.key, 3)
    assert second.blocks[:2] == first.blocks[:2]
    assert second.cached == 8
    assert (s.pool.queries, s.pool.hits) == (22, 8)


@pytest.mark.parametrize(
    ("field", "value", "cached"),
    [("adapter", "korean", 0), ("source", (1, 2), 0), ("floor", 9, 8), ("floor", 12, 0)],
)
def test_what_else_a_beginning_depends_on_makes_it_another(field, value, cached):
    s = scheduler(long_from=12)
    s.add(sequence(11))
    advance(s, s.schedule(0.0))
    other = sequence(11, arrived=1)
    if field == "adapter":
        other.request = Request("other", (0,), adapter=value)
    else:
        setattr(other, field, value)
    s.add(other)
    assert shares(s.schedule(0.0))[-1] == (other.key, 11 - cached)


def test_when_blocks_run_out_the_last_to_arrive_gives_way_and_comes_back():
    s = scheduler(blocks=4, size=4, sharing=False)
    one, two = sequence(7, 0, budget=9, first=1), sequence(5, 1, budget=3, first=2)
    s.add(one)
    s.add(two)
    advance(s, s.schedule(0.0))
    assert len(s.running) == 1  # a block is kept back for the one that runs
    done, steps = [], 0
    while s.running or len(s.waiting):
        step = s.schedule(0.0)
        assert step.works
        before = [*s.running]
        advance(s, step)
        done += [x for x in before if x not in s.running]
        steps += 1
        assert steps < 100
    assert s.pool.free == 4
    assert {x.key for x in done} == {one.key, two.key}


def test_preemption_takes_the_last_in_rank():
    s = scheduler(blocks=6, size=2, sharing=False)
    important = sequence(3, arrived=1, budget=8, priority=-1, first=1)
    early = sequence(3, arrived=0, budget=8, first=2)
    for one in (important, early):
        s.add(one)
    while not s.preemptions:
        advance(s, s.schedule(0.0))
    assert [x.key for x in s.running] == [important.key]
    assert early.computed == 0
    assert early.blocks == []


def test_a_shared_block_is_copied_before_it_is_written():
    s = scheduler()
    leader, other = sequence(6), sequence(6)
    s.add(leader)
    advance(s, s.schedule(0.0))
    leader.tokens.pop()
    s.join(other, leader)
    for one in (leader, other):
        one.tokens.append(one.key)
    step = s.schedule(0.0)
    assert [work.new for work in step.works] == [1, 1]
    assert leader.blocks[0] == other.blocks[0]
    assert leader.blocks[1] != other.blocks[1]
    ((source, target),) = step.copies
    assert {source, target} == {leader.blocks[1], other.blocks[1]}
    assert not s.pool.is_shared(source)
    assert not s.pool.is_shared(target)


def test_guesses_are_dropped_before_anybody_is_preempted():
    s = scheduler(blocks=2, size=4, sharing=False)
    one = sequence(6)
    s.add(one)
    advance(s, s.schedule(0.0))
    one.draft = Draft([1, 2, 3, 4])
    assert [work.new for work in s.schedule(0.0).works] == [1]
    assert one.draft is None
    assert s.preemptions == 0


def test_guesses_are_cut_where_the_budget_of_tokens_ends():
    s = scheduler(tokens=16)
    one = sequence(14)
    s.add(one)
    advance(s, s.schedule(0.0))
    one.draft = Draft(list(range(30)))
    assert [work.new for work in s.schedule(0.0).works] == [16]
    assert one.draft.tokens == list(range(15))


def test_of_a_tree_the_first_guesses_stay_where_the_budget_of_tokens_ends():
    s = scheduler(tokens=16)
    one, two = sequence(14), sequence(14, arrived=1, first=1)
    s.add(one)
    for _ in range(2):
        advance(s, s.schedule(0.0))
    s.add(two)
    advance(s, s.schedule(0.0))
    one.draft = Draft(list(range(12)), [-1, -1, *range(10)])
    two.draft = Draft([5, 6, 7], [-1, 0, -1])
    assert [work.new for work in s.schedule(0.0).works] == [13, 3]
    assert two.draft == Draft([5, 6], [-1, 0])


def test_prompts_are_cut_at_multiples_where_bits_depend_on_it():
    s = scheduler(tokens=16, chunk_multiple=6)
    s.add(sequence(40))
    sizes = []
    for _ in range(4):
        step = s.schedule(0.0)
        sizes += [work.new for work in step.works]
        advance(s, step)
    assert sizes == [12, 12, 16, 1]


def test_a_cut_leaves_no_token_alone_where_bits_depend_on_it():
    s = scheduler(tokens=12, chunk_multiple=6)
    s.add(sequence(13))
    step = s.schedule(0.0)
    assert [work.new for work in step.works] == [6]
    advance(s, step)
    assert [work.new for work in s.schedule(0.0).works] == [7]


def test_a_source_is_read_whole_and_has_blocks_of_its_own():
    s = scheduler(tokens=8)
    one = sequence(1, source=tuple(range(13)))
    s.add(one)
    (work,) = s.schedule(0.0).works
    assert work.reads_source
    assert work.new == 1
    assert len(one.source_blocks) == 4
    advance(s, s.schedule(0.0))
    s.remove(one)
    assert s.pool.free == s.pool.count


def test_who_has_sources_read_is_served_as_much():
    s = scheduler(tokens=16, running=1, blocks=40)
    for number in range(2):
        s.add(sequence(1, number, 1, "reads", source=tuple(range(14))))
    for number in range(2, 4):
        s.add(sequence(5, number, 1, "writes", first=number))
    order = []
    while s.running or len(s.waiting):
        step = s.schedule(0.0)
        order += [work.sequence.request.owner for work in step.works]
        advance(s, step)
    assert order == ["reads", "writes", "writes", "reads"]


def test_a_state_takes_one_slot_whatever_the_length():
    s = scheduler(blocks=2, size=0)
    three = [sequence(50 + i, arrived=i) for i in range(3)]
    for one in three:
        s.add(one)
    step = s.schedule(0.0)
    assert sorted(step.fresh_slots) == [1, 2]  # none is kept back: a state does not grow
    for _ in range(20):
        advance(s, s.schedule(0.0))
    assert not s.running
    assert s.preemptions == 0
    assert s.pool.free == 2


def test_no_more_run_than_may():
    s = scheduler(running=3)
    for number in range(7):
        s.add(sequence(3, number))
    s.schedule(0.0)
    assert len(s.running) == 3
    assert len(s.waiting) == 4


arrivals = st.lists(
    st.tuples(
        st.integers(1, 30),  # prompt
        st.integers(1, 8),  # budget
        st.integers(0, 2),  # priority
        st.integers(0, 20),  # the step at which it comes
        st.integers(-1, 12),  # steps after which it is taken back; -1: never
    ),
    min_size=1,
    max_size=12,
)


@given(arrivals, st.integers(10, 24), st.integers(16, 40), st.booleans())
def test_every_request_ends_and_every_block_comes_back(requests, blocks, tokens, sharing):
    s = scheduler(blocks=blocks, size=4, tokens=tokens, running=4, sharing=sharing)
    waiting = sorted(enumerate(requests), key=lambda entry: entry[1][3])
    alive, step_number = {}, 0
    while waiting or alive:
        while waiting and waiting[0][1][3] <= step_number:
            number, (length, budget, priority, _, patience) = waiting.pop(0)
            one = sequence(length, number, budget, f"o{number % 3}", priority)
            alive[one.key] = one, patience
            s.add(one)
        for key, (one, patience) in list(alive.items()):
            if patience == 0:
                s.remove(one)
                del alive[key]
            else:
                alive[key] = one, patience - 1
        step = s.schedule(0.0)
        assert sum(work.new for work in step.works) <= tokens
        if alive:
            assert step.works, "somebody waits and nothing is computed"
        for work in step.works:
            assert work.new > 0
            assert len(work.sequence.blocks) * 4 >= work.sequence.computed + work.new
            written = work.sequence.blocks[work.sequence.computed // 4 :]
            assert not any(s.pool.is_shared(block) for block in written)
        advance(s, step)
        alive = {k: v for k, v in alive.items() if v[0].written < v[0].budget}
        step_number += 1
        assert step_number < 2000
    assert s.pool.free == blocks
