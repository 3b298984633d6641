import pytest

from hone.evals.formatting import (
    cell,
    duration,
    interval,
    name_of,
    points,
    printable,
    quantity,
    row_count,
    size,
    times,
)
from hone.evals.intervals import Score

pytestmark = pytest.mark.smoke


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (size(0), "0 bytes"),
        (size(999), "999 bytes"),
        (size(1000), "1 kB"),
        (size(12_640_256), "12.6 MB"),
        (size(999_600), "1 MB"),
        (size(7_000_000_000), "7 GB"),
        (size(7_000_000_000_000), "7,000 GB"),
        (quantity(999), "999"),
        (quantity(3_158_016), "3.16 M"),
        (quantity(999_999), "1 M"),
        (duration(0.04), "0.0 s"),
        (duration(9.96), "10 s"),
        (duration(59.9), "1 min 0 s"),
        (duration(312.4), "5 min 12 s"),
        (duration(3600), "1 h 0 min"),
        (points(0.0004), "same"),
        (points(-0.004), "−0.4 points"),
        (points(0.012), "+1.2 points"),
        (times(3.6, "smaller", "larger"), "3.60× smaller"),
        (times(0.5, "faster", "slower"), "2.00× slower"),
        (times(0.0, "faster", "slower"), "—"),
        (interval(Score(81, 263)), "25.5–36.6"),
        (row_count(1), "1 row"),
        (row_count(1000, more=True), "more than 1,000 rows"),
        (name_of("ko"), "Korean"),
        (name_of("held_out_set"), "Held out set"),
        (cell(None), "NULL"),
        (cell(0.1 + 0.2), "0.3"),
        (cell("a\nb"), "a ⏎ b"),
        (cell(True), "True"),
        (printable("\x1b[2J가\t\u202e\ud800"), "\ufffd[2J가\t\ufffd\ufffd"),
    ],
)
def test_figures_as_people_read_them(shown, expected):
    assert shown == expected
