"""The page of models: families and choices from the code, agreement as the tests measured it.

`make docs` runs the tests of all families, which note what they measure here, and writes the page;
a test holds the page against the code.
"""

import math
import os
import re
from collections import defaultdict
from pathlib import Path

from hone.models import find_family, known_families
from hone.models.blocks import BLOCKS
from hone.models.heads import MODELS
from hone.models.positions import POSITIONS, SCALINGS

PAGE = Path(__file__).resolve().parents[2] / "docs" / "models.md"
# Where to write the page when the tests have run; unset in ordinary runs.
WANTED = os.environ.get("HONE_MODELS_PAGE")
COLUMNS = ("outputs", "loss", "gradients")

# family -> column -> the largest error seen
errors: dict[str, dict[str, float]] = defaultdict(dict)
cases: dict[str, set[str]] = defaultdict(set)


def note(family, column, error):
    """Remember the error of a family's test, if it is the largest."""
    if not family:
        return
    assert not math.isnan(error)
    known = errors[family]
    known[column] = max(known.get(column, 0.0), error)
    test = os.environ.get("PYTEST_CURRENT_TEST", "")
    if found := re.search(r"::(\w+)::\w+\[(.+)\]", test):
        cases[family].add(f"{found[1]}[{found[2]}]")


def column_of_test():
    """Which column the running test fills."""
    test = os.environ.get("PYTEST_CURRENT_TEST", "")
    if "hidden_states" in test:
        return "outputs"
    return "loss" if "loss_and_gradients" in test else "other"


def rows_in(page):
    """What the page says it measured: family -> the cells that code does not know."""
    found = {}
    for line in page.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| `") and len(cells) == 8 and cells[0] != "`model_type`":
            found[cells[0].strip("`")] = cells[4:]
    return found


def measured_rows():
    """The same cells from the tests that have run."""
    return {
        family: [
            str(len(cases[family])),
            *(digits(errors[family].get(column, math.nan)) for column in COLUMNS),
        ]
        for family in errors
    }


def digits(error):
    """One digit and a power of ten."""
    return f"{error:.0e}".replace("e-0", "e-") if error else "0"


def first_sentence(thing):
    """What a docstring says first, on one line."""
    text = " ".join((thing.__doc__ or "").split())
    return re.split(r"(?<!al)[.]\s|:\s", text + " ")[0].rstrip(".").replace("``", "`")


def table(header, rows):
    """Lines of a Markdown table."""
    yield "| " + " | ".join(header) + " |"
    yield "|" + "---|" * len(header)
    for row in rows:
        yield "| " + " | ".join(row) + " |"


def make_page(measured):
    """The whole page; ``measured`` holds the cells that tests filled."""
    families = [find_family(name) for name in known_families() if name != "hone"]
    lines = [
        "# Models",
        "",
        "This page is written by `make docs` from the code and from the tests of every family.",
        "",
        "A directory of any of these families is read as it is, gives the numbers that",
        "transformers gives, and is written back so that transformers opens it. `hone show MODEL`",
        "prints the architecture of one.",
        "",
        "## Families",
        "",
        "Errors are the largest over all cases of a family's tests, in float32, on small random",
        "models: of logits and the hidden states after every layer (absolute), of the loss",
        "(absolute), and of the gradient of every weight (norm of the difference over the norm,",
        "where the gradient is more than rounding).",
        "Greedy generation is equal token by token, with the cache and without, in every case.",
        "",
        *table(
            (
                "`model_type`",
                "source",
                "usual head",
                "features",
                "cases",
                "outputs",
                "loss",
                "gradients",
            ),
            (
                [
                    f"`{family.model_type}`",
                    source(family),
                    family.head,
                    ", ".join(family.features),
                    *measured.get(family.model_type, ["-"] * 4),
                ]
                for family in families
            ),
        ),
        "",
        "## Heads",
        "",
        "Any body takes any head that its kind of attention allows: `load_model(DIR, head=...)`.",
        "Weights that a head lacks in the files are initialised, and a warning names them. A",
        "reward model is a classifier with one label.",
        "",
        *table(
            ("head", "what it does"),
            ([f"`{head}`", first_sentence(model)] for head, model in MODELS.items()),
        ),
        "",
        "## Choices",
        "",
        "Each is one field of `ModelConfig` and, where it makes sense for a decoder, one key of",
        "`[model]` in a recipe; see [the settings](text2sql.md).",
        "",
        "Multi-head, grouped-query and multi-query attention are `kv_heads` equal to `heads`,",
        "between, and 1. Attention is causal or bidirectional, to the same text or to a source,",
        "over everything or a sliding window.",
        "",
        *table(
            ("positions", "how"),
            ([f"`{name}`", first_sentence(kind)] for name, kind in POSITIONS.items()),
        ),
        "",
        *table(
            ("rotary scaling", "how"),
            ([f"`{name}`", first_sentence(kind)] for name, kind in SCALINGS.items()),
        ),
        "",
        *table(
            ("block", "how"),
            ([f"`{name}`", first_sentence(kind)] for name, kind in BLOCKS.items()),
        ),
        "",
    ]
    return "\n".join(lines)


def source(family):
    """The paper, from the first line of a family's file."""
    import importlib

    text = importlib.import_module(f"hone.models.families.{family.model_type}").__doc__ or ""
    return text.splitlines()[0].partition(":")[0].rstrip(".").replace("|", "/")
