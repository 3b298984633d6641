"""Ask a database from Python: python examples/ask_a_database.py RUN DATABASE "question"."""

import sys

import hone
from hone.recipes import Assistant
from hone.sql import open_database, read_schema

run, database_path, question = sys.argv[1:]

with open_database(database_path) as database:  # for reading only
    assistant = Assistant(hone.load(run), database, read_schema(database_path))
    answer = assistant.ask(question, row_cap=10)

print(answer.sql)
if answer.result is None:
    print("The query failed:", answer.error)
else:
    print(*answer.result.columns, sep="\t")
    for row in answer.result.rows:
        print(*row, sep="\t")
