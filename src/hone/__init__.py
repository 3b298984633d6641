"""hone: small, specialised language models, from raw data to a served endpoint."""

__version__ = "0.1.0"
