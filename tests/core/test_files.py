import contextlib
import errno
import os

import pytest

from hone.core import files
from hone.core.errors import CapacityError, DataError, HoneError

pytestmark = pytest.mark.smoke


def test_a_failed_write_keeps_the_old_content_and_no_leftover(tmp_path):
    target = tmp_path / "a.txt"
    files.write_text(target, "old")
    with contextlib.suppress(ZeroDivisionError), files.atomic_path(target) as temporary:
        temporary.write_text("half")
        raise ZeroDivisionError
    assert target.read_text() == "old"
    assert [item.name for item in tmp_path.iterdir()] == ["a.txt"]


def test_a_directory_is_replaced_whole(tmp_path):
    target = tmp_path / "run"
    for content in ("one", "two"):
        with files.atomic_dir(target) as temporary:
            (temporary / f"{content}.txt").write_text(content)
    assert [item.name for item in target.iterdir()] == ["two.txt"]
    assert [item.name for item in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize("new_is_in_place", [False, True])
def test_a_replacement_killed_between_its_renames_is_undone_or_finished(tmp_path, new_is_in_place):
    old = tmp_path / ".hone-tmp-old-run"
    old.mkdir()
    (old / "old.txt").write_text("old")
    if new_is_in_place:
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "new.txt").write_text("new")
    (tmp_path / ".hone-tmp-half-12345678").mkdir()
    files.remove_leftovers(tmp_path)
    expected = "new.txt" if new_is_in_place else "old.txt"
    assert [item.name for item in tmp_path.iterdir()] == ["run"]
    assert [item.name for item in (tmp_path / "run").iterdir()] == [expected]


def test_a_full_disk_is_a_capacity_error_and_keeps_the_old_content(tmp_path):
    target = tmp_path / "a.txt"
    files.write_text(target, "old")
    with (
        pytest.raises(CapacityError, match=r"disk that holds .*a\.txt is full"),
        files.atomic_path(target),
    ):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert target.read_text() == "old"


def test_a_file_in_the_way_of_a_folder_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(HoneError, match="a file is in the way"):
        files.write_text(tmp_path / "file" / "a.txt", "x")


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"{\n1", "line 2"), (b"\xff", "not UTF-8"), (None, "does not exist")],
)
def test_json_that_cannot_be_read_is_one_sentence(tmp_path, content, message):
    path = tmp_path / "a.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        files.read_json(path)
