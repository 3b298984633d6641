from hone.engine.collect import Collector
from hone.engine.params import SamplingParams
from hone.engine.request import Delta, TokenLogprobs


def test_what_comes_behind_a_stop_string_in_one_step_is_dropped(tokenizer):
    """Guesses that come true bring several tokens at once."""
    ids = tokenizer.encode("a 6 7 8")
    logprobs = [TokenLogprobs(token, -1.0) for token in ids]
    alone = Collector(tokenizer, SamplingParams(stop=["7"]), [1])
    count = 0
    while not alone.done:
        alone.take(Delta("r", 0, ids[count : count + 1]))
        count += 1
    assert count < len(ids)
    for reason in (None, "length"):
        together = Collector(tokenizer, SamplingParams(stop=["7"], logprobs=0), [1])
        piece = together.take(Delta("r", 0, ids, logprobs, reason))
        assert piece.text == together.text() == alone.text()
        assert piece.tokens == together.tokens() == ids[:count]
        assert piece.logprobs == together.logprobs() == logprobs[:count]
        assert piece.finish_reason == "stop"
        assert piece.stop == (reason is None)  # only then is there anything to take back
        late = together.take(Delta("r", 0, [5], logprobs[:1]))
        assert (late.text, late.tokens, late.logprobs, late.stop) == ("", [], [], False)
        assert together.tokens() == ids[:count]
