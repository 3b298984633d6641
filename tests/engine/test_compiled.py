import logging
import os

import pytest
import torch

import hone
from hone.core.errors import ConfigError
from hone.engine import compiled
from hone.engine.compiled import CompiledDecoder, buckets, compile_decoder
from hone.engine.compiled_blocks import BlockCompiler, kept_on_disk
from hone.engine.engine import Engine
from hone.engine.options import EngineOptions
from hone.engine.paged import PagedCache, Row
from hone.engine.request import Request
from hone.models import CausalLM, ModelConfig
from hone.models.positions import Alibi
from hone.quant import Int8Linear

BODIES = {
    "llama": {},
    "one key head, window in a layer": {
        "num_key_value_heads": 1,
        "sliding_window": 5,
        "sliding_layers": (1,),
    },
    "parallel, biases, no gate": {
        "block": "parallel",
        "norm": "layer",
        "attention_bias": True,
        "mlp_bias": True,
        "gated": False,
        "activation": "gelu",
    },
}
# Compiled in every run; the others are slow.
_QUICK = "one key head, window in a layer"


def make(**values) -> CausalLM:
    config = ModelConfig(
        **{
            "vocab_size": 300,
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 128,
            "tie_word_embeddings": True,
            "initializer_range": 0.2,
            "model_type": "hone",
        }
        | values
    )
    model = CausalLM(config, torch.float32)
    model.initialise(seed=1)
    for name, parameter in model.named_parameters():
        if name.endswith(".bias"):
            torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(3))
    return model.eval()


def tokens(engine: Engine, prompts: int = 3) -> dict[str, list[int]]:
    for number in range(prompts):
        prompt = tuple(range(3 + number, 12 + 2 * number))
        engine.add(Request(str(number), prompt, hone.SamplingParams(max_tokens=9)))
    found: dict[str, list[int]] = {}
    while engine.busy:
        for delta in engine.step():
            found.setdefault(delta.request, []).extend(delta.tokens)
    return found


@pytest.fixture
def kept(tmp_path_factory, monkeypatch):
    """What is compiled is kept for this run of the tests only."""
    folder = tmp_path_factory.getbasetemp() / "compiled"
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(folder))


def check(model: CausalLM, counts: tuple[int, ...]) -> None:
    """Hidden states and what the cache keeps are those of a plain pass."""
    caches = [PagedCache(model.config, 12, 16, torch.float32, exact=False) for _ in range(2)]
    decoder = CompiledDecoder(model.decoder, caches[1], counts)
    decoder.choose(measured=False)
    assert decoder.used == list(counts)
    generator = torch.Generator().manual_seed(0)
    with torch.inference_mode():
        # Beyond the window, so that it matters which layer has one.
        for held, rows in enumerate([counts[-1]] * 7 + [1, counts[-1] - 1 or 1]):
            ids_N = torch.randint(0, 300, (rows,), generator=generator)
            passes = [Row([1 + row], held, 1) for row in range(rows)]
            for cache in caches:
                cache.begin(passes)
            wanted = model.decoder(ids_N, caches[0].positions(), caches[0])
            found = decoder(ids_N, caches[1].positions())
            torch.testing.assert_close(found, wanted, atol=2e-4, rtol=2e-4)
            assert decoder(torch.zeros(counts[-1] + 1, dtype=torch.int64), ids_N) is None


def test_compiled_blocks_compute_what_plain_ones_do(kept):
    check(make(**BODIES[_QUICK]), (2,))


@pytest.mark.slow
@pytest.mark.parametrize("body", BODIES)
def test_every_wiring_can_be_compiled(body, kept):
    model = make(**BODIES[body])
    check(model, (1, 2, 4))
    plain = tokens(Engine(model, None, options=EngineOptions(max_running=3)))
    for choice in ("on", "auto"):
        engine = Engine(model, None, options=EngineOptions(max_running=3, compile=choice))
        if choice == "on":
            assert engine._runner.compiled.used == [1, 2, 4]
        assert tokens(engine) == plain


@pytest.mark.slow
def test_weights_may_be_written_to(kept):
    model = make()
    engine = Engine(model, None, options=EngineOptions(max_running=1, compile="on"))
    before = tokens(engine, 1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.neg_()
    engine.forget_prefixes()
    after = tokens(engine, 1)
    assert after != before
    assert after == tokens(Engine(model, None, options=EngineOptions(max_running=1)), 1)


@pytest.mark.smoke
def test_buckets_reach_to_the_largest_pass():
    assert buckets(1) == (1,)
    assert buckets(2) == (1, 2)
    assert buckets(33) == (1, 2, 4, 8, 16, 32, 64)
    assert buckets(64) == (1, 2, 4, 8, 16, 32, 64)


class _Timed(CompiledDecoder):
    """Measures nothing: plain seconds and compiled ones by bucket."""

    TIMES = {1: (1.0, 1.2), 2: (1.4, 1.3), 4: (2.0, 1.6), 8: (2.4, 2.39)}

    def __init__(self):
        self._blocks, self._bucket_of = dict.fromkeys(self.TIMES), [0]

    def _seconds(self, rows):
        return self.TIMES[rows]


def test_a_bucket_is_used_for_the_passes_that_it_makes_faster():
    decoder = _Timed()
    decoder.choose(measured=True)
    # Three rows take about 1.7 plain, and 1.6 in a bucket of four; 8 of 8 gain too little.
    assert decoder._bucket_of == [0, 0, 2, 4, 4, 0, 0, 0, 0]
    assert decoder.used == [2, 4]
    decoder = _Timed()
    decoder.choose(measured=False)
    assert decoder._bucket_of == [0, 1, 2, 4, 4, 8, 8, 8, 8]


def test_code_is_kept_among_the_users_files(monkeypatch, tmp_path):
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    name = "TORCHINDUCTOR_CACHE_DIR"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for unset in (None, default_cache_dir()):  # as the compiler itself sets it
        monkeypatch.delenv(name, raising=False)
        if unset is not None:
            monkeypatch.setenv(name, unset)
        with kept_on_disk():
            assert os.environ[name] == str(tmp_path / "hone" / "compiled")
        assert os.environ.get(name) == unset
    monkeypatch.setenv(name, "elsewhere")
    with kept_on_disk():
        assert os.environ[name] == "elsewhere"
    assert os.environ[name] == "elsewhere"


def test_without_a_compiler_everything_runs_as_it_is(monkeypatch, caplog):
    def broken(*args, **kwargs):
        raise RuntimeError("no C++ compiler\nwas found")

    monkeypatch.setattr(torch._inductor, "compile", broken)
    model = make()
    engine = Engine(model, None, options=EngineOptions(max_running=2, compile="on"))
    assert engine._runner.compiled is None
    assert [text for name, _, text in caplog.record_tuples if name == "hone.engine"] == [
        "The decode step cannot be compiled (no C++ compiler); it runs as it is."
    ]
    assert tokens(engine) == tokens(Engine(model, None, options=EngineOptions(max_running=2)))


def test_code_that_computes_something_else_is_not_used(monkeypatch, caplog):
    wrong = type("Wrong", (), {"__call__": lambda self, x_NE, attend: x_NE * 1.5})()
    monkeypatch.setattr(BlockCompiler, "__call__", lambda self, rows: wrong)
    engine = Engine(make(), None, options=EngineOptions(max_running=2, compile="auto"))
    assert engine._runner.compiled is None
    assert "computes something else" in caplog.text


@pytest.mark.parametrize(
    ("values", "exact", "reason"),
    [
        ({}, True, "is exact"),
        ({"mixer": "mamba"}, False, "states"),
        ({"experts": hone.models.Experts(4, 2, 32)}, False, "experts"),
    ],
)
def test_what_is_not_compiled_is_said(values, exact, reason, caplog, monkeypatch):
    if "mixer" in values:
        values = values | {"state_space": hone.models.StateSpace(96, 8, rank=3)}
    model = make(**values)
    cache = PagedCache(model.config, 4, 16, torch.float32, exact=exact, slots=2)
    with caplog.at_level(logging.INFO):
        assert compile_decoder(model, cache, "auto", 2) is None
        assert compile_decoder(model, cache, "on", 2) is None
    assert [record.levelno for record in caplog.records] == [logging.INFO, logging.WARNING]
    assert all(reason in record.getMessage() for record in caplog.records)


def test_layers_of_another_kind_are_not_compiled(caplog):
    model = make()
    mlp = model.decoder.layers[1].mlp
    mlp.down_proj = Int8Linear(96, 64, bias=False)
    cache = PagedCache(model.config, 4, 16, torch.float32, exact=False)
    assert compile_decoder(model, cache, "on", 2) is None
    assert "quantized or adapted" in caplog.text


def test_the_choice_is_one_of_three():
    with pytest.raises(ConfigError, match="auto, on, off"):
        EngineOptions(compile="yes")
    assert EngineOptions().compile == "off"


@pytest.mark.gpu
@pytest.mark.parametrize("body", [*BODIES, "alibi"])
def test_recorded_blocks_compute_what_plain_ones_do(body):
    model = make(**BODIES.get(body, {"positions": Alibi()})).cuda()
    plain = tokens(Engine(model, None, options=EngineOptions(max_running=3)))
    engine = Engine(model, None, options=EngineOptions(max_running=3, compile="on"))
    assert engine._runner.compiled.used == [1, 2, 4]
    assert tokens(engine) == plain


def test_recordings_end_and_begin_at_every_attention(monkeypatch):
    """The order of recording and of repeating, with recordings that only note that they are."""
    from hone.engine import cuda_graphs

    model, seen = make(), []

    class Graph:
        def __init__(self):
            self.number = sum(event == "begin" for event, _ in seen)

        def capture_begin(self, pool, capture_error_mode):
            seen.append(("begin", self.number))

        def capture_end(self):
            seen.append(("end", self.number))

        def replay(self):
            seen.append(("replay", self.number))

    class Stream:
        def __init__(self, device):
            pass

        def wait_stream(self, other):
            pass

        def __enter__(self):
            pass

        def __exit__(self, *error):
            pass

    for name, stand_in in {
        "CUDAGraph": Graph,
        "Stream": Stream,
        "current_stream": Stream,
        "stream": lambda stream: stream,
        "synchronize": lambda device: None,
        "graph_pool_handle": lambda: None,
    }.items():
        monkeypatch.setattr(cuda_graphs.torch.cuda, name, stand_in)
    x_NE = torch.randn(2, 64)
    with torch.inference_mode():
        blocks = cuda_graphs.GraphedBlocks(list(model.decoder.layers), x_NE, 16)
        assert seen == [(what, number) for number in range(4) for what in ("begin", "end")]
        seen.clear()

        def attend(layer, qkv_NC):
            seen.append(("attend", layer))
            assert qkv_NC.shape == (2, 8 * 16)
            return qkv_NC.new_zeros(2, 64)

        assert blocks(x_NE, attend).shape == (2, 64)
    assert seen == [
        *((what, layer) for layer in range(3) for what in ("replay", "attend")),
        ("replay", 3),
    ]


def test_the_largest_pass_is_bounded_by_the_options(monkeypatch):
    asked = []
    monkeypatch.setattr(compiled, "compile_decoder", lambda *args: asked.append(args[2:]))
    Engine(make(), None, options=EngineOptions(max_running=5, compile="auto"))
    Engine(make(), None, options=EngineOptions(max_running=5))
    assert asked == [("auto", 5)]
