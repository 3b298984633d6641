import os
from pathlib import Path

import pytest
from hypothesis import settings

# The same examples on every run: a failure in one place is a failure in every place.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")

# No test asks a hub on the network; those about hubs have one of their own.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def hone_data() -> Path:
    """The folder of real data sets; tests that read it skip, saying so, where it is absent."""
    folder = Path(os.environ.get("HONE_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no data in {folder}: set HONE_DATA to a folder with the real data sets")
    return folder


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Tests of a GPU are skipped, saying so, where there is none."""
    if item.get_closest_marker("gpu") is not None:
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA device")
