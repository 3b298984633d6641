"""Formats told from columns, and the one form that every tuning format is brought to."""

import json

import pyarrow as pa
import pytest
from pyarrow import parquet

from hone.core.errors import DataError
from hone.data.conversations import Completion, Conversation, Document, Examples
from hone.data.formats import FORMATS, Format, check_tunes, detect_format

TOOL = {"name": "weather", "parameters": {"type": "object"}}
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "부산"}}}
USER, ANSWER = {"role": "user", "content": "가?"}, {"role": "assistant", "content": "네."}


def read(tmp_path, *records, columns=None):
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(json.dumps(record) for record in records))
    return list(Examples(path, columns))


@pytest.mark.smoke
@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ("text", Format.TEXT),
        ("text url", Format.TEXT),
        ("messages", Format.CONVERSATION),
        ("messages tools id", Format.CONVERSATION),
        ("prompt completion", Format.PROMPT_COMPLETION),
        ("prompt completion label", Format.UNPAIRED_PREFERENCE),
        ("prompt chosen rejected", Format.PREFERENCE),
        ("conversations chosen rejected", Format.PREFERENCE),
        ("instruction input output", Format.ALPACA),
        ("instruction output history system", Format.ALPACA),
        ("conversations tools", Format.SHAREGPT),
        ("text label", Format.CLASSIFICATION),
        ("sentence label idx", Format.CLASSIFICATION),
        ("tokens ner_tags", Format.TOKEN_CLASSIFICATION),
        ("tokens tags", Format.TOKEN_CLASSIFICATION),
        ("anchor positive negative", Format.PAIRS),
        ("sentence1 sentence2 score", Format.PAIRS),
        ("sentence1 sentence2 label", Format.PAIRS),
    ],
)
def test_a_format_is_told_from_its_columns(columns, expected):
    assert detect_format(columns.split(), "a.jsonl") == expected


def test_unknown_columns_are_named_with_what_there_is():
    with pytest.raises(DataError) as error:
        detect_format(["Q", "A", "mesages"], "a.csv")
    said = str(error.value)
    assert "a.csv has the columns Q, A, mesages" in said
    assert 'Did you mean "messages"?' in said
    for part in ("prompt+completion", "instruction+output", "anchor+positive", "tokens+tags"):
        assert part in said


@pytest.mark.parametrize("form", [form for form in Format if not FORMATS[form].tunes])
def test_what_is_for_something_else_is_refused_with_what_it_is_for(form):
    with pytest.raises(DataError, match=f"is {form} data .* which is for {FORMATS[form].use[:12]}"):
        check_tunes(form, "a.jsonl")


def test_conversations(tmp_path):
    calls = {"role": "assistant", "tool_calls": [CALL]}
    result = {"role": "tool", "content": "맑음"}
    (found,) = read(tmp_path, {"messages": [USER, calls, result, ANSWER], "tools": [TOOL]})
    assert found == Conversation(
        [USER, calls | {"content": ""}, result, ANSWER],
        [{"type": "function", "function": TOOL}],
        1,
    )


def test_weights_say_what_is_only_read(tmp_path):
    (found,) = read(
        tmp_path,
        {"messages": [USER | {"loss_weight": 0.0}, ANSWER | {"weight": 0}, USER,
                      ANSWER | {"loss_weight": 1.0}]},
    )  # fmt: skip
    assert found == Conversation([USER, ANSWER, USER, ANSWER], None, 1, frozenset([0, 1]))


def test_alpaca(tmp_path):
    found = read(
        tmp_path,
        {"instruction": "더하라.", "input": "1, 2", "output": "3"},
        {"instruction": "A", "input": "", "output": "B", "system": "S", "history": [["q", "a"]]},
    )
    assert [[m["content"] for m in item.messages] for item in found] == [
        ["더하라.\n1, 2", "3"],
        ["S", "q", "a", "A", "B"],
    ]
    assert [m["role"] for m in found[1].messages] == [
        "system", "user", "assistant", "user", "assistant",
    ]  # fmt: skip


def test_sharegpt(tmp_path):
    turns = [
        {"from": "system", "value": "S"},
        {"from": "human", "value": "부산 날씨?"},
        {"from": "function_call", "value": '{"name": "weather", "arguments": {"city": "부산"}}'},
        {"from": "observation", "value": "맑음"},
        {"from": "gpt", "value": "맑아요."},
    ]
    (found,) = read(tmp_path, {"conversations": turns, "tools": json.dumps([TOOL])})
    assert found.messages == [
        {"role": "system", "content": "S"},
        {"role": "user", "content": "부산 날씨?"},
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "content": "맑음"},
        {"role": "assistant", "content": "맑아요."},
    ]
    assert found.tools == [{"type": "function", "function": TOOL}]


def test_a_system_message_in_a_column_of_its_own(tmp_path):
    row = {"messages": [USER, ANSWER], "system": "친절하게"}
    (found,) = read(tmp_path, row)
    assert found.messages == [{"role": "system", "content": "친절하게"}, USER, ANSWER]
    own = {"role": "system", "content": "짧게"}
    (found,) = read(tmp_path, row | {"messages": [own, USER, ANSWER]})
    assert found.messages == [own, USER, ANSWER]
    (found,) = read(tmp_path, row | {"system": None})
    assert found.messages == [USER, ANSWER]


def test_completions_and_documents(tmp_path):
    assert read(tmp_path, {"prompt": "가", "completion": "나"}) == [Completion("가", "나", 1)]
    assert read(tmp_path, {"text": "가나"}) == [Document("가나", 1)]
    (found,) = read(tmp_path, {"prompt": [USER, ANSWER, USER], "completion": [ANSWER]})
    assert found.messages == [USER, ANSWER, USER, ANSWER]
    assert found.untrained == {0, 1, 2}
    columns = {"prompt": "Q", "completion": "A"}
    assert read(tmp_path, {"Q": "가", "A": "나", "label": 0}, columns=columns) == [
        Completion("가", "나", 1)
    ]


def test_the_same_from_a_table(tmp_path):
    rows = [{"messages": [USER, ANSWER], "tools": None}, {"messages": [USER, ANSWER], "tools": []}]
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    assert [item.messages for item in Examples(tmp_path / "a.parquet")] == [[USER, ANSWER]] * 2
    (tmp_path / "a.tsv").write_text(
        'messages\n"' + json.dumps([USER, ANSWER]).replace('"', '""') + '"\n'
    )
    assert [item.messages for item in Examples(tmp_path / "a.tsv")] == [[USER, ANSWER]]


GOOD = {"messages": [USER, ANSWER]}


@pytest.mark.parametrize(
    ("first", "second", "reason"),
    [
        (GOOD, {"messages": "hi"}, r'"messages" is not valid JSON'),
        (GOOD, {"messages": {}}, '"messages" must be a list'),
        (GOOD, {"mesages": []}, '"messages" must be a list, found None'),
        (GOOD, {"messages": [{"role": "user"}]}, 'Message 1 .user. has no "content"'),
        (GOOD, {"messages": [ANSWER | {"weight": 0.5}]}, '"weight" is 0.5'),
        (GOOD, GOOD | {"tools": "{"}, '"tools" is not valid JSON'),
        ({"text": "a"}, {"text": None}, '"text" must be a text, found None'),
        ({"prompt": "a", "completion": "b"}, {"prompt": "a", "completion": []}, "both be texts"),
        ({"instruction": "a", "output": "b"}, {"instruction": "a"}, '"output" must be a text'),
        (
            {"instruction": "a", "output": "b"},
            {"instruction": "a", "output": "b", "history": [["q"]]},
            "pairs",
        ),
        (
            {"conversations": []},
            {"conversations": [{"from": "human"}]},
            'Turn 1 of "conversations": "value" must be a text',
        ),
        (
            {"conversations": []},
            {"conversations": [{"from": "function_call", "value": "f(1)"}]},
            r"Turn 1 \(function_call\) is not valid JSON",
        ),
    ],
)
def test_a_bad_row_is_named(tmp_path, first, second, reason):
    with pytest.raises(DataError, match=r"a\.jsonl, line 2: .*" + reason):
        read(tmp_path, first, second)


def test_preference_data_is_refused(tmp_path, hone_data):
    with pytest.raises(DataError, match=r"preference training \(a reward model or DPO\)"):
        Examples(hone_data / "instruction_samples" / "dpo_en_demo.json")
    with pytest.raises(DataError, match=r"preference training \(a reward model or DPO\)"):
        Examples(hone_data / "hh_rlhf" / "harmless-base-test.jsonl.gz")
