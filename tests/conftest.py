import os
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def hone_data() -> Path:
    """The folder of real data sets; tests that read it skip, saying so, where it is absent."""
    folder = Path(os.environ.get("HONE_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no data in {folder}: set HONE_DATA to a folder with the real data sets")
    return folder
