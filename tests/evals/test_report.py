import re
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise

import pytest
from made_up import made_up_inputs

from hone.core.errors import HoneError
from hone.evals.records import Preview, Scored
from hone.evals.report import render_report, write_report
from hone.evals.summary import Variant

_VOID = {"meta", "br", "wbr", "link", "img", "hr", "input"}


class Page(HTMLParser):
    """The elements of a page; fails where tags do not balance."""

    def __init__(self, html):
        super().__init__(convert_charrefs=True)
        self.open, self.elements, self.words, self.within = [], [], [], []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes), tuple(self.open)))
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes), tuple(self.open)))

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag, f"</{tag}> out of place"

    def handle_data(self, data):
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())

    def tags(self, name):
        return [attributes for tag, attributes, _ in self.elements if tag == name]


@pytest.fixture(scope="module")
def inputs(shop, shop_schema):
    return made_up_inputs(shop, shop_schema)


@pytest.fixture(scope="module")
def html(inputs):
    return render_report(inputs)


@pytest.fixture(scope="module")
def page(html):
    return Page(html)


@pytest.mark.smoke
def test_report_is_one_file_without_network_or_script(html, page):
    assert not {"script", "link", "img", "iframe", "object", "embed", "form", "base"} & {
        tag for tag, _, _ in page.elements
    }
    for tag, attributes, _ in page.elements:
        assert not {name for name in attributes if name.startswith("on")}, tag
        assert not {"src", "srcset", "style"} & attributes.keys(), tag
        assert attributes.get("href", "#").startswith("#"), tag
    style = re.search(r"<style>(.*?)</style>", html, re.DOTALL).group(1)
    assert "url(" not in style
    assert "@import" not in style
    assert "://" not in html
    (policy,) = [m["content"] for m in page.tags("meta") if "http-equiv" in m]
    assert policy == "default-src 'none'; style-src 'unsafe-inline'"


def test_headline_and_every_score_come_with_their_numbers(page):
    for figure in (
        "Unseen queries 95.0% 92.7–96.6 · n = 500 ✓ goal of 95% reached",
        "Unseen phrasings 87.4% 84.2–90.0 · n = 500 ✓ goal of 85% reached",
        "Training 5 min 12 s",
        "Weights 3.51 MB int8; 12.6 MB in fp32",
        "3.16 M parameters",
    ):
        assert figure in page.text
    # Every row of the accuracy chart: group, execution with interval, exact match, n.
    row = r"(All|Korean|English|easy|Easy|Medium|Hard|Extra) \d+\.\d% \d+\.\d–\d+\.\d \d+\.\d% \d+"
    assert len(re.findall(row, page.text)) >= 14


def test_side_by_side(page):
    assert "3.60× smaller" in page.text
    assert "1.25× faster" in page.text
    assert "int8 writes the same query as fp32 for 996 of 1,000 questions" in page.text
    assert "0 answers became right and 4 wrong" in page.text
    assert "−0.2 points" in page.text


def test_wrong_answers_are_shown(page):
    assert "88 of 1,000 answers are wrong." in page.text
    assert "✗ does not run" in page.text
    assert "The query failed: misuse of aggregate: AVG()." in page.text
    assert "✗ same clauses, other values" in page.text


def test_run_settings_are_shown(page):
    for text in (
        "recipe",
        "muon",
        "2.13.0",
        "AMD EPYC",
        "greedy",
        "5f5f5f5f5f5f5f5f…",
        "hone chat",
    ):
        assert text.lower() in page.text.lower()
    assert "서울에 사는 고객의 이름은? ⏎ customers.city = '서울' ⏎ SQL:" in page.text


def test_database_is_shown(page):
    assert "order_ items" in page.text or "order_items" in page.text
    assert "주문 항목 · order item · 7,288 rows" in page.text
    assert "→ customers.id" in page.text


def test_page_is_accessible(html, page):
    assert page.tags("html") == [{"lang": "en"}]
    captions = len(page.tags("caption"))
    assert captions == len(page.tags("table"))
    for tag, attributes, within in page.elements:
        if tag == "svg" and "svg" not in within and "ul" not in within:
            assert "aria-label" in attributes or attributes.get("aria-hidden") == "true"
        if tag == "th":
            assert "scope" in attributes
    levels = [int(tag[1]) for tag, _, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    ids = [attributes["id"] for _, attributes, _ in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = [a["href"][1:] for a in page.tags("a")]
    assert set(targets) <= set(ids)
    assert any(a.get("lang") == "ko" for a in page.tags("h3"))
    assert "prefers-color-scheme: dark" in html
    assert "@media print" in html


def _luminance(colour):
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _contrast(one, two):
    low, high = sorted((_luminance(one), _luminance(two)))
    return (high + 0.05) / (low + 0.05)


def test_colours_have_contrast_in_light_and_dark(html):
    """WCAG 2.2: 4.5 for text, 3 for graphics."""
    palettes = re.findall(r":root \{(.*?)\}", html, re.DOTALL)[:2]
    assert len(palettes) == 2
    for palette in palettes:
        colour = dict(re.findall(r"--(\w+): (#\w{6})", palette))
        for text in ("ink", "muted", "accent", "ok", "bad", "goal", "keyword", "string", "number"):
            for ground in ("paper", "panel"):
                assert _contrast(colour[text], colour[ground]) >= 4.5, (text, ground)
        for text in ("ink", "keyword", "string", "number", "function"):
            assert _contrast(colour[text], colour["mark"]) >= 4.5, text
        assert _contrast(colour["fill"], colour["track"]) >= 3
        assert _contrast(colour["ink"], colour["fill"]) >= 3


EVIL = '<script>alert("x")</script><img src=x onerror=alert(1)>\'"&amp;\x00\x1b[2J\u202e'


def test_everything_is_escaped(inputs, shop_schema):
    table = replace(shop_schema.tables[0], name=EVIL)
    column = replace(table.columns[0], name=EVIL, type=EVIL)
    preview = Preview((EVIL,), ((EVIL,), (None,)), 2)
    records = tuple(
        Scored(
            question=EVIL,
            language=EVIL,
            hardness=EVIL,
            split=EVIL,
            pattern=EVIL,
            gold=f"SELECT '{EVIL}'",
            predicted=f'SELECT "{EVIL}" -- {EVIL}',
            ok=False,
            exact=False,
            error=error,
            result=preview,
            gold_result=preview,
        )
        for error in (None, EVIL)
    )
    changed = replace(
        inputs,
        title=EVIL,
        database=EVIL,
        schema=replace(shop_schema, tables=(replace(table, columns=(column,)),)),
        variants=(Variant(EVIL, records, 1, 1.0), Variant(EVIL, records, 1, 1.0)),
        prompt=EVIL,
        completion=EVIL,
        decoding={EVIL: EVIL},
        stage_seconds={EVIL: 1.0},
        manifest={EVIL: {EVIL: [EVIL, {EVIL: EVIL}]}, "b": {EVIL: {EVIL: EVIL}}},
        goals={EVIL: 0.5},
        next_commands=(EVIL,),
    )
    html = render_report(changed)
    page = Page(html)
    assert not page.tags("script")
    assert not page.tags("img")
    assert "<script" not in html
    assert not re.search("[\x00\x1b\u202e]", html)
    assert html.count("alert(&#34;x&#34;)") > 20


def test_the_sparsest_run_still_has_a_report(inputs, shop_schema):
    """No losses, no goals, one variant, English only, another set, everything right or nothing."""
    for ok in (True, False):
        record = replace(
            inputs.variants[0].records[0],
            ok=ok,
            language="en",
            split="dev",
            pattern="",
            result=Preview(("a",), (), 0),
            gold_result=None,
            gold_error=None if ok else "The gold query fails.",
        )
        changed = replace(
            inputs,
            variants=(Variant("bf16", (record,), 0, 0.0),),
            losses=(),
            goals={"unseen_queries": 0.9},
            stage_seconds={},
            manifest={},
            decoding={},
            next_commands=(),
            schema=replace(shop_schema, foreign_keys=()),
        )
        page = Page(render_report(changed))
        assert "Dev" in page.text
        assert "No compressed form was made." in page.text
        assert "No loss curve" in page.text
        assert "goal" not in page.text
        assert ("None: all 1 questions" if ok else "✗ unusable gold") in page.text


def test_report_is_written_whole(inputs, tmp_path, html):
    path = tmp_path / "run" / "report.html"
    write_report(path, inputs)
    assert path.read_text(encoding="utf-8") == html
    assert [file.name for file in path.parent.iterdir()] == ["report.html"]
    with pytest.raises(HoneError, match="in the way"):
        write_report(path / "report.html", inputs)


def test_same_inputs_same_bytes(inputs, html):
    assert render_report(inputs) == html
