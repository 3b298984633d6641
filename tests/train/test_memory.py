import pytest
import torch

from hone.train.memory import measure_peak

MIB = 1 << 20


def zeros(mib):
    return torch.zeros(mib * MIB // 4)


@pytest.mark.smoke
def test_the_peak_of_a_chain_of_known_tensors():
    def work():
        a = zeros(8)
        b = a + 1  # 16 MiB
        del a
        c = torch.cat((b, b))  # 24
        del b
        return c[: len(c) // 2].clone()  # 24 again, 8 in the end

    peak = measure_peak(work)
    assert peak.bytes == pytest.approx(24 * MIB, rel=0.01)
    assert peak.held == pytest.approx(8 * MIB, rel=0.01)
    assert len(peak.result) == 2 * MIB


def test_what_was_held_before_does_not_count():
    held = [zeros(16)]

    def work():
        held.append(zeros(4))
        held.pop(0)
        held.append(zeros(8))

    peak = measure_peak(work)
    assert peak.bytes == pytest.approx(12 * MIB, rel=0.01)
    assert peak.held == pytest.approx(12 * MIB, rel=0.01)


def test_one_measurement_does_not_disturb_the_next():
    kept = measure_peak(lambda: zeros(16)).result
    del kept  # freed unseen; the next tensor of its size is likely to stand in its place
    again = zeros(16)

    def work(tensors):
        tensors.clear()
        return zeros(4)

    assert measure_peak(lambda: work([again])).bytes == pytest.approx(4 * MIB, rel=0.01)


def test_temporaries_inside_an_operator_count():
    x = zeros(8).view(1024, -1)
    # Sorting makes its indices in int64, which nobody keeps here; a copy of the rows is returned.
    peak = measure_peak(lambda: x.sort(dim=-1).values)
    assert peak.bytes == pytest.approx((8 + 16) * MIB, rel=0.01)
    assert peak.held == pytest.approx(8 * MIB, rel=0.01)


def test_the_backward_pass_counts():
    weight = torch.zeros(512, 512, requires_grad=True)  # 1 MiB
    x = zeros(8).view(-1, 512)

    def work():
        (x @ weight).relu().sum().backward()

    # The product; its activation; then their gradients while the activation is held.
    peak = measure_peak(work)
    assert 16 * MIB <= peak.bytes <= 34 * MIB
    assert peak.held == pytest.approx(MIB, rel=0.01)
    assert weight.grad is not None


def test_nothing_takes_nothing_and_errors_pass():
    assert measure_peak(lambda: None).bytes <= 64
    with pytest.raises(ZeroDivisionError):
        measure_peak(lambda: 1 / 0)
    assert measure_peak(lambda: zeros(1)).bytes == pytest.approx(MIB, rel=0.01)


def test_it_says_nothing(capfd):
    measure_peak(lambda: zeros(1))
    said = capfd.readouterr()
    assert said.out + said.err == ""


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_peak_on_a_gpu():
    peak = measure_peak(lambda: (torch.zeros(8 * MIB, device="cuda") + 1).sum(), "cuda")
    assert peak.bytes == pytest.approx(64 * MIB, rel=0.01)
