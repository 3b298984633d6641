from hone.sql import read_schema


def _keys(path) -> list[tuple]:
    found = read_schema(path).foreign_keys
    return [(k.table, k.columns, k.ref_table, k.ref_columns, k.inferred) for k in found]


def test_declared_keys_in_every_form(make_database) -> None:
    path = make_database(
        """
        CREATE TABLE Parent (a INT, b INT, c INT UNIQUE, PRIMARY KEY (a, b));
        CREATE TABLE child (x INT, y INT, z INT REFERENCES parent(C), gone INT REFERENCES nowhere,
          half INT REFERENCES Parent,
          FOREIGN KEY (x, y) REFERENCES Parent, FOREIGN KEY (x, y) REFERENCES Parent(A, B));
        CREATE TABLE node (id INTEGER PRIMARY KEY, up INT REFERENCES node(id));
        """
    )
    found = _keys(path)
    assert ("child", ("x", "y"), "Parent", ("a", "b"), False) in found
    assert ("child", ("z",), "Parent", ("c",), False) in found
    assert ("node", ("up",), "node", ("id",), False) in found
    # The key to a missing table, the one that names half a primary key and the repeat are dropped.
    assert len(found) == 3


def test_inferred_only_where_nothing_is_declared(make_database) -> None:
    tables = """
        CREATE TABLE categories (id INTEGER PRIMARY KEY, name TEXT);
        CREATE TABLE products (id INTEGER PRIMARY KEY, category_id INT, categoryId INT, price INT);
        INSERT INTO categories VALUES (1, 'a'), (2, 'b');
        INSERT INTO products VALUES (1, 1, 7, 5), (2, 2, 8, 6), (3, 1, 9, 7);
    """
    # The second column has the right name and values that no category has.
    assert _keys(make_database(tables, "one.sqlite")) == [
        ("products", ("category_id",), "categories", ("id",), True)
    ]
    declared = "CREATE TABLE links (product_id INT REFERENCES products(id));"
    found = _keys(make_database(tables + declared, "two.sqlite"))
    assert found == [("links", ("product_id",), "products", ("id",), False)]


def test_inferred_by_name_without_rows(make_database) -> None:
    path = make_database(
        "CREATE TABLE team (team_id INTEGER PRIMARY KEY); CREATE TABLE player (id INT, team_id INT)"
    )
    assert _keys(path) == [("player", ("team_id",), "team", ("team_id",), True)]


def test_two_tables_with_an_id_are_not_related(make_database) -> None:
    path = make_database(
        """
        CREATE TABLE a (id INTEGER PRIMARY KEY, name TEXT);
        CREATE TABLE b (id INTEGER PRIMARY KEY, name TEXT);
        INSERT INTO a VALUES (1, 'x'); INSERT INTO b VALUES (1, 'x');
        """
    )
    assert _keys(path) == []
