"""``python -m hone``: the command line, as ``torchrun -m hone`` starts it in several processes."""

from hone.cli.app import main

main()
