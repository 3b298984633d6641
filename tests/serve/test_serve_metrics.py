"""What Prometheus reads."""

import pytest
from prometheus_client.parser import text_string_to_metric_families
from scripted import make_app, scripted
from starlette.testclient import TestClient

# hone's word to whoever charts vLLM: these names, these labels.
NAMES = {
    "vllm:num_requests_running": "gauge",
    "vllm:num_requests_waiting": "gauge",
    "vllm:kv_cache_usage_perc": "gauge",
    "vllm:prefix_cache_hits": "counter",
    "vllm:prefix_cache_queries": "counter",
    "vllm:prompt_tokens": "counter",
    "vllm:generation_tokens": "counter",
    "vllm:time_to_first_token_seconds": "histogram",
    "vllm:inter_token_latency_seconds": "histogram",
    "vllm:e2e_request_latency_seconds": "histogram",
    "vllm:request_success": "counter",
}
CHAT = {"messages": [{"role": "user", "content": "안녕"}]}


def samples(api):
    text = api.get("/metrics").text
    families = list(text_string_to_metric_families(text))
    return families, {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
    }


@pytest.mark.smoke
def test_the_names_are_those_that_people_chart():
    client = scripted()
    api = TestClient(make_app(client))
    api.post("/v1/chat/completions", json=CHAT)
    families, values = samples(api)
    kinds = {family.name: family.type for family in families}
    assert NAMES.items() <= kinds.items()
    model = ("model_name", "tiny")
    assert values["vllm:kv_cache_usage_perc", model] == 0.25
    assert values["vllm:prefix_cache_hits_total", model] == 3
    assert values["vllm:request_success_total", ("finished_reason", "stop"), model] == 1
    assert api.get("/metrics").headers["content-type"].startswith("text/plain")


def test_times_and_tokens_are_counted():
    client = scripted()
    api = TestClient(make_app(client))
    answer = api.post("/v1/chat/completions", json=CHAT | {"n": 2, "max_tokens": 5}).json()
    api.post("/v1/chat/completions", json=CHAT | {"stream": True, "stop": "서울"})
    _, values = samples(api)
    model = ("model_name", "tiny")
    assert answer["usage"]["completion_tokens"] == 10
    assert values["vllm:request_success_total", ("finished_reason", "length"), model] == 2
    assert values["vllm:request_success_total", ("finished_reason", "stop"), model] == 1
    assert values["vllm:time_to_first_token_seconds_count", model] == 2
    assert values["vllm:e2e_request_latency_seconds_count", model] == 2
    assert values["vllm:request_generation_tokens_sum", model] >= 11
    # One between two tokens of an output: 4 and 4 of the first, and those of the second.
    assert values["vllm:inter_token_latency_seconds_count", model] >= 8
    chat = ("handler", "/v1/chat/completions"), ("method", "POST"), ("status", "200")
    assert values["http_requests_total", *chat] == 2


def test_paths_of_strangers_are_counted_as_one():
    api = TestClient(make_app(scripted()))
    for number in range(20):
        api.request("BREW", f"/coffee/{number}")
    _, values = samples(api)
    strange = [name for name in values if name[0] == "http_requests_total" and "other" in name[1]]
    assert strange == [
        ("http_requests_total", ("handler", "other"), ("method", "other"), ("status", "404"))
    ]


def test_there_are_metrics_while_the_model_loads():
    client = scripted(state="loading")
    client.stats = lambda: None
    api = TestClient(make_app(client))
    answer = api.get("/metrics")
    assert answer.status_code == 200
    assert "vllm:num_requests_running{" not in answer.text


def test_two_apps_do_not_share_their_counts():
    first, second = TestClient(make_app(scripted())), TestClient(make_app(scripted()))
    first.post("/v1/chat/completions", json=CHAT)
    assert 'finished_reason="stop"' in first.get("/metrics").text
    assert 'finished_reason="stop"' not in second.get("/metrics").text
