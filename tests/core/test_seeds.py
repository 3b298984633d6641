import subprocess
import sys

import pytest

from hone.core.seeds import derive_seed, rng

pytestmark = pytest.mark.smoke


def test_streams_differ_by_name_and_agree_between_processes():
    assert derive_seed(1, "a") != derive_seed(1, "b") != derive_seed(2, "b")
    code = "from hone.core.seeds import rng; print(rng(7, 'x', 3).random())"
    other = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert float(other) == rng(7, "x", 3).random()
