"""What generation takes: weights, keys and values, states, and the passes; and how fast it is.

Decoding reads all weights and the cache for one token of every request (Pope et al. 2022, section
2), so that it waits for memory until the batch is large: with B requests and P weights of b bytes,
``2·P·B / FLOPs = P·b / bandwidth``.
"""

import math
from dataclasses import dataclass

from hone.models.config import ModelConfig
from hone.plan.devices import Device
from hone.plan.flops import active_weights, attention_flops
from hone.plan.jobs import ServeJob
from hone.plan.states import int8_bytes, nf4_bytes
from hone.plan.targets import is_quantized
from hone.plan.weights import output_rows, weights_of

_BYTES = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0, "int8": 1.0, "nf4": 0.5}


@dataclass(frozen=True, slots=True)
class ServingNeeds:
    """Of one device.

    Attributes:
        parts: bytes, by name.
        cache_per_token: of one token of one request, on all devices.
        state_per_request: of one request at any length.
        requests: how many fit with their whole context.
        context: how long one can be.
        decode: seconds of one token of every request.
        prefill: seconds of one whole context.
        turning_point: requests from which decoding waits for arithmetic, no more for memory.
        flops: operations of one token, attention to half of the context included.
    """

    parts: dict[str, int]
    cache_per_token: int
    state_per_request: int
    requests: int
    context: int | None
    decode: float
    prefill: float
    turning_point: float
    flops: float


def serving_needs(
    config: ModelConfig, job: ServeJob, device: Device, efficiency: float
) -> ServingNeeds:
    """Those of ``job``.

    Args:
        efficiency: the share of the arithmetic rate, and of the bandwidth, that is reached.
    """
    weights, constants = weight_bytes(config, job.weights)
    per_token = cache_bytes(config, job.cache)
    state = state_bytes(config, job.weights)
    prompt = min(job.prefill or job.context, job.context * job.requests)
    working = pass_bytes(config, job, prompt)
    shared = job.tensor
    logits = 4 * output_rows(config)
    parts = {
        "weights": _part(weights, shared),
        "quantization constants": _part(constants, shared),
        "keys and values": _part(per_token * job.context * job.requests, shared),
        "states": _part(state * job.requests, shared),
        "working memory": _part(working, shared),
        "logits": _part(logits * job.requests, shared),
    }
    room = device.usable * shared - weights - constants
    each = per_token * job.context + state + logits
    longest = None
    if per_token:
        # Without a limit, a prompt is computed at once: each of its tokens takes working memory.
        token = per_token + (0 if job.prefill else pass_bytes(config, job, 1))
        passing = pass_bytes(config, job, job.prefill)
        longest = max(0, (room - state - logits - passing) // token)
    active = active_weights(config)
    flops = 2.0 * active + attention_flops(config, job.context / 2)
    sixteen = job.weights != "float32"
    rate = device.flops(sixteen) * efficiency * shared
    bandwidth = device.bandwidth * efficiency * shared
    # Of experts, those that any request takes are read.
    read = weights + constants
    if config.experts is not None:
        read = min(read, round(read * _read_share(config, active, job.requests)))
    moved = read + job.requests * (per_token * job.context / 2 + state)
    return ServingNeeds(
        {name: size for name, size in parts.items() if size},
        per_token,
        state,
        max(0, (room - working) // each) if each else 0,
        longest,
        max(moved / bandwidth, job.requests * flops / rate),
        max(job.context * flops / rate, read / bandwidth),
        turning_point(device, job.weights),
        flops,
    )


def turning_point(device: Device, weights: str) -> float:
    """Requests at which decoding turns from memory-bound to compute-bound; see the module."""
    return _BYTES[weights] * device.flops(weights != "float32") / (2 * device.bandwidth)


def weight_bytes(config: ModelConfig, weights: str) -> tuple[int, int]:
    """Bytes of all weights, and of the constants of quantization.

    Int8 and NF4 are for linear layers but those that score classes; the rest is in 16 bits.
    """
    total = constants = 0
    for weight in weights_of(config):
        linear = is_quantized(config, weight)
        if weights == "nf4" and linear:
            codes, own = nf4_bytes(weight.count)
        elif weights == "int8" and linear:
            codes, own = int8_bytes(weight.shape[0], weight.shape[1])
        else:
            codes, own = (4 if weights == "float32" else 2) * weight.count, 0
        total, constants = total + codes, constants + own
    return total, constants


def cache_bytes(config: ModelConfig, cache: str) -> int:
    """Keys and values of one token in all layers; of an encoder-decoder those of a token of the
    answer and of one of the source. A sliding window spares nothing: the cache keeps all.
    """
    if config.mixer != "attention" or not config.causal:
        return 0
    numbers = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    return int(_BYTES[cache] * numbers) * (2 if config.encoder is not None else 1)


def state_bytes(config: ModelConfig, weights: str) -> int:
    """What a state space remembers of a request: float32 states, and the convolution's inputs."""
    space = config.state_space
    if space is None or config.mixer == "attention":
        return 0
    groups = 2 * space.groups * space.state if config.mixer == "mamba2" else 0
    convolved = (space.inner + groups) * (space.width - 1)
    number = 4 if weights == "float32" else 2
    return config.num_hidden_layers * (4 * space.inner * space.state + number * convolved)


def pass_bytes(config: ModelConfig, job: ServeJob, tokens: int) -> int:
    """Working memory of a pass over so many tokens: the widest layer with what it reads."""
    number = 4 if job.weights == "float32" else 2
    size = config.hidden_size
    if config.mixer == "attention":
        joint = (config.num_attention_heads + 2 * config.num_key_value_heads) * config.head_dim
        attending = 2 * joint + config.num_attention_heads * config.head_dim
        mixing = (3 if config.gated else 2) * config.intermediate_size
        if config.experts is not None:
            mixing = max(mixing, 3 * config.experts.size * config.experts.per_token)
        width = max(attending, mixing)
    else:
        space = config.state_space
        assert space is not None
        width = 6 * space.inner
    return tokens * number * (3 * size + width)


def _read_share(config: ModelConfig, active: int, requests: int) -> float:
    """The share of all weights that decoding of so many requests reads."""
    experts = config.experts
    assert experts is not None
    every = sum(w.count for w in weights_of(config) if w.kind == "experts")
    total = sum(w.count for w in weights_of(config))
    # A request's choice misses an expert with the probability 1 - k / n.
    hit = 1 - (1 - experts.per_token / experts.count) ** requests
    return (total - every + hit * every) / total


def _part(size: int, devices: int) -> int:
    return math.ceil(size / devices)
