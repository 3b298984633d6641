"""What a sequence makes of the tokens that are chosen for it: which it takes, and why it ends."""

from collections.abc import Iterator

from hone.engine.grammar import Matcher
from hone.engine.request import Delta, FinishReason
from hone.engine.runner import Chosen
from hone.engine.sequence import Draft, Sequence


def take(entry: Chosen, matcher: Matcher | None, last: int | None) -> tuple[Delta, list[int]]:
    """The tokens that ``entry`` brings its sequence, and which nodes of the draft they confirm.

    Args:
        matcher: of the sequence's grammar; it follows.
        last: the token that ends answers which have reached their greatest length.
    """
    sequence, nodes = entry.sequence, list[int]()
    delta = Delta(
        sequence.request.id,
        sequence.index,
        cached=max(0, sequence.cached) if not sequence.written else 0,
    )
    place = 0
    while True:
        token, logprobs = entry.tokens[place], entry.logprobs[place]
        if token < 0:
            _explain(delta, matcher)
            return delta, nodes
        sequence.tokens.append(token)
        delta.tokens.append(token)
        if logprobs is not None:
            delta.logprobs.append(logprobs)
        delta.finish_reason = _reason(sequence, token, matcher, last)
        draft = sequence.draft
        if delta.finish_reason is not None or draft is None:
            return delta, nodes
        found = (node for node in _children(draft, place - 1) if draft.tokens[node] == token)
        if (node := next(found, None)) is None:
            return delta, nodes
        nodes.append(node)
        place = node + 1


def lawful(draft: Draft, matcher: Matcher) -> Draft:
    """As much of a draft as the grammar allows; of a tree the first branch that it does."""
    tokens: list[int] = []
    node: int | None = -1
    while node is not None:
        children = _children(draft, node)
        node = next((child for child in children if matcher.accept(draft.tokens[child])), None)
        if node is not None:
            tokens.append(draft.tokens[node])
    matcher.rollback(len(tokens))
    return Draft(tokens)


def _children(draft: Draft, parent: int) -> Iterator[int]:
    """The guesses after ``parent`` (-1 for what is known)."""
    if draft.parents is None:
        return iter(range(parent + 1, min(parent + 2, len(draft.tokens))))
    return (node for node, above in enumerate(draft.parents) if above == parent)


def _reason(
    sequence: Sequence, token: int, matcher: Matcher | None, last: int | None
) -> FinishReason | None:
    """Why a sequence ends with ``token``, if it does."""
    if matcher is not None:
        matcher.accept(token)
    full = sequence.written >= sequence.budget
    if token in sequence.ends:
        forced = full and token == last and not sequence.request.params.ignore_eos
        return "length" if forced else "stop"
    if matcher is not None and matcher.ended:
        return "stop"
    return "length" if full else None


def _explain(delta: Delta, matcher: Matcher | None) -> None:
    """No token can follow: the grammar is at its end, or the scores are not numbers."""
    if matcher is not None and matcher.may_end:
        delta.finish_reason = "stop"
        return
    delta.finish_reason = "error"
    if matcher is not None and matcher.failed:
        delta.error = f"The grammar cannot be followed any further: {matcher.failed}."
    else:
        delta.error = (
            "The model's scores are not numbers (NaN or infinity): its weights are damaged, or "
            'too large for their dtype. Load it with dtype="float32", or save it again.'
        )
