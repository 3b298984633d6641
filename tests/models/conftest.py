import pytest
import torch
from small_llama import SHAPES, make_model

from hone.models import CausalLM


@pytest.fixture(params=SHAPES)
def model(request) -> CausalLM:
    """A small random model in float32, of one of the shapes."""
    return make_model(**SHAPES[request.param])


@pytest.fixture(autouse=True, scope="package")
def one_thread():
    """Tensors here are tiny: waiting for a second thread takes longer than the work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
