import pytest
import torch

from hone.kernels.rotary import apply_rotary, rotary_table


def table(positions, size=8, dtype=torch.float32):
    frequencies = 1.0 / 10000 ** (torch.arange(0, size, 2) / size)
    return rotary_table(torch.tensor(positions), frequencies, dtype)


@pytest.mark.smoke
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)], ids=["fp32", "bf16"]
)
def test_each_pair_is_turned_by_position_times_frequency(dtype, tolerance):
    torch.manual_seed(7)
    positions = [0, 1, 2, 500, 7]
    x = torch.randn(5, 3, 8)
    out = apply_rotary(x.to(dtype), table(positions, dtype=dtype))
    assert out.dtype == dtype
    for token, position in enumerate(positions):
        for pair in range(4):
            angle = torch.tensor(position * 10000 ** (-pair / 4))
            turn = torch.tensor([[angle.cos(), -angle.sin()], [angle.sin(), angle.cos()]])
            expected = x[token][:, [pair, pair + 4]] @ turn.T
            torch.testing.assert_close(
                out[token][:, [pair, pair + 4]].float(), expected, atol=tolerance, rtol=tolerance
            )


def test_scores_depend_on_the_distance_only():
    torch.manual_seed(8)
    q, k = torch.randn(1, 1, 8), torch.randn(1, 1, 8)

    def score(a, b):
        return (apply_rotary(q, table([a])) * apply_rotary(k, table([b]))).sum()

    torch.testing.assert_close(score(3, 1), score(103, 101), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(apply_rotary(q, table([0])), q)


def test_a_strided_slice_of_a_product():
    x = torch.randn(4, 10, 8)[:, 2:5]
    angles = table([0, 1, 2, 3])
    torch.testing.assert_close(apply_rotary(x, angles), apply_rotary(x.contiguous(), angles))
