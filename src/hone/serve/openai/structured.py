"""What an output must be, from the several fields in which clients say so."""

import json
from typing import Any

from hone.engine.params import Grammar
from hone.serve.openai.errors import unsupported
from hone.serve.openai.schemas import ResponseFormat, Sampled, StructuredOutputs, wrong

_ANY_OBJECT = Grammar("json", '{"type": "object"}')


def grammar_of(body: Sampled) -> Grammar | None:
    """The grammar of ``body``; None where its output is free.

    Raises:
        ApiError: 400, more than one is given, or one of a kind that is not supported.
    """
    found = {
        "response_format": _response_format(body.response_format),
        "structured_outputs": _structured(body.structured_outputs),
        "guided_json": None if body.guided_json is None else _json(body.guided_json),
        "guided_regex": _plain("regex", body.guided_regex),
        "guided_choice": None if body.guided_choice is None else _choice(body.guided_choice),
        "guided_grammar": _plain("lark", body.guided_grammar),
    }
    given = {name: grammar for name, grammar in found.items() if grammar is not None}
    if len(given) > 1:
        names = list(given)
        raise wrong(names[1], f"{names[0]} and {names[1]} are both given; leave one out.")
    return next(iter(given.values()), None)


def _response_format(given: ResponseFormat | None) -> Grammar | None:
    if given is None or given.type == "text":
        return None
    if given.type == "json_object":
        return _ANY_OBJECT
    if given.json_schema is None or given.json_schema.schema_ is None:
        where = "response_format.json_schema"
        where += "" if given.json_schema is None else ".schema"
        raise wrong(where, f'{where} is missing; a response_format of "json_schema" needs it.')
    return _json(given.json_schema.schema_)


def _structured(given: StructuredOutputs | None) -> Grammar | None:
    if given is None:
        return None
    for name, value in (given.model_extra or {}).items():
        if value is not None and name in ("structural_tag", "whitespace_pattern"):
            raise unsupported(f"structured_outputs.{name}", "leave it out")
    grammars = [
        None if given.json_ is None else _json(given.json_),
        _plain("regex", given.regex),
        None if given.choice is None else _choice(given.choice),
        _plain("lark", given.grammar),
        _ANY_OBJECT if given.json_object else None,
    ]
    found = [grammar for grammar in grammars if grammar is not None]
    if len(found) > 1:
        raise wrong("structured_outputs", "structured_outputs holds more than one kind; give one.")
    return found[0] if found else None


def _json(schema: dict[str, Any] | str) -> Grammar:
    source = schema if isinstance(schema, str) else json.dumps(schema, ensure_ascii=False)
    return Grammar("json", source)


def _choice(choices: list[str]) -> Grammar:
    return Grammar("choice", json.dumps(choices, ensure_ascii=False))


def _plain(kind: Any, source: str | None) -> Grammar | None:
    return None if source is None else Grammar(kind, source)
