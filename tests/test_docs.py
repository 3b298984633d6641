"""The pages say what is so: their commands, settings, links and code exist and agree."""

import ast
import importlib
import json
import re
import shlex
import sqlite3
import tomllib
from contextlib import closing
from dataclasses import MISSING, fields
from pathlib import Path

import pytest
import typer.main

from hone.cli.app import app
from hone.core.config import Settings, parse
from hone.core.errors import RequestError
from hone.engine.options import EngineOptions
from hone.recipes.settings import Recipe, load_recipe
from hone.recipes.text_settings import TextRecipe
from hone.serve.openai.schemas import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    EmbeddingRequest,
    QueryRequest,
    QuestionRequest,
    TokenizeRequest,
)
from hone.sql import ValueIndex, open_database, read_schema
from hone.text.prompts import text2sql_prompt

pytestmark = pytest.mark.smoke

ROOT = Path(__file__).resolve().parents[1]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
# The log tells what was typed on its day, which need not exist any more.
CURRENT = [page for page in PAGES if page.name != "log.md"]
GUIDES = [
    ROOT / name for name in ("README.md", "README.ko.md", "docs/text2sql.md", "docs/serving.md")
]

_FENCE = re.compile(
    r"(?:<!-- file: (?P<file>\S+) -->\n)?^```(?P<language>\w*)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
_INLINE = re.compile(r"`([^`\n]+)`")
_LINK = re.compile(r"\]\(([^)\s]+)\)")


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def read(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def blocks(page: Path, language: str | None = None) -> list[tuple[str, str, str | None]]:
    """(language, text, the file that it must equal) of every fenced block."""
    found = [(m["language"], m["text"], m["file"]) for m in _FENCE.finditer(read(page))]
    return [block for block in found if language in (None, block[0])]


def prose(page: Path) -> str:
    return _FENCE.sub("", read(page))


def inline(page: Path) -> list[str]:
    return _INLINE.findall(prose(page))


def commands(page: Path) -> list[list[str]]:
    """The words after ``hone`` of every command on a page, in blocks and in the text."""
    lines = [line for _, text, _ in blocks(page, "sh") for line in text.splitlines()]
    found = []
    for line in [*lines, *inline(page)]:
        for part in re.split(r"\s(?:\||&&)\s", line):
            words = shlex.split(part) if re.match(r"(\S*/)?hone\s", part) else []
            if words:
                found.append(words[1:])
    return found


def test_both_readmes_say_the_same():
    english, korean = (ROOT / name for name in ("README.md", "README.ko.md"))
    assert blocks(english) == blocks(korean)

    def shape(page: Path) -> list[str]:
        """Headings, table rows by their number of cells, list items and comments, in order."""
        lines = prose(page).splitlines()
        kinds = [re.match(r"#+ |\||- |\*\*\d|<!-- .* -->", line) for line in lines]
        return [
            f"{found[0]}{line.count('|')}"
            for found, line in zip(kinds, lines, strict=True)
            if found
        ]

    assert shape(english) == shape(korean)

    def links(page: Path) -> list[str]:
        return [link for link in _LINK.findall(prose(page)) if not link.startswith("README")]

    assert links(english) == links(korean)
    code = [word for word in inline(english) if not re.search("[가-힣]", word)]
    assert set(code) == {word for word in inline(korean) if not re.search("[가-힣]", word)}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page):
    for link in _LINK.findall(prose(page)):
        target = link.partition("#")[0]
        if target and "://" not in target:
            assert (page.parent / target).exists(), f"{name_of(page)} links to {link}"


@pytest.mark.parametrize("page", CURRENT, ids=name_of)
def test_every_command_exists_with_its_options(page):
    group = typer.main.get_command(app)
    own = {option for parameter in group.params for option in parameter.opts} | {"--help"}
    for words in commands(page):
        while words and words[0].startswith("-"):
            assert words.pop(0) in own
        if not words:
            continue
        name, *arguments = words
        assert name in group.commands, f"{name_of(page)}: there is no hone {name}"
        arguments = [word for word in arguments if word != "--help"]
        if arguments:
            context = group.commands[name].make_context(name, list(arguments))
            if name == "run":
                load_recipe("demo", context.params["assignments"] or ())


@pytest.mark.parametrize("page", GUIDES, ids=name_of)
def test_options_in_the_text_exist(page):
    group = typer.main.get_command(app)
    commands_ = [group, *group.commands.values(), *group.commands["bench"].commands.values()]
    known = {
        option
        for command in commands_
        for parameter in command.params
        for option in (*parameter.opts, *parameter.secondary_opts)
    }
    used = {code.split()[0] for code in inline(page) if code.startswith("--")}
    assert used
    assert used <= known


@pytest.mark.parametrize("page", CURRENT, ids=name_of)
def test_make_has_every_target(page):
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    code = [*inline(page), *(text for _, text, _ in blocks(page, "sh"))]
    named = {target for text in code for target in re.findall(r"\bmake ([a-z][\w-]*)", text)}
    assert named <= targets


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_python_compiles_and_imports_what_is_there(page):
    for _, text, file in blocks(page, "python"):
        if file is not None:
            assert text == (ROOT / file).read_text(encoding="utf-8"), f"it is not {file}"
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("hone"):
                module = importlib.import_module(node.module)
                assert all(hasattr(module, alias.name) for alias in node.names), ast.unparse(node)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_settings_and_data_can_be_read(page):
    for _, text, _ in blocks(page, "toml"):
        values = tomllib.loads(text)
        if "data" in values:
            on_text = "text" in values.get("data", {})
            parse(TextRecipe if on_text else Recipe, values, page)
        else:
            assert values.keys() <= {"tables", "columns"}
    for _, text, _ in blocks(page, "json"):
        for line in text.splitlines():
            json.loads(line)


def default_text(value: object) -> str:
    """A default as the tables of settings write it."""
    if value is None:
        return "none"
    return f"`{json.dumps(list(value) if isinstance(value, tuple) else value)}`"


def test_the_table_of_settings_is_complete():
    text = read(ROOT / "docs" / "text2sql.md")
    for name, field in Recipe.model_fields.items():
        kinds = (field.annotation, *getattr(field.annotation, "__args__", ()))
        table = next((k for k in kinds if isinstance(k, type) and issubclass(k, Settings)), None)
        if table is None:
            default = "file name" if name == "name" else default_text(field.default)
            assert f"| `{name}` | {default} |" in text
            continue
        section = text.partition(f"### `[{name}]`\n")[2].partition("\n#")[0]
        rows = re.findall(r"^\| `(\w+)` \| (.+?) \|", section, re.MULTILINE)
        assert rows == [
            (key, default_text(value.get_default(call_default_factory=True)))
            for key, value in table.model_fields.items()
        ]


def test_the_table_of_sampling_parameters_is_complete():
    import hone

    text = read(ROOT / "docs" / "python.md")
    section = text.partition("### `hone.SamplingParams`")[2].partition("\n#")[0]
    assert re.findall(r"^\| `(\w+)` \| `(.+?)` \|", section, re.MULTILINE) == [
        (field.name, repr(field.default))
        for field in fields(hone.SamplingParams)
        if field.default is not MISSING
    ]


def test_the_table_of_engine_options_is_complete():
    text = read(ROOT / "docs" / "python.md")
    section = text.partition("### `EngineOptions`")[2].partition("\n#")[0]
    assert re.findall(r"^\| `(\w+)` \| `(.+?)` \|", section, re.MULTILINE) == [
        (
            field.name,
            json.dumps(field.default) if isinstance(field.default, str) else repr(field.default),
        )
        for field in fields(EngineOptions)
    ]


def test_the_table_of_options_of_the_server_is_complete():
    text = read(ROOT / "docs" / "serving.md")
    section = text.partition("\n## Options\n")[2].partition("\n## ")[0]
    told = dict(re.findall(r"^\| `(--[\w-]+)` \| (.+?) \|", section, re.MULTILINE))
    options = [
        p for p in typer.main.get_command(app).commands["serve"].params if p.opts[0][0] == "-"
    ]
    assert sorted(told) == sorted(option.opts[0] for option in options)
    for option in options:
        default = option.default
        if default is False:
            default = "off"
        if default is not None and default != []:
            assert told[option.opts[0]] == (
                f"{default:g}" if isinstance(default, float) else str(default)
            )


@pytest.mark.parametrize(
    "body",
    [
        ChatRequest,
        CompletionRequest,
        EmbeddingRequest,
        TokenizeRequest,
        DetokenizeRequest,
        QuestionRequest,
        QueryRequest,
    ],
)
def test_every_field_of_a_request_is_on_the_page(body):
    text = read(ROOT / "docs" / "serving.md")
    section = text.partition("\n## Endpoints\n")[2].partition("\n### Errors\n")[0]
    named = set(re.findall(r"`(\w+)`", section))
    assert named >= {*body.model_fields, *body.refused}


def test_queries_are_refused_in_the_words_of_the_page(tmp_path):
    with closing(sqlite3.connect(tmp_path / "shop.sqlite")) as connection:
        connection.execute("CREATE TABLE customers (id INTEGER)")
    rows = re.findall(
        r"^\| `([A-Z][^`]+)` \| (The query .+) \|$", read(ROOT / "docs/text2sql.md"), re.MULTILINE
    )
    assert len(rows) >= 4
    with open_database(tmp_path / "shop.sqlite") as database:
        for sql, answer in rows:
            with pytest.raises(RequestError) as caught:
                database.execute(sql)
            assert str(caught.value) == answer


def test_slots_work_as_the_page_shows():
    section = read(ROOT / "docs/text2sql.md").partition("\n## Slots")[2].partition("\n## ")[0]
    question, *prompt, template, sql = re.findall(r"^\|.*\| `(.+)` \|$", section, re.MULTILINE)[:6]
    index = ValueIndex([("stores", "city", ["서울"]), ("customers", "city", ["서울"])])
    made = text2sql_prompt(question, index.link(question))
    assert made.text.splitlines() == prompt
    assert made.fill(template) == sql


def test_comments_give_the_names_that_the_page_says(tmp_path):
    ((_, statement, _),) = blocks(ROOT / "docs" / "text2sql.md", "sql")
    with closing(sqlite3.connect(tmp_path / "shop.sqlite")) as connection:
        connection.execute(statement)
    table = read_schema(tmp_path / "shop.sqlite").tables[0]
    assert (table.labels.en[0], table.labels.ko[0]) == ("order", "주문")
    assert (table.columns[1].labels.en[0], table.columns[1].labels.ko[0]) == ("total", "합계")
