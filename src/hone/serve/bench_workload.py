"""What a load asks for: lengths, prompts and the times of arrival, all from one seed."""

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hone.core.errors import DataError, RequestError

# Mean tokens of prompts and of answers in two public sets, as Kwon et al. 2023 (PagedAttention,
# figure 11) count them: conversations of ShareGPT, and instructions of Alpaca. Half of each.
_MEANS = ((161.31, 337.99), (19.31, 58.45))
# The standard deviation of a length's logarithm: a long tail, as both sets have it.
_SPREAD = 0.8
_LONGEST = 2048  # prompt and answer together, where the server does not tell its context
_ANSWER = 128  # tokens, of a line of a file that does not say
_WORDS = (
    "the of and to in is that for with on as are from at by this have not which one river city "
    "winter table answer question reason number market letter engine garden window teacher story "
    "music paper station bridge weather morning price history island mountain 오늘 내일 서울 부산 "
    "날씨 주문 고객 가격 시간 사람 학교 바다 나무 이야기 질문 대답 음악 아침 저녁 여행 기차"
)


@dataclass(frozen=True, slots=True)
class Ask:
    """One request.

    Attributes:
        prompt: a text, token ids, or the messages of a conversation.
        max_tokens: the most tokens of the answer.
        leave_after: close the connection after so many pieces of the answer; None stays.
    """

    prompt: str | list[int] | list[dict[str, Any]]
    max_tokens: int
    leave_after: int | None = None

    @property
    def messages(self) -> list[dict[str, Any]]:
        """As a conversation."""
        if isinstance(self.prompt, str):
            return [{"role": "user", "content": self.prompt}]
        return self.prompt  # type: ignore[return-value]


@dataclass(frozen=True, slots=True)
class Words:
    """How many tokens a prompt of words has for a server: ``each`` per word, and ``extra``."""

    each: float = 1.3
    extra: float = 0.0

    def count(self, tokens: int) -> int:
        """The words that make about so many tokens."""
        return max(1, round((tokens - self.extra) / self.each))


def words(count: int, chooser: random.Random) -> str:
    """A text of ``count`` English and Korean words."""
    return " ".join(chooser.choices(_WORDS.split(), k=count))


@dataclass(frozen=True, slots=True)
class Lengths:
    """Tokens of prompts and answers: all alike, or None for the built-in mix.

    Attributes:
        context: prompt and answer together are no longer.
    """

    alike: tuple[int, int] | None = None
    context: int = _LONGEST

    def draw(self, chooser: random.Random) -> tuple[int, int]:
        """The tokens of one prompt and of its answer.

        The mix is log-normal around the means of a set; what is too long for the context is cut.
        """
        if self.alike is not None:
            return self.alike
        prompt, answer = (_log_normal(mean, chooser) for mean in chooser.choice(_MEANS))
        prompt = min(prompt, self.context // 2)
        return prompt, min(answer, self.context - prompt)


def _log_normal(mean: float, chooser: random.Random) -> int:
    # exp(mu + spread^2 / 2) is the mean of a log-normal distribution.
    return max(1, round(mean * chooser.lognormvariate(-(_SPREAD**2) / 2, _SPREAD)))


def drawn(
    lengths: Lengths, seed: int, size: Words = Words(), vocabulary: int | None = None
) -> Iterator[Ask]:
    """Requests without end, every prompt another.

    Args:
        size: turns tokens into words.
        vocabulary: prompts are random token ids below it instead of texts.
    """
    chooser = random.Random(seed)
    while True:
        prompt, answer = lengths.draw(chooser)
        if vocabulary is None:
            yield Ask(words(size.count(prompt), chooser), answer)
        else:
            yield Ask([chooser.randrange(vocabulary) for _ in range(prompt)], answer)


def from_file(asks: list[Ask], seed: int) -> Iterator[Ask]:
    """The requests of a file without end, in an order that the seed decides."""
    chooser = random.Random(seed)
    while True:
        yield from chooser.sample(asks, len(asks))


def arrivals(rate: float, seed: int) -> Iterator[float]:
    """The seconds at which requests arrive: a Poisson process of ``rate`` per second."""
    chooser = random.Random(seed ^ 0x5EED)
    now = 0.0
    while True:
        now += chooser.expovariate(rate)
        yield now


def parse_lengths(text: str) -> tuple[int, int] | Path | None:
    """``mix`` (None), ``prompt:answer`` in tokens, or a JSONL file.

    Raises:
        RequestError: it is none of them.
    """
    if text == "mix":
        return None
    prompt, colon, answer = text.partition(":")
    if colon and prompt.isdigit() and answer.isdigit():
        if int(prompt) and int(answer):
            return int(prompt), int(answer)
    elif Path(text).suffix in (".jsonl", ".json") or Path(text).is_file():
        return Path(text)
    raise RequestError(
        f"--lengths is {text!r}; give mix, tokens of prompt and answer such as 128:32, or a JSONL "
        "file of prompts."
    )


def read_asks(file: Path) -> list[Ask]:
    """The requests of a JSONL file: ``prompt`` or ``messages``, and ``max_tokens`` if it says so.

    Raises:
        DataError: the file or a line of it cannot be used.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is not UTF-8 text (byte {error.start}).") from error
    except OSError as error:
        raise DataError(f"Cannot read {file}: {error.strerror}.") from error
    asks = []
    # Not splitlines: a text may hold U+2028, which JSON allows inside a string.
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            asks.append(_ask(line, f"{file}, line {number}"))
    if not asks:
        raise DataError(f"{file} holds no prompts.")
    return asks


def _ask(line: str, where: str) -> Ask:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise DataError(f"{where}: not valid JSON ({error}).") from error
    if not isinstance(record, dict) or ("prompt" in record) == ("messages" in record):
        raise DataError(f"{where}: expected an object with one of `prompt` and `messages`.")
    name = "prompt" if "prompt" in record else "messages"
    value, most = record[name], record.get("max_tokens", _ANSWER)
    item, wanted = (
        (int, "a text or token ids") if name == "prompt" else (dict, "a list of messages")
    )
    items = isinstance(value, list) and {type(each) for each in value} == {item}
    if not items and not (name == "prompt" and isinstance(value, str) and value):
        raise DataError(f"{where}: `{name}` is {value!r}; expected {wanted}.")
    if type(most) is not int or most < 1:
        raise DataError(f"{where}: `max_tokens` is {most!r}; expected a whole number of 1 or more.")
    return Ask(value, most)
