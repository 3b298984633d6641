from itertools import count

from hone.engine.request import Request
from hone.engine.sequence import Sequence
from hone.engine.waiting import WaitingLine

_keys = count()


def sequence(owner="", priority=0, since=0.0):
    key = next(_keys)
    request = Request(f"r{key}", (1,), owner=owner, priority=priority)
    return Sequence(key, request, 0, key, since, [1], 1)


def line_of(*sequences):
    line = WaitingLine()
    for one in sequences:
        line.arrive(one)
        line.push(one)
    return line


def taken(line, tokens=10):
    """Everybody in turn, each of whom is served."""
    order = []
    while (one := line.first()) is not None:
        assert line.pop() is one
        line.served(one.request.owner, tokens)
        order.append(one)
    return order


def test_one_owner_is_served_in_the_order_of_arrival():
    three = [sequence() for _ in range(3)]
    assert taken(line_of(*three[::-1])) == three


def test_the_lower_priority_number_goes_first():
    low, high = sequence(priority=5), sequence(priority=-1)
    assert taken(line_of(low, high)) == [high, low]


def test_owners_take_turns_however_many_requests_one_has():
    greedy = [sequence("greedy") for _ in range(4)]
    modest = [sequence("modest") for _ in range(2)]
    order = [one.request.owner for one in taken(line_of(*greedy, *modest))]
    assert order == ["greedy", "modest", "greedy", "modest", "greedy", "greedy"]


def test_shares_are_of_tokens_and_not_of_requests():
    long, short = [sequence("long") for _ in range(2)], [sequence("short") for _ in range(4)]
    line = line_of(*long, *short)
    order = []
    while line.first() is not None:
        one = line.pop()
        line.served(one.request.owner, 30 if one.request.owner == "long" else 10)
        order.append(one.request.owner)
    assert order == ["long", "short", "short", "short", "long", "short"]


def test_nobody_saves_up_turns_while_away():
    line = line_of(*[sequence("there") for _ in range(4)])
    for _ in range(3):
        line.served(line.pop().request.owner, 100)
    late = [sequence("late") for _ in range(3)]
    for one in late:
        line.arrive(one)
        line.push(one)
    order = [one.request.owner for one in taken(line, 100)]
    assert order.index("there") <= 1


def test_who_gives_up_waiting_is_passed_over():
    one, two = sequence(), sequence()
    line = line_of(one, two)
    line.remove(one)
    line.leave(one)
    assert len(line) == 1
    assert taken(line) == [two]
    assert len(line) == 0


def test_the_oldest_is_the_one_that_came_first():
    line = line_of(sequence(since=5.0), sequence("b", since=3.0))
    assert line.oldest() == 3.0
    assert WaitingLine().oldest() == float("inf")
