from hone.recipes.questions import make_questions
from hone.recipes.settings import DataSettings
from hone.sql import open_database, read_schema
from hone.sql.sample import SAMPLE_GLOSSARY, write_sample_database


def test_nothing_that_the_model_reads_or_writes_is_both_trained_on_and_held_out(tmp_path):
    """Values are slots, so two queries may differ and still give the model the same prompt."""
    path = write_sample_database(tmp_path / "shop.sqlite")
    data = DataSettings(questions=4000, held_out=200)
    with open_database(path) as database:
        train, held_out = make_questions(data, 0, database, read_schema(path, SAMPLE_GLOSSARY))
    assert len(held_out) == 400
    assert len(train) < 4000  # some were left out for it: the test would see them otherwise
    assert not {q.prompt for q in train} & {q.prompt for q in held_out}
    assert not {q.sql for q in train} & {q.sql for q in held_out}
