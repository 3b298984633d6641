import pytest
from small_llama import SHAPES, make_model

from hone.models import LlamaForCausalLM


@pytest.fixture(params=SHAPES)
def model(request) -> LlamaForCausalLM:
    """A small random model in float32, of one of the shapes."""
    return make_model(**SHAPES[request.param])
