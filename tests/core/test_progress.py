import io

import pytest
from rich.console import Console

from hone.core import progress

pytestmark = pytest.mark.smoke


def test_silent_until_shown_then_plain_lines_off_a_terminal(monkeypatch):
    monkeypatch.setattr(progress, "_console", None)
    assert list(progress.track([1, 2], "Quiet")) == [1, 2]
    out = io.StringIO()
    monkeypatch.setattr(progress, "_LINE_EVERY_SECONDS", 0.0)
    progress.show(Console(file=out, width=120))
    with progress.progress("Training", 4) as bar:
        bar.advance(2, loss="1.50")
    text = out.getvalue()
    assert "Training: 2/4 steps" in text
    assert "loss 1.50" in text
    assert "s left" in text
    assert "✓ Training · 4 steps in" in text
