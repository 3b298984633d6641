"""The sample shop: a small, realistic database in Korean and English for demos and tests.

Its rows and its file. Nothing here knows how questions are made from it.
"""

from hone.sql.sample.database import SAMPLE_GLOSSARY, write_sample_database

__all__ = ["SAMPLE_GLOSSARY", "write_sample_database"]
