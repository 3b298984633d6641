"""The command line: one file per command, each a thin shell over the Python API.

Parsing and printing only; what a command does lives in the rooms above. Heavy imports stay inside
the functions, so that ``hone --help`` is quick.
"""
