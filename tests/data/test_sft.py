"""What a sample trains: the answers and what ends them, whatever the template and the length."""

import json

import pytest
from chat_zoo import ZOO, make_chat_tokenizer, oracle_of
from hypothesis import given
from hypothesis import strategies as st

from hone.core.errors import CheckpointError, ConfigError, DataError
from hone.data.conversations import Completion, Conversation, Document, Examples
from hone.data.samples import IGNORED
from hone.data.sft import choose_template, tokenise
from hone.text.conversation import Conversations
from hone.text.tokenizer import Tokenizer

USER, OTHER = "서울에 사는 고객은 몇 명이야?", "How many customers?"
ANSWER, SECOND = "12명, 1,234.", "Don't ask."
MESSAGES = [
    {"role": "user", "content": USER},
    {"role": "assistant", "content": ANSWER},
    {"role": "user", "content": OTHER},
    {"role": "assistant", "content": SECOND},
]
LONG = 10_000
WRITERS: dict = {}


def writer_of(name):
    if name not in WRITERS:
        WRITERS[name] = Conversations(make_chat_tokenizer(name))
    return WRITERS[name]


def whole(sample):
    return [*sample.ids, sample.labels[-1]]


def trained(writer, sample):
    """The texts of the trained stretches."""
    runs, before = [], False
    for label in sample.labels:
        if label != IGNORED:
            runs = runs if before else [*runs, []]
            runs[-1].append(label)
        before = label != IGNORED
    return [writer.tokenizer.decode(run, False) for run in runs]


def turns(count, words=3):
    """A conversation of ``count`` questions and answers, each told by its number."""
    messages = []
    for number in range(count):
        messages.append({"role": "user", "content": f"q{number} " + "가나 " * words})
        messages.append({"role": "assistant", "content": f"a{number} " + "다라 " * words})
    return messages


@pytest.mark.parametrize("name", ZOO)
def test_the_answers_and_what_ends_them_are_trained_and_nothing_else(name):
    writer = writer_of(name)
    samples, report = tokenise([Conversation(MESSAGES, None, 1)], writer, LONG)
    found = [text.strip() for sample in samples for text in trained(writer, sample)]
    end = ZOO[name][5]
    thought = "<think>\n\n</think>\n\n" if name == "qwen" else ""
    assert found == [thought + ANSWER + end, thought + SECOND + end]
    assert report.trained == sum(l != IGNORED for s in samples for l in s.labels)  # noqa: E741
    assert set(report.ends) == {writer.tokenizer.token_to_id(end)}
    assert not report.dropped
    assert not report.truncated
    for sample in samples:
        shifted = list(sample.labels)
        assert all(
            label in (IGNORED, token)
            for label, token in zip(shifted, whole(sample)[1:], strict=True)
        )


@pytest.mark.parametrize("name", ZOO)
def test_the_ids_are_those_of_serving(name):
    writer = writer_of(name)
    oracle = oracle_of(writer.tokenizer)
    samples, _ = tokenise([Conversation(MESSAGES, None, 1)], writer, LONG)
    expected = oracle.apply_chat_template(MESSAGES, return_dict=False)
    for sample in samples:
        ids = whole(sample)
        first = next(i for i, label in enumerate(sample.labels) if label != IGNORED) + 1
        assert ids[:first] == writer.prompt_ids(MESSAGES[: 1 if sample is samples[0] else 3])
        if len(samples) == 1:
            behind = 1 if name == "glm" else 0  # what begins the next turn ends the last
            assert ids[: len(ids) - behind] == expected[: len(ids) - behind]
            rest = writer.tokenizer.decode(expected[len(ids) :], False).strip()
            assert rest == ("<|endoftext|>" if name == "phi3" else "")


@pytest.mark.parametrize("name", ZOO)
def test_the_last_answer_alone(name):
    writer = writer_of(name)
    (sample,), _ = tokenise([Conversation(MESSAGES, None, 1)], writer, LONG, "last")
    (text,) = trained(writer, sample)
    assert text.strip().endswith(SECOND + ZOO[name][5])
    assert ANSWER in writer.tokenizer.decode(whole(sample), False)


def test_a_token_of_a_prompts_end_and_an_answer_is_not_read_in_serving_nor_in_training():
    writer = writer_of("chatml")
    tokenizer = writer.tokenizer
    newlines = tokenizer.encode("\n\n\n")
    assert len(newlines) == 1  # the case that is tested can happen
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "\n\n네."}]
    (sample,), _ = tokenise([Conversation(messages, None, 1)], writer, LONG)
    prompt = writer.prompt_ids(messages[:1])
    assert whole(sample)[: len(prompt)] == prompt
    assert trained(writer, sample) == ["\n\n네.<|im_end|>"]
    assert tokenizer.decode(whole(sample), False) == writer.text(messages).rstrip("\n")
    # So is white space at a prompt's end that is split otherwise with an answer behind it.
    writer = writer_of("llama3")
    prompt = writer.prompt_ids(messages[:1])
    messages = [messages[0], {"role": "assistant", "content": "네."}]
    assert writer.tokenizer.encode(writer.text(messages))[: len(prompt)] != prompt
    (sample,), _ = tokenise([Conversation(messages, None, 1)], writer, LONG)
    assert whole(sample)[: len(prompt)] == prompt
    assert trained(writer, sample) == ["네.<|eot_id|>"]
    writer, messages = writer_of("chatml"), [messages[0], {**messages[1], "content": "\n\n네."}]
    # Between two answers too, each gets its own prompt.
    both = messages + messages
    samples, _ = tokenise([Conversation(both, None, 1)], writer, LONG)
    assert [trained(writer, s) for s in samples] == [["\n\n네.<|im_end|>"]] * 2
    assert whole(samples[1])[: len(writer.prompt_ids(both[:3]))] == writer.prompt_ids(both[:3])


@pytest.mark.parametrize("name", ["chatml", "mistral", "llama3"])
def test_a_completion_follows_its_prompt_and_ends(name):
    writer = writer_of(name)
    tokenizer = writer.tokenizer
    for prompt, completion in (
        ("Q: 몇 명?\nA:", " 12명"), ("a ", "b"), ("x\n", "\ny"), ("", "가"), ("don", "'t ask")
    ):  # fmt: skip
        (sample,), _ = tokenise([Completion(prompt, completion, 1)], writer, LONG)
        serving = tokenizer.encode(prompt, add_special_tokens=True)
        if not serving and tokenizer.bos_id is not None:
            serving = [tokenizer.bos_id]
        assert whole(sample)[: len(serving)] == serving
        assert whole(sample)[-1] == tokenizer.eos_id
        assert trained(writer, sample)[0].lstrip() == (
            completion + tokenizer.eos_token
        ).lstrip() or (
            not serving  # then the first token has nothing before it
        )
        decoded = tokenizer.decode(whole(sample), False)
        assert decoded.removeprefix(tokenizer.bos_token or "").lstrip() == (
            prompt + completion + tokenizer.eos_token
        )


def test_a_document_is_trained_whole_and_cut_without_loss():
    writer = writer_of("llama3")
    text = "서울에 사는 고객은 몇 명이야? " * 9
    (sample,), report = tokenise([Document(text, 3)], writer, LONG)
    assert list(sample.labels) == whole(sample)[1:]
    assert whole(sample)[-1] == writer.tokenizer.eos_id
    assert not report.ends
    pieces, report = tokenise([Document(text, 3)], writer, 10)
    assert all(2 <= piece.length <= 10 for piece in pieces[:-1])
    assert [label for piece in pieces for label in piece.labels] == list(sample.labels)
    assert report.truncated["a document was cut into pieces"].first_line == 3


@pytest.mark.parametrize("name", ["chatml", "qwen", "gemma", "marked"])
@pytest.mark.parametrize("max_length", [75, 100, 130, 200, 400])
def test_a_long_conversation_is_cut_between_turns_and_every_answer_trained_once(name, max_length):
    writer = writer_of(name)
    messages = turns(9)
    if name != "gemma":
        messages = [{"role": "system", "content": "시스템"}, *messages]
    samples, report = tokenise([Conversation(messages, None, 4)], writer, max_length)
    assert all(sample.length <= max_length for sample in samples)
    found = [text for sample in samples for text in trained(writer, sample)]
    assert [text.split(" ")[0].rsplit("\n", 1)[-1] for text in found] == [f"a{n}" for n in range(9)]
    assert not report.dropped
    if name in ("chatml", "marked"):
        assert set(report.truncated) == {"a conversation was cut between turns"}
        assert all("시스템" in writer.tokenizer.decode(list(s.ids), False) for s in samples)
        # As much as fits is kept before an answer: one more turn would not have.
        turn = len(writer.tokenizer.encode(writer.text(turns(1))))
        assert all(sample.length + turn > max_length - 4 for sample in samples[1:])


def test_the_last_answer_of_a_long_conversation_keeps_the_system_message():
    writer = writer_of("chatml")
    messages = [{"role": "system", "content": "시스템"}, *turns(9)]
    (sample,), report = tokenise([Conversation(messages, None, 4)], writer, 130, "last")
    text = writer.tokenizer.decode(whole(sample), False)
    assert "시스템" in text
    assert "q7" in text
    assert "q1" not in text
    assert report.truncated["a conversation was cut between turns"].times == 1


def test_a_conversation_of_hundreds_of_turns_is_cut_in_the_time_of_its_pieces(monkeypatch):
    writer = Conversations(make_chat_tokenizer("chatml"))
    written, count = [], 400
    answers = Conversations.answers

    def watched(self, messages, tools, wanted):
        written.append(len(messages))
        return answers(self, messages, tools, wanted)

    messages = turns(count, words=0)
    monkeypatch.setattr(Conversations, "answers", watched)
    part = tokenise([Conversation(messages[:4], None, 1)], writer, 200)[0][0].length
    samples, report = tokenise([Conversation(messages, None, 1)], writer, 2 * part)
    found = [text for sample in samples for text in trained(writer, sample)]
    assert [text.split(" ")[0] for text in found] == [f"a{n}" for n in range(count)]
    assert report.truncated["a conversation was cut between turns"].times == len(samples) - 1
    # Once whole, and then pieces of a few turns, a few times each.
    assert sorted(written)[-2] <= 20
    assert sum(written) < 10 * len(messages)


def test_a_long_prompt_loses_its_beginning_and_never_the_answer():
    writer = writer_of("llama3")
    tokenizer = writer.tokenizer
    messages = [{"role": "user", "content": "가" * 500}, {"role": "assistant", "content": ANSWER}]
    (sample,), report = tokenise([Conversation(messages, None, 2)], writer, 60)
    assert sample.length == 60
    assert trained(writer, sample) == [ANSWER + "<|eot_id|>"]
    assert sample.ids[0] == tokenizer.bos_id
    assert report.truncated["the beginning of a prompt was cut"].first_line == 2
    (sample,), report = tokenise([Completion("나" * 500, " 네.", 2)], writer, 20)
    assert sample.length == 20
    assert trained(writer, sample) == [" 네.<|eot_id|>"]


def test_an_answer_that_cannot_fit_is_dropped_and_counted():
    writer = writer_of("chatml")
    long = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "가" * 100},
        {"role": "user", "content": "r"},
        {"role": "assistant", "content": "네."},
    ]
    samples, report = tokenise([Conversation(long, None, 7)], writer, 50)
    assert [trained(writer, sample) for sample in samples] == [["네.<|im_end|>"]]
    dropped = report.dropped["an answer is longer than max_length by itself"]
    assert (dropped.times, dropped.first_line) == (1, 7)
    with pytest.raises(DataError, match="Nothing is left to train on: dropped 1 time, first at"):
        tokenise([Conversation(long[:2], None, 7)], writer, 50)
    # To the token: what is fed is the last token of the prompt and the answer without its end.
    answer = len(writer.tokenizer.encode("가" * 100 + "<|im_end|>"))
    (sample,), _ = tokenise([Conversation(long[:2], None, 7)], writer, answer)
    assert trained(writer, sample) == ["가" * 100 + "<|im_end|>"]
    with pytest.raises(DataError, match="longer than max_length by itself"):
        tokenise([Conversation(long[:2], None, 7)], writer, answer - 1)
    with pytest.raises(DataError, match="longer than max_length by itself"):
        tokenise([Completion("a", "가" * 100, 7)], writer, 50)


@given(st.integers(2, 120), st.lists(st.integers(0, 12), min_size=1, max_size=6), st.booleans())
def test_every_answer_is_trained_once_or_counted(max_length, sizes, last):
    writer = writer_of("chatml")
    messages = []
    for number, size in enumerate(sizes):
        messages.append({"role": "user", "content": "서울 " * size})
        messages.append({"role": "assistant", "content": f"{number}" + "네 " * size})
    conversation = Conversation(messages, None, 1)
    ready = Conversation(MESSAGES[:2], None, 2)  # so that something is always left
    on = "last" if last else "all"
    try:
        samples, report = tokenise([conversation, ready], writer, max_length, on)
    except DataError:
        assert max_length < 40
        return
    found = [
        text[0] for sample, line in zip(samples, report.lines, strict=True) if line == 1
        for text in trained(writer, sample)
    ]  # fmt: skip
    wanted = [str(len(sizes) - 1)] if last else [str(number) for number in range(len(sizes))]
    dropped = sum(count.times for count in report.dropped.values())
    assert found == [number for number in wanted if number in found]
    assert len(found) + dropped - (2 not in report.lines) == len(wanted)
    assert all(1 <= sample.length <= max_length for sample in samples)
    assert list(report.lengths) == [sample.length for sample in samples]


def test_half_of_a_surrogate_pair_is_read_as_serving_reads_it():
    writer = writer_of("chatml")
    messages = [
        {"role": "user", "content": "웃어 \ud83d"},
        {"role": "assistant", "content": "네 \ude00 하하"},
    ]
    (sample,), _ = tokenise([Conversation(messages, None, 1)], writer, LONG)
    prompt = writer.prompt_ids(messages[:1])
    assert whole(sample)[: len(prompt)] == prompt
    assert trained(writer, sample) == ["네 ? 하하<|im_end|>"]


def test_a_completion_of_nothing_is_no_answer():
    writer = writer_of("chatml")
    examples = [Completion("a", "b", 1), Completion("a", "", 2), Completion("a", " \n", 3)]
    samples, report = tokenise(examples, writer, LONG)
    assert len(samples) == 1
    assert report.dropped["there is no answer to train"].times == 2
    assert report.dropped["there is no answer to train"].first_line == 2


def test_functions_that_a_template_leaves_out_are_counted():
    tools = [{"type": "function", "function": {"name": "search", "parameters": {}}}]
    examples = [Conversation(MESSAGES, None, 1), Conversation(MESSAGES, tools, 2)]
    for name, times in (("gemma", 1), ("qwen", 0)):
        writer = writer_of(name)
        assert writer.writes_tools == (not times)
        _, report = tokenise(examples, writer, LONG)
        counts = [count for reason, count in report.truncated.items() if "functions" in reason]
        assert [(count.times, count.first_line) for count in counts] == [(1, 2)] * times


def test_what_has_no_answer_is_counted_with_its_line():
    writer = writer_of("gemma")
    user = MESSAGES[0]
    empty = {"role": "assistant", "content": " \n"}
    examples = [
        Conversation(MESSAGES, None, 1),
        Conversation([user], None, 2),
        Conversation([user, empty], None, 3),
        Conversation([MESSAGES[1]], None, 4),  # it answers nothing
        Conversation(MESSAGES[:2], None, 5, frozenset([1])),
        Conversation([user, user, MESSAGES[1]], None, 6),
        Conversation([*MESSAGES[:2], user], None, 7),  # the end is not answered
    ]
    samples, report = tokenise(examples, writer, LONG)
    assert list(report.lines) == [1, 7]
    assert len(samples) == 2
    none = report.dropped.pop("there is no answer to train")
    assert (none.times, none.first_line) == (4, 2)
    ((reason, refused),) = report.dropped.items()
    assert "Conversation roles must alternate" in reason
    assert (refused.times, refused.first_line) == (1, 6)
    assert json.loads(json.dumps(report.to_dict()))["dropped"][reason]["first_line"] == 6


def test_thinking_is_trained_in_every_turn_though_later_turns_do_not_see_it():
    writer = writer_of("qwen")
    thinking = [
        MESSAGES[0], MESSAGES[1] | {"reasoning_content": "열둘이다"},
        MESSAGES[2], MESSAGES[3] | {"reasoning_content": "don't"},
    ]  # fmt: skip
    samples, _ = tokenise([Conversation(thinking, None, 1)], writer, LONG)
    assert [trained(writer, sample) for sample in samples] == [
        [f"<think>\n열둘이다\n</think>\n\n{ANSWER}<|im_end|>"],
        [f"<think>\ndon't\n</think>\n\n{SECOND}<|im_end|>"],
    ]
    assert "열둘이다" not in writer.tokenizer.decode(whole(samples[1]), False)


def test_what_is_only_read_is_not_trained():
    writer = writer_of("chatml")
    (sample,), _ = tokenise([Conversation(MESSAGES, None, 1, frozenset([1]))], writer, LONG)
    assert trained(writer, sample) == [SECOND + "<|im_end|>"]


def test_kinds_may_be_mixed_and_keep_their_order():
    writer = writer_of("chatml")
    examples = [
        Document("가", 1), Conversation(MESSAGES[:2], None, 2), Completion("나", "다", 3),
        Conversation(MESSAGES[:2], None, 4), Document("라", 5),
    ] * 200  # fmt: skip
    samples, report = tokenise(examples, writer, LONG)
    assert list(report.lines) == [1, 2, 3, 4, 5] * 200
    assert [trained(writer, s) for s in samples[:5]] == [trained(writer, s) for s in samples[-5:]]
    assert report.examples == 1000


def test_the_template_follows_the_data():
    tokenizer = make_chat_tokenizer("chatml")
    writer, why = choose_template(tokenizer, tools=False)
    assert writer.own
    assert why == "the model's"
    writer, why = choose_template(tokenizer, tools=True)
    assert not writer.own
    assert writer.writes_tools
    assert "does not write the tools" in why
    assert choose_template(make_chat_tokenizer("qwen"), tools=True)[0].own
    assert "no system message" in choose_template(make_chat_tokenizer("gemma"), tools=False)[1]
    tokenizer.chat_templates = {}
    assert choose_template(tokenizer, tools=False)[1] == "hone's, because the model has none"


@pytest.mark.smoke
def test_wrong_requests():
    writer = writer_of("chatml")
    with pytest.raises(ConfigError, match="train_on is 'first'"):
        tokenise([], writer, 10, "first")
    with pytest.raises(ConfigError, match="max_length is 1"):
        tokenise([], writer, 1)
    endless = Tokenizer.train(["가"], 300)
    endless.eos_token, endless.eos_id = None, None
    with pytest.raises(CheckpointError, match="no end token"):
        tokenise([Completion("a", "b", 1)], Conversations(endless), 10)


def test_real_conversations_are_those_of_serving(hone_data):
    tokenizer = Tokenizer.load(hone_data / "tokenizers" / "chatml-49k")
    oracle = oracle_of(tokenizer)
    writer = Conversations(tokenizer)
    for name in ("alpaca_en_demo.json", "v1_sft_demo.jsonl"):
        examples = list(Examples(hone_data / "instruction_samples" / name))[:150]
        samples, report = tokenise(examples, writer, LONG)
        assert len(samples) == len(examples)
        assert set(report.ends) == {tokenizer.eos_id}
        for sample, example in zip(samples, examples, strict=True):
            expected = oracle.apply_chat_template(example.messages, return_dict=False)
            assert whole(sample) == expected[: len(whole(sample))]
            assert tokenizer.decode(expected[len(whole(sample)) :], False) == "\n"
            prompt = writer.prompt_ids(example.messages[:-1])
            answer = [*tokenizer.encode(example.messages[-1]["content"]), tokenizer.eos_id]
            assert list(sample.labels) == [IGNORED] * (len(prompt) - 1) + answer


def test_real_tool_calls(hone_data):
    tokenizer = Tokenizer.load(hone_data / "tokenizers" / "chatml-49k")
    examples = Examples(hone_data / "instruction_samples" / "glaive_toolcall_en_demo.json")
    assert examples.use_tools
    writer, _ = choose_template(tokenizer, examples.use_tools)
    some = [example for example in examples if example.line < 2000]
    samples, _ = tokenise(some, writer, 100_000)
    assert len(samples) == len(some)
    for sample, example in zip(samples, some, strict=True):
        answers = [m for m in example.messages if m["role"] == "assistant"]
        found = trained(writer, sample)
        assert len(found) == len(answers)
        for text, message in zip(found, answers, strict=True):
            if "tool_calls" in message:
                name = message["tool_calls"][0]["function"]["name"]
                assert text.startswith(f'<tool_call>\n{{"name": "{name}", "arguments": {{')
                assert text.endswith("\n</tool_call><|im_end|>")
            else:
                assert text == message["content"].strip() + "<|im_end|>"
