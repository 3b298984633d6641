import json
import subprocess
import sys
from pathlib import Path


def test_a_killed_run_ends_with_the_same_bits(tmp_path):
    program = Path(__file__).with_name("resumable_run.py")
    done = subprocess.run(
        [sys.executable, str(program), str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["killed"] >= 5
    whole = report["runs"].pop("whole")
    assert [record["step"] for record in whole["metrics"]] == [*range(3, 25, 3)]
    assert len(report["runs"]) == 3
    for name, broken in report["runs"].items():
        assert broken == whole, name
