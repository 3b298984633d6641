import gzip
import json
import sys

import pytest
import zstandard

from hone.core.errors import DataError
from hone.data import iterate_jsonl, read_examples, read_jsonl

REQUIRED = {"question": str, "sql": str}


def write(tmp_path, text, name="q.jsonl"):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_objects_and_line_numbers(tmp_path):
    path = write(tmp_path, '{"a": 1}\n\n  \n{"a": 2}')
    assert read_jsonl(path) == [{"a": 1}, {"a": 2}]
    assert [number for number, _ in iterate_jsonl(path)] == [1, 4]


def test_a_byte_order_mark_and_windows_line_ends_are_fine(tmp_path):
    assert read_jsonl(write(tmp_path, b'\xef\xbb\xbf{"a": 1}\r\n{"a": 2}\r\n')) == [
        {"a": 1},
        {"a": 2},
    ]


def test_a_line_separator_inside_a_string_is_no_line_end(tmp_path):
    assert read_jsonl(write(tmp_path, '{"a": "x\u2028y\x85z"}\n')) == [{"a": "x\u2028y\x85z"}]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (b'{"question": "a", "sql": "b"}\n{"question": ', ["line 2", "not valid JSON"]),
        (b'{"question": "a", "sql": "b"}\n\n[1]\n', ["line 3", "a JSON object", "a list"]),
        (b'{"qestion": "a", "sql": "b"}', ["line 1", '"question" is missing', '"qestion"']),
        (b"{}", ["line 1", '"question" is missing']),
        (b'{"question": 7, "sql": "b"}', ['"question" must be a string', "a whole number"]),
        (b'{"question": null, "sql": "b"}', ['"question" must be a string', "null"]),
        (b'{"question": true, "sql": "b"}', ['"question" must be a string', "true or false"]),
        (b'{"question": "\xff", "sql": "b"}', ["line 1", "not UTF-8", "0xff"]),
        (b'{"question": "\\ud83d", "sql": "b"}', ["surrogate"]),
        (b"\n \n", ["is empty"]),
        (b"", ["is empty"]),
        (b"[" * 100_000, ["line 1"]),
    ],
)
def test_bad_lines_are_named(tmp_path, text, parts):
    path = write(tmp_path, text)
    with pytest.raises(DataError) as error:
        read_jsonl(path, REQUIRED)
    for part in (str(path), *parts):
        assert part in str(error.value)


def test_a_whole_number_is_a_number_but_true_is_not(tmp_path):
    assert read_jsonl(write(tmp_path, '{"x": 1}'), {"x": float}) == [{"x": 1}]
    with pytest.raises(DataError, match="must be a whole number, found true or false"):
        read_jsonl(write(tmp_path, '{"x": true}'), {"x": int})


def test_optional_keys_may_be_null_but_not_of_another_type(tmp_path):
    assert read_jsonl(write(tmp_path, '{"x": null}'), optional={"x": str})
    with pytest.raises(DataError, match='"x" must be a string, found a list'):
        read_jsonl(write(tmp_path, '{"x": []}'), optional={"x": str})


def test_compressed_files(tmp_path):
    data = b'{"a": 1}\n{"a": 2}\n' * 100
    packed = {".gz": gzip.compress(data), ".zst": zstandard.compress(data)}
    for suffix, content in packed.items():
        path = write(tmp_path, content, "q.jsonl" + suffix)
        assert len(read_jsonl(path)) == 200
        write(tmp_path, content + content, "q.jsonl" + suffix)
        assert len(read_jsonl(path)) == 400
        write(tmp_path, content[: len(content) // 2], "q.jsonl" + suffix)
        with pytest.raises(DataError, match="whole"):
            read_jsonl(path)
        write(tmp_path, data, "q.jsonl" + suffix)
        with pytest.raises(DataError, match="whole"):
            read_jsonl(path)


def test_zstandard_is_optional(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(DataError, match=r"hone-llm\[zstd\]"):
        read_jsonl(write(tmp_path, b"", "q.jsonl.zst"))


def test_missing_files_and_folders(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        read_jsonl(tmp_path / "none.jsonl")
    with pytest.raises(DataError, match="is a folder"):
        read_jsonl(tmp_path)


def test_examples(tmp_path):
    lines = [
        {"question": "  How\nmany? ", "sql": " SELECT 1 ; ", "part": "train"},
        {"question": "\u1100\u1161\u1102\u1161?", "sql": "SELECT 2", "part": "dev"},
        {"question": "a", "sql": "SELECT 3", "part": "dev", "language": "de"},
    ]
    path = write(tmp_path, "\n".join(json.dumps(line) for line in lines))
    examples = read_examples(path, split_key="part")
    assert [(e.question, e.sql, e.language, e.split, e.line) for e in examples] == [
        ("How many?", "SELECT 1 ;", "en", "train", 1),
        ("가나?", "SELECT 2", "ko", "dev", 2),
        ("a", "SELECT 3", "de", "dev", 3),
    ]
    assert [e.split for e in read_examples(path)] == ["", "", ""]
    with pytest.raises(DataError, match=r'"parts" is missing.*"part"'):
        read_examples(path, split_key="parts")


def test_an_empty_question_is_refused(tmp_path):
    with pytest.raises(DataError, match='line 1: "question" is empty'):
        read_examples(write(tmp_path, '{"question": " ", "sql": "SELECT 1"}'))


def test_real_files(hone_data):
    geography = read_examples(
        hone_data / "text2sql_domains" / "geography.jsonl", split_key="question_split"
    )
    assert len(geography) == 598
    assert {e.split for e in geography} == {"train", "dev"}
    assert len(read_examples(hone_data / "spider" / "questions.jsonl")) == 6790
