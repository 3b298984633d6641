import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))


def pytest_generate_tests(metafunc):
    """Every test of a family runs for each of its cases."""
    if "case" in metafunc.fixturenames and getattr(metafunc.cls, "cases", None):
        metafunc.parametrize("case", list(metafunc.cls.cases), scope="class")


def pytest_sessionfinish(session, exitstatus):
    """Write the page of models when it is asked for and every test has passed."""
    import agreement

    if agreement.WANTED and exitstatus == 0:
        Path(agreement.WANTED).write_text(
            agreement.make_page(agreement.measured_rows()), encoding="utf-8"
        )
