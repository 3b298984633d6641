import pytest

from hone.sql.execute import open_database
from hone.sql.sample import write_sample_database
from hone.sql.schema import read_schema


@pytest.fixture(scope="session")
def shop_file(tmp_path_factory):
    return write_sample_database(tmp_path_factory.mktemp("shop") / "shop.sqlite")


@pytest.fixture(scope="session")
def shop(shop_file):
    with open_database(shop_file) as database:
        yield database


@pytest.fixture(scope="session")
def shop_schema(shop_file):
    return read_schema(shop_file)
