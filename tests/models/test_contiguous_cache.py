import pytest
import torch
from small_llama import make_config

from hone.core.errors import RequestError
from hone.models import ContiguousCache


def filled(cache, layer, value, count):
    block = torch.full((2, 2, count, 10), float(value))
    return cache.update(layer, block, -block)


@pytest.mark.smoke
def test_positions_are_appended_layer_by_layer():
    cache = ContiguousCache(make_config(), batch=2, capacity=4)
    for layer in range(3):
        keys, values = filled(cache, layer, layer + 1, 3)
        assert keys.shape == (2, 2, 3, 10)
        assert (keys == layer + 1).all()
        assert (values == -layer - 1).all()
    cache.advance(3)
    keys, _ = filled(cache, 1, 9, 1)
    assert keys[0, 0, :, 0].tolist() == [2, 2, 2, 9]
    assert (cache.length, cache.capacity) == (3, 4)


def test_a_full_cache_says_so():
    cache = ContiguousCache(make_config(), batch=2, capacity=4)
    with pytest.raises(RequestError, match="holds 4 positions and 5 are needed"):
        filled(cache, 0, 1, 5)


def test_forgetting_and_leaving():
    cache = ContiguousCache(make_config(), batch=2, capacity=4)
    block = torch.arange(2.0).view(2, 1, 1, 1).expand(2, 2, 3, 10)
    cache.update(0, block, block)
    cache.advance(3)
    cache.truncate(1)
    assert cache.length == 1
    cache.select_rows(torch.tensor([1]))
    keys, _ = cache.update(0, torch.full((1, 2, 1, 10), 7.0), torch.zeros(1, 2, 1, 10))
    assert keys[0, 0, :, 0].tolist() == [1, 7]
