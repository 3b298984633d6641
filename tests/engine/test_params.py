import math

import pytest

from hone.core.errors import RequestError
from hone.engine.params import SamplingParams


@pytest.mark.smoke
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_tokens", 0),
        ("max_tokens", 2.5),
        ("min_tokens", -1),
        ("min_tokens", 300),
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("temperature", "hot"),
        ("top_k", -2),
        ("top_k", True),
        ("top_p", 0.0),
        ("top_p", 1.01),
        ("min_p", -0.5),
        ("min_p", 2),
        ("repetition_penalty", 0),
        ("presence_penalty", 2.5),
        ("frequency_penalty", -2.5),
        ("logit_bias", {3: 101}),
        ("logit_bias", {-1: 1}),
        ("logprobs", 21),
        ("n", 0),
        ("stop", [""]),
        ("stop", 3),
        ("stop_token_ids", ["a"]),
        ("seed", -1),
        ("seed", 1.5),
    ],
)
def test_a_wrong_value_is_refused_with_its_name(field, value):
    with pytest.raises(RequestError, match=field):
        SamplingParams(**{field: value})


@pytest.mark.smoke
def test_one_stop_string_is_a_list_of_one():
    assert SamplingParams(stop="ab").stops == ("ab",)
    assert SamplingParams(stop=["a", "b"]).stops == ("a", "b")
    assert SamplingParams().greedy
