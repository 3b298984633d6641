import html
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hone.evals.highlight import highlight, tokens

pytestmark = pytest.mark.smoke


def plain(markup):
    return html.unescape(re.sub("<[^>]*>", "", markup))


def test_kinds():
    kinds = {
        token.text: token.kind for token in tokens("SELECT COUNT(*) FROM 매장 WHERE a >= 1.5e3")
    }
    assert kinds["SELECT"] == kinds["FROM"] == "keyword"
    assert kinds["COUNT"] == "function"
    assert kinds["매장"] == kinds["a"] == "word"
    assert kinds["1.5e3"] == "number"
    assert kinds[">="] == "sign"


def test_keywords_inside_strings_and_names_are_text():
    found = [
        t for t in tokens("""SELECT "from", 'it''s where' FROM [group by]""") if t.kind != "space"
    ]
    assert [t.kind for t in found] == ["keyword", "name", "sign", "string", "keyword", "name"]


def test_keyword_before_a_bracket_is_no_function():
    assert tokens("IN (1)")[0].kind == "keyword"


@given(st.text(), st.text())
def test_any_text_comes_back_whole_and_escaped(sql, other):
    assert "".join(token.text for token in tokens(sql)) == sql
    for markup in (highlight(sql), highlight(sql, other)):
        assert plain(markup) == sql
        assert set(re.findall("<([^>]*)>", markup)) <= {
            "mark",
            "/mark",
            "/span",
            *(f'span class="sql-{kind}"' for kind in ("keyword", "function", "string", "name")),
            *(f'span class="sql-{kind}"' for kind in ("number", "comment")),
        }
        assert markup.count("<mark>") == markup.count("</mark>")


def marked(sql, other):
    return [plain(part) for part in re.findall("<mark>(.*?)</mark>", highlight(sql, other))]


def test_marks_what_the_other_query_lacks():
    gold = "SELECT name FROM stores WHERE city = '서울' ORDER BY name DESC"
    predicted = "select name FROM stores WHERE city = '부산' ORDER BY name"
    assert marked(predicted, gold) == ["'부산'"]
    assert marked(gold, predicted) == ["'서울'", "DESC"]
    assert marked(gold, gold) == []


def test_neighbouring_marks_join():
    assert marked("SELECT a FROM t ORDER BY a", "SELECT a FROM t") == ["ORDER BY a"]
