import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from hone.kernels.experts import (
    expert_mix,
    expert_mix_reference,
    load_balancing_loss,
    route,
    router_z_loss,
)


def problem(tokens, experts, per_token, hidden, inner, dtype=torch.float32, seed=0, used=None):
    """Random arguments of expert_mix; only the first ``used`` experts are ever chosen."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator)

    logits = draw(tokens, experts)
    logits[:, used or experts :] = -1e9
    weights, chosen = route(logits, per_token, normalise=True)
    x = draw(tokens, hidden).to(dtype).requires_grad_()
    gate_up = (draw(experts, 2 * inner, hidden) / hidden**0.5).to(dtype).requires_grad_()
    down = (draw(experts, hidden, inner) / inner**0.5).to(dtype).requires_grad_()
    return x, weights.requires_grad_(), chosen, gate_up, down


def compare(arguments, activation=functional.silu, atol=1e-5, rtol=1e-5):
    """Values and all gradients of the fast form against the reference, with and without grad."""
    wanted = [tensor for tensor in arguments if tensor.requires_grad]
    fast = expert_mix(*arguments, activation)
    slow = expert_mix_reference(*arguments, activation)
    assert fast.dtype == slow.dtype == arguments[0].dtype
    torch.testing.assert_close(fast, slow, atol=atol, rtol=rtol)
    with torch.no_grad():
        torch.testing.assert_close(expert_mix(*arguments, activation), slow, atol=atol, rtol=rtol)
    if not wanted:
        return
    pull = torch.randn(slow.shape, generator=torch.Generator().manual_seed(9)).to(slow.dtype)
    ours = torch.autograd.grad(fast, wanted, pull)
    theirs = torch.autograd.grad(slow, wanted, pull)
    for our, their in zip(ours, theirs, strict=True):
        assert our.dtype == their.dtype
        torch.testing.assert_close(our, their, atol=4 * atol, rtol=4 * rtol)


@pytest.mark.smoke
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_fast_mixture_equals_the_reference_with_all_gradients(data):
    experts = data.draw(st.integers(1, 7), "experts")
    per_token = data.draw(st.integers(1, min(3, experts)), "per token")
    compare(
        problem(
            tokens=data.draw(st.integers(0, 20), "tokens"),
            experts=experts,
            per_token=per_token,
            hidden=data.draw(st.integers(1, 18), "hidden"),
            inner=data.draw(st.integers(1, 18), "inner"),
            seed=data.draw(st.integers(0, 1000), "seed"),
            used=data.draw(st.integers(per_token, experts), "used"),
        )
    )


@pytest.mark.parametrize("tokens", [1, 33])
def test_bfloat16(tokens):
    compare(problem(tokens, 5, 2, 16, 24, torch.bfloat16), atol=2e-2, rtol=2e-2)


def test_gradients_are_those_of_finite_differences():
    arguments = [
        tensor.detach().double().requires_grad_() if tensor.is_floating_point() else tensor
        for tensor in problem(4, 3, 2, 3, 2)
    ]
    assert torch.autograd.gradcheck(expert_mix, arguments)


@pytest.mark.parametrize(
    "activation",
    [functional.gelu, functional.relu, torch.sigmoid, lambda gate: gate],
    ids=["gelu", "relu", "sigmoid", "identity"],
)
def test_any_activation_of_the_gate(activation):
    compare(problem(9, 4, 2, 8, 6), activation)


@pytest.mark.parametrize("frozen", [{0}, {1}, {3}, {4}, {3, 4}, {0, 1}, {0, 3}, {0, 1, 3, 4}])
def test_frozen_arguments_change_no_other_gradient(frozen):
    arguments = problem(9, 4, 2, 8, 6)
    for index in frozen:
        arguments[index].requires_grad_(False)
    compare(arguments)


def test_an_expert_without_tokens_is_not_read_and_gets_no_gradient():
    x, weights, chosen, gate_up, down = problem(6, 5, 2, 8, 4, used=3)
    with torch.no_grad():
        gate_up[3:] = float("nan")
        down[3:] = float("nan")
    y = expert_mix(x, weights, chosen, gate_up, down)
    assert torch.isfinite(y).all()
    gradients = torch.autograd.grad(y.sum(), [x, weights, gate_up, down])
    assert all(torch.isfinite(gradient).all() for gradient in gradients)
    for gradient in gradients[2:]:
        assert (gradient[3:] == 0).all()
        assert (gradient[:3] != 0).any()


def test_a_token_does_not_depend_on_its_neighbours():
    x, weights, chosen, gate_up, down = problem(12, 4, 2, 8, 6)
    with torch.no_grad():
        together = expert_mix(x, weights, chosen, gate_up, down)
        for row in range(12):
            alone = expert_mix(
                x[row : row + 1], weights[row : row + 1], chosen[row : row + 1], gate_up, down
            )
            torch.testing.assert_close(alone[0], together[row])
        x[5], x[7, 0] = float("nan"), float("inf")
        spoilt = expert_mix(x, weights, chosen, gate_up, down)
    assert torch.isfinite(spoilt).all(-1).tolist() == [row not in (5, 7) for row in range(12)]
    torch.testing.assert_close(spoilt[:5], together[:5])


def test_the_order_of_a_tokens_experts_does_not_matter():
    x, weights, chosen, gate_up, down = problem(12, 4, 3, 8, 6)
    turned = expert_mix(x, weights.flip(1), chosen.flip(1), gate_up, down)
    torch.testing.assert_close(turned, expert_mix(x, weights, chosen, gate_up, down))


def test_same_bits_every_time():
    arguments = problem(50, 6, 3, 24, 16)
    wanted = [tensor for tensor in arguments if tensor.requires_grad]

    def once():
        y = expert_mix(*arguments)
        return [y, *torch.autograd.grad(y.square().sum(), wanted)]

    for first, second in zip(once(), once(), strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize("normalise", [False, True])
def test_routing(normalise):
    logits = torch.tensor([[0.0, 2.0, 1.0, -3.0]]).log_softmax(-1)
    weights, experts = route(logits, 2, normalise)
    assert experts.tolist() == [[1, 2]]
    expected = logits.exp()[:, [1, 2]]
    torch.testing.assert_close(weights, expected / expected.sum() if normalise else expected)


def test_routing_is_in_float32_whatever_the_logits_are():
    logits = torch.tensor([[8.0, 8.0625, 0.0]], dtype=torch.bfloat16)
    weights, experts = route(logits, 2, normalise=True)
    assert weights.dtype == torch.float32
    assert experts.tolist() == [[1, 0]]
    torch.testing.assert_close(weights, torch.tensor([[0.0625, 0.0]]).softmax(-1))
    assert route(logits, 2, True, torch.bfloat16)[0].dtype == torch.bfloat16


def test_ties_still_choose_different_experts():
    _, experts = route(torch.zeros(5, 6), 4, normalise=True)
    assert all(len(set(row)) == 4 for row in experts.tolist())


def test_even_routing_has_a_balancing_loss_of_k_and_collapse_of_x():
    even = torch.eye(4).repeat(3, 1) * 20
    assert load_balancing_loss([even], 1).item() == pytest.approx(1.0, abs=1e-5)
    collapsed = torch.tensor([[20.0, 0.0, 0.0, 0.0]]).repeat(8, 1)
    assert load_balancing_loss([collapsed], 1).item() == pytest.approx(4.0, abs=1e-5)


def test_router_losses_leave_masked_tokens_out():
    torch.manual_seed(4)
    layers = [torch.randn(10, 5) for _ in range(3)]
    mask = torch.tensor([1, 1, 0, 1, 0, 1, 1, 1, 0, 1], dtype=torch.bool)
    kept = [layer[mask] for layer in layers]
    torch.testing.assert_close(load_balancing_loss(layers, 2, mask), load_balancing_loss(kept, 2))
    torch.testing.assert_close(router_z_loss(layers, mask), router_z_loss(kept))
    nothing = torch.zeros(10, dtype=torch.bool)
    assert load_balancing_loss(layers, 2, nothing) == 0
    assert router_z_loss(layers, nothing) == 0


def test_router_z_loss_is_the_mean_squared_log_of_the_sum():
    logits = torch.tensor([[0.0, 0.0], [1.0, 1.0]], dtype=torch.bfloat16)
    log_2 = torch.tensor(2.0).log()
    torch.testing.assert_close(router_z_loss([logits]), (log_2**2 + (1 + log_2) ** 2) / 2)
    assert torch.isfinite(router_z_loss([torch.full((2, 3), 1e4)]))


# Against transformers.


def peer_block(name, seed=0, **changes):
    """A transformers block with random weights, and the three weights of its routed experts."""
    import importlib

    import transformers

    kind = {
        "mixtral": "Mixtral",
        "qwen2_moe": "Qwen2Moe",
        "qwen3_moe": "Qwen3Moe",
        "olmoe": "Olmoe",
    }[name]
    sizes = {"num_local_experts": 6} if name == "mixtral" else {"num_experts": 6}
    if name != "olmoe":
        sizes["moe_intermediate_size"] = 20
    if name == "qwen2_moe":
        sizes["shared_expert_intermediate_size"] = 12
    config = getattr(transformers, f"{kind}Config")(
        hidden_size=16, intermediate_size=20, num_experts_per_tok=2, **sizes, **changes
    )
    config._experts_implementation = "eager"
    module = importlib.import_module(f"transformers.models.{name}.modeling_{name}")
    torch.manual_seed(seed)
    block = getattr(module, f"{kind}SparseMoeBlock")(config)
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return block


def our_block(block, x_NE, normalise, dtype):
    """The same block with this file's functions."""
    weights, experts = route(functional.linear(x_NE, block.gate.weight), 2, normalise, dtype)
    y = expert_mix(x_NE, weights, experts, block.experts.gate_up_proj, block.experts.down_proj)
    if hasattr(block, "shared_expert"):
        opening = torch.sigmoid(block.shared_expert_gate(x_NE))
        y = y + opening * block.shared_expert(x_NE)
    return y


FAMILIES = [
    ("mixtral", True),
    ("qwen2_moe", False),
    ("qwen2_moe", True),
    ("qwen3_moe", False),
    ("qwen3_moe", True),
    ("olmoe", False),
]


@pytest.mark.parametrize(("name", "normalise"), FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_blocks_equal_transformers_with_gradients(name, normalise, dtype):
    block = peer_block(name, **({} if name == "mixtral" else {"norm_topk_prob": normalise}))
    block = block.to(dtype)
    x = torch.randn(2, 9, 16).to(dtype).requires_grad_()
    kept = torch.float32 if name == "mixtral" else dtype
    theirs = block(x)
    ours = our_block(block, x.view(18, 16), normalise, kept).view(2, 9, 16)
    tolerance = 1e-5 if dtype == torch.float32 else 3e-2
    torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=tolerance)
    wanted = [x, *block.parameters()]
    pull = torch.randn(theirs.shape).to(dtype)
    for our, their in zip(
        torch.autograd.grad(ours, wanted, pull),
        torch.autograd.grad(theirs, wanted, pull),
        strict=True,
    ):
        scale = float(their.abs().max())
        torch.testing.assert_close(our, their, atol=4 * tolerance * scale, rtol=4 * tolerance)


@pytest.mark.parametrize(("name", "normalise"), FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_routing_has_the_bits_of_transformers(name, normalise, dtype):
    block = peer_block(name, **({} if name == "mixtral" else {"norm_topk_prob": normalise}))
    block = block.to(dtype)
    x = torch.randn(200, 16).to(dtype)
    logits, weights, experts = block.gate(x)
    ours = route(logits, 2, normalise, torch.float32 if name == "mixtral" else dtype)
    assert ours[0].dtype == weights.dtype
    assert torch.equal(ours[0], weights)
    assert torch.equal(ours[1], experts)


@pytest.mark.parametrize("per_token", [1, 2, 3])
@pytest.mark.parametrize("masked", [False, True])
def test_balancing_loss_equals_transformers_with_its_gradient(per_token, masked):
    from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

    torch.manual_seed(3)
    layers = [torch.randn(12, 5, requires_grad=True) for _ in range(3)]
    mask = (torch.rand(3, 4) < 0.6).long() if masked else None
    theirs = load_balancing_loss_func(tuple(layers), 5, per_token, mask)
    ours = load_balancing_loss(layers, per_token, None if mask is None else mask.flatten())
    torch.testing.assert_close(ours, theirs)
    for our, their in zip(
        torch.autograd.grad(ours, layers), torch.autograd.grad(theirs, layers), strict=True
    ):
        torch.testing.assert_close(our, their)


def test_router_z_loss_equals_that_of_switch_transformers():
    from transformers.models.switch_transformers.modeling_switch_transformers import (
        router_z_loss_func,
    )

    torch.manual_seed(5)
    logits = torch.randn(2, 7, 5, requires_grad=True)
    ours, theirs = router_z_loss([logits.view(14, 5)]), router_z_loss_func(logits)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(
        torch.autograd.grad(ours, logits)[0], torch.autograd.grad(theirs, logits)[0]
    )
