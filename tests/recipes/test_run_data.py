"""What a run was made for, read from its files alone."""

import json
import subprocess
import sys

import pytest

from hone.recipes.run_data import run_questions


@pytest.mark.smoke
def test_examples_of_held_out_questions_are_spread_short_and_of_every_language(tmp_path):
    assert run_questions(tmp_path) == ()
    (tmp_path / "questions").mkdir()
    texts = [text for i in range(50) for text in (f"매장 {i}은?", f"Which store is {i}?")]
    lines = [json.dumps({"question": text}) for text in (*texts, "긴 " * 99)]
    (tmp_path / "questions" / "held_out.jsonl").write_text("\n".join(lines), encoding="utf-8")
    found = run_questions(tmp_path, 6)
    assert len(set(found)) == 6
    assert {"매장" in text for text in found} == {True, False}
    assert run_questions(tmp_path, 1000) == tuple(texts)


def test_it_is_read_without_torch():
    program = (
        "import hone.recipes.pane, hone.recipes.run_data, sys; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
