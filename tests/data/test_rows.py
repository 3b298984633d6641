"""Rows of every kind of file, and the sentence for every way in which one can be wrong."""

import csv
import gzip
import io
import json
import sys
from operator import length_hint

import pyarrow as pa
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from hone.core.errors import DataError
from hone.data.rows import Rows

RECORDS = [
    {"prompt": "서울 고객은?", "completion": 'a "b"\nc'},
    {"prompt": "1,2\t3", "completion": " 😀 "},
]


def table(separator):
    out = io.StringIO()
    writer = csv.DictWriter(out, ["prompt", "completion"], delimiter=separator)
    writer.writeheader()
    writer.writerows(RECORDS)
    return out.getvalue().encode()


def columnar():
    out = io.BytesIO()
    parquet.write_table(pa.Table.from_pylist(RECORDS), out)
    return out.getvalue()


CONTENTS = {
    ".jsonl": "\n".join(json.dumps(record) for record in RECORDS).encode(),
    ".json": json.dumps(RECORDS, indent=2, ensure_ascii=False).encode(),
    ".csv": table(","),
    ".tsv": table("\t"),
    ".parquet": columnar(),
}
PACKED = {"": lambda data: data, ".gz": gzip.compress, ".zst": zstandard.compress}


@pytest.mark.parametrize("packing", PACKED)
@pytest.mark.parametrize("kind", CONTENTS)
def test_every_kind_of_file(tmp_path, kind, packing):
    path = tmp_path / f"a{kind}{packing}"
    path.write_bytes(PACKED[packing](CONTENTS[kind]))
    rows = Rows(str(path))
    assert [values for _, values in rows] == RECORDS
    assert list(rows) == list(rows)  # each time from the beginning


@pytest.mark.parametrize("packing", PACKED)
def test_a_text_is_one_document(tmp_path, packing):
    path = tmp_path / f"a.txt{packing}"
    path.write_bytes(PACKED[packing]("\ufeff한 줄\n\n두 줄\n".encode()))
    assert list(Rows(str(path))) == [(1, {"text": "한 줄\n\n두 줄\n"})]


@pytest.mark.smoke
def test_rows_say_where_they_are(tmp_path):
    for kind, numbers in (
        (".jsonl", [1, 2]), (".json", [2, 6]), (".csv", [2, 4]), (".parquet", [1, 2])
    ):  # fmt: skip
        path = tmp_path / f"a{kind}"
        path.write_bytes(CONTENTS[kind])
        rows = Rows(str(path))
        assert [number for number, _ in rows] == numbers
        unit = "row" if kind == ".parquet" else "line"
        assert rows.where(7) == f"{path}, {unit} 7"


def test_how_many_there_are_is_known_before(tmp_path):
    for kind, content in CONTENTS.items():
        (tmp_path / f"a{kind}").write_bytes(content)
        assert length_hint(Rows(str(tmp_path / f"a{kind}"))) == 2
    assert length_hint(Rows("hf://a/b")) == 0


def test_quotes_are_text_where_a_tab_separated_file_does_not_quote(tmp_path):
    path = tmp_path / "a.tsv"
    path.write_text('sentence1\tscore\n"안녕" 하고 말했다\t5\n"열린 따옴표\t1\n')
    assert [row["sentence1"] for _, row in Rows(str(path))] == [
        '"안녕" 하고 말했다',
        '"열린 따옴표',
    ]


def test_columns_under_other_names(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("Q,A,label\n안녕?,네.,0\n")
    rows = Rows(str(path), {"prompt": "Q", "completion": "A"})
    assert list(rows) == [(2, {"prompt": "안녕?", "completion": "네."})]
    with pytest.raises(DataError, match=r"line 2: there is no column 'R'; the columns are Q, A"):
        list(Rows(str(path), {"prompt": "R"}))


@pytest.mark.parametrize(
    ("name", "content", "parts"),
    [
        ("a.json", b'[{"a": 1},\n{"a" 2}]', ["line 2", "not valid JSON"]),
        ("a.json", b'[{"a": 1}\n{"a": 2}]', ["line 2", "expected a comma", "'{'"]),
        ("a.json", b'[{"a": 1},\n 7]', ["line 2", "expected a JSON object, found 7"]),
        ("a.json", b'[{"a": 1},\n]', ["line 2", "a comma before the list's end"]),
        ("a.json", b'[{"a": 1}]\n{}', ["line 2", "more behind the list's end"]),
        ("a.json", b'[{"a": 1}', ["expected a comma", "the file's end"]),
        ("a.json", b'[{"a": "\xff"}]', ["not UTF-8"]),
        ("a.json", b"[" * 200_000, ["nested too deeply"]),
        ("a.json", b"7", ["expected a JSON list of objects, found '7'"]),
        ("a.json", b'{\n "a": 1\n}', ["line 1", "a list of objects, or an object on each line"]),
        ("a.json", b"[]", ["is empty"]),
        ("a.json", b" \n", ["is empty"]),
        ("a.csv", b"a,b\n1,2\n1,2,3\n", ["line 3", "3 cells, and the header has 2"]),
        ("a.csv", b'a,b\n1,"2\n', ["line 2", "not valid CSV"]),
        ("a.csv", b"a,a\n1,2\n", ["a name twice"]),
        ("a.csv", b"a,b\n", ["is empty"]),
        ("a.csv", b"a,b\n\xff,1\n", ["not UTF-8"]),
        ("a.txt", b"x\n\xff", ["line 2: not UTF-8"]),
        ("a.txt", b"\n", ["is empty"]),
        ("a.parquet", b"PAR1 no", ["is not a whole Parquet file"]),
        ("a.jsonl.gz", b"{}", ["is not a whole gzip file"]),
        ("a.csv.zst", zstandard.compress(b"a,b\n1,2\n" * 99)[:-9], ["whole Zstandard"]),
        ("a.xlsx", b"PK", ["'.xlsx'", ".jsonl, .json, .parquet, .csv, .tsv and .txt"]),
        ("a", b"x", ["ends in 'nothing'"]),
    ],
)
def test_what_is_wrong_is_named(tmp_path, name, content, parts):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError) as error:
        list(Rows(str(path)))
    for part in (str(path), *parts):
        assert part in str(error.value)
    assert "\n" not in str(error.value)


def test_missing_files(tmp_path):
    for kind in (*CONTENTS, ".txt", ".xlsx"):
        with pytest.raises(DataError, match="does not exist"):
            list(Rows(str(tmp_path / f"none{kind}")))


def test_nulls_of_a_tables_objects_are_fields_that_are_not_there(tmp_path):
    path = tmp_path / "a.parquet"
    rows = [
        {"messages": [{"role": "user", "content": "a", "name": "x"}, {"role": "user"}], "b": None},
        {"messages": [], "b": 1},
    ]
    parquet.write_table(pa.Table.from_pylist(rows), path)
    assert [values for _, values in Rows(str(path))] == rows


@given(
    st.lists(
        st.dictionaries(st.text(max_size=3), st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False)
            | st.text(max_size=9),
            lambda inner: st.lists(inner, max_size=3), max_leaves=6)),
        min_size=1, max_size=5,
    ),
    st.sampled_from([None, 1]),
    st.integers(1, 7),
)  # fmt: skip
def test_a_list_is_read_in_pieces_of_any_size(tmp_path_factory, records, indent, chunk):
    import hone.data.rows as module

    path = tmp_path_factory.mktemp("json") / "a.json"
    path.write_text(json.dumps(records, indent=indent, ensure_ascii=False), encoding="utf-8")
    before, module._CHUNK = module._CHUNK, chunk
    try:
        found = list(Rows(str(path)))
    finally:
        module._CHUNK = before
    assert [values for _, values in found] == records
    lines = path.read_text(encoding="utf-8").split("\n")
    assert all("{" in lines[number - 1] for number, _ in found)


def test_memory_is_that_of_a_row_not_of_the_file(tmp_path):
    import tracemalloc

    path = tmp_path / "a.json"
    path.write_text(json.dumps([{"text": "가나다라" * 2500} for _ in range(600)]))
    tracemalloc.start()
    count = sum(1 for _ in Rows(str(path)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 600
    assert path.stat().st_size > 30e6
    assert peak < 12e6


def test_the_hub_is_asked_only_when_named_and_says_why_not(monkeypatch):
    class Datasets:
        @staticmethod
        def load_dataset(name, config, *, split, revision, streaming):
            assert streaming
            if name == "a/broken":
                raise ConnectionError("Couldn't reach the\n hub")
            return [{"text": f"{name} {config} {split} {revision}", "x": {"y": None}}]

    monkeypatch.setitem(sys.modules, "datasets", Datasets)
    rows = Rows("hf://a/b/ko@main:test[:5]")
    assert list(rows) == [(1, {"text": "a/b ko test[:5] main", "x": {}})]
    assert rows.where(1) == "hf://a/b/ko@main:test[:5], row 1"
    assert next(iter(Rows("hf://a/b")))[1]["text"] == "a/b None train None"
    with pytest.raises(DataError, match="Cannot read hf://a/broken: Couldn't reach the hub"):
        list(Rows("hf://a/broken"))
    with pytest.raises(DataError, match="cannot be a data set"):
        list(Rows("hf://a/../b"))
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match="pip install datasets"):
        list(Rows("hf://a/b"))
