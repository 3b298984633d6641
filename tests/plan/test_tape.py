from hypothesis import given
from hypothesis import strategies as st

from hone.plan.tape import Buffer, Span, Tape, chain


def product(tape, x, size, weights=0):
    return tape.op(x, size=size, keeps=(x,), weights=weights)


def test_two_products_by_hand():
    # x (10) -> a (20) -> y (5): both products keep what they read.
    tape = Tape(x := Buffer(10))
    a = product(tape, x, 20, weights=3)
    product(tape, a, 5, weights=7)
    span = tape.span()
    assert span.ahead == 25
    assert span.quiet == 20  # where nothing is kept, x is gone before y is made
    assert span.kept == 25  # a and y; x is kept as it came
    # Backwards, y's gradient is there: a's (20) and the weight's (7); then a and y's are freed,
    # x's gradient and the first weight's come.
    assert span.back == 27
    assert span.freed == -20 - 5 + 10 - 10
    assert span.weights == 10


def test_gradients_of_weights_stay_in_16_bits():
    spans = []
    for keeps in (False, True):
        tape = Tape(x := Buffer(10), keeps)
        product(tape, x, 20, weights=3)
        spans.append(tape.span())
    assert spans[1].freed == spans[0].freed + 3


def test_a_residual_stream_passes_its_gradient_on():
    tape = Tape(x := Buffer(8))
    y = product(tape, x, 8)
    tape.op(x, y, size=8, same=True)
    span = tape.span()
    # One gradient for the sum and both branches; the product's own is added to it.
    assert span.back == 8
    assert span.freed == -8 - 8 + 8


def test_recomputation_keeps_the_input_only():
    tape = Tape(x := Buffer(10))
    product(tape, product(tape, x, 100), 10)
    span = tape.span().recomputed()
    assert span.kept == 10
    assert span.ahead == 100
    assert span.back == 200  # what was computed again, and the gradient of the wide one
    assert span.freed == tape.span().freed + tape.span().kept - 10


def test_selective_recomputation_makes_cheap_results_again():
    tape = Tape(x := Buffer(10))
    normed = tape.op(x, size=10, keeps=(x,), piece="cheap")
    product(tape, normed, 40)
    assert tape.span().kept == 50
    assert tape.span(selective=True).kept == 40
    assert tape.span(selective=True).back >= tape.span().back + 10


sizes = st.lists(st.integers(1, 100), min_size=2, max_size=6)


@given(sizes)
def test_spans_add_up_to_the_whole(found):
    def spans(cut):
        made, x = [], Buffer(found[0])
        tape = Tape(x)
        for position, size in enumerate(found[1:], 1):
            x = product(tape, x, size)
            if cut and position < len(found) - 1:
                made.append(tape.span())
                tape = Tape(x := Buffer(size))
        made.append(tape.span())
        return made

    (whole,), parts = spans(False), chain(spans(True))
    assert isinstance(parts, Span)
    assert (parts.ahead, parts.kept, parts.back, parts.freed) == (
        whole.ahead,
        whole.kept,
        whole.back,
        whole.freed,
    )
