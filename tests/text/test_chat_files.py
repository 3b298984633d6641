"""Where chat templates lie in a checkpoint, and which one a conversation is written by."""

import json

import pytest
from tokenizer_zoo import change_config, make

from hone.core.errors import CheckpointError
from hone.text.chat import ChatTemplate
from hone.text.chat_files import read_templates, write_templates
from hone.text.tokenizer import Tokenizer

TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {}}}]
CONVERSATION = [{"role": "user", "content": "안녕 <s>"}]
NAMED = [
    {"name": "default", "template": "{{ bos_token }}D{{ messages[0].content }}"},
    {"name": "tool_use", "template": "{{ bos_token }}T{{ tools | tojson }}"},
    {"name": "rag", "template": "R{{ documents | length }}"},
]


def lay_out(folder, layout):
    """The same three templates (or fewer) in one of the places that there have been."""
    make("mistral", folder)
    single = folder / "chat_template.jinja"
    single.unlink()
    if layout == "old, one":
        change_config(folder, chat_template=NAMED[0]["template"])
    elif layout == "old, several":
        change_config(folder, chat_template=NAMED)
    elif layout == "files":
        (folder / "additional_chat_templates").mkdir()
        single.write_text(NAMED[0]["template"])
        for item in NAMED[1:]:
            file = folder / "additional_chat_templates" / f"{item['name']}.jinja"
            file.write_text(item["template"])
    elif layout == "both":
        change_config(folder, chat_template="the old one")
        single.write_text(NAMED[0]["template"])
    elif layout == "no default":
        change_config(folder, chat_template=NAMED[1:])


@pytest.mark.parametrize("layout", ["old, one", "old, several", "files", "both", "no default"])
@pytest.mark.parametrize("tools", [None, [], TOOLS])
@pytest.mark.parametrize("name", [None, "rag", "default"])
def test_the_template_that_transformers_takes(tmp_path, layout, tools, name):
    from transformers import AutoTokenizer

    lay_out(tmp_path, layout)
    ours, theirs = Tokenizer.load(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    if name is not None and name not in ours.chat_templates:
        with pytest.raises(CheckpointError, match="choose one of"):
            ours.chat_template_for(tools, name)
        return
    if name is None and tools is None and layout == "no default":
        with pytest.raises(CheckpointError, match="'default'; choose one of rag, tool_use"):
            ours.chat_template_for(tools)
        with pytest.raises(ValueError, match="no default"):
            theirs.get_chat_template(tools=tools)
        return
    source = ours.chat_template_for(tools, name)
    if not (name and isinstance(theirs.chat_template, str)):
        assert source == theirs.get_chat_template(name, tools)
    rendered = ChatTemplate(source, ours.config).render(CONVERSATION, tools, documents=[])
    options = {"tools": tools, "documents": [], "chat_template": source}
    assert rendered == theirs.apply_chat_template(CONVERSATION, tokenize=False, **options)
    ids = theirs.apply_chat_template(CONVERSATION, return_dict=False, **options)
    assert ours.encode(rendered) == ids
    assert ids[:2] != [ours.bos_id, ours.bos_id]


@pytest.mark.parametrize("layout", ["old, one", "old, several", "files", "no default"])
def test_templates_are_saved_where_transformers_looks(tmp_path, layout):
    from transformers import AutoTokenizer

    lay_out(tmp_path / "a", layout)
    ours = Tokenizer.load(tmp_path / "a")
    ours.save(tmp_path / "b")
    assert Tokenizer.load(tmp_path / "b").chat_templates == ours.chat_templates
    assert "chat_template" not in json.loads((tmp_path / "b/tokenizer_config.json").read_text())
    theirs = AutoTokenizer.from_pretrained(tmp_path / "b").chat_template
    assert theirs == (ours.chat_template if layout == "old, one" else ours.chat_templates)


def test_no_template_is_no_error(tmp_path):
    lay_out(tmp_path, "none")
    ours = Tokenizer.load(tmp_path)
    assert ours.chat_template is None
    assert ours.chat_template_for(TOOLS) is None


def test_a_mapping_of_templates_counts_as_a_list(tmp_path):
    assert read_templates(tmp_path, {"chat_template": {"default": "a"}}) == {"default": "a"}


@pytest.mark.parametrize("name", ["../escaped", "a/b", "", "..", "."])
def test_no_template_is_written_outside_its_folder(tmp_path, name):
    with pytest.raises(CheckpointError, match="cannot be the name"):
        write_templates(tmp_path / "model", {name: "x"})
    assert not list(tmp_path.rglob("*.jinja"))
