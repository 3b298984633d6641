"""Questions in Korean and English with the SQL that answers them, for any database.

Meaning (``intents``, ``kinds_*``), words (``frames``, ``english``, ``korean``) and the split
(``patterns``). No models, no prompts, no files.
"""

from hone.sql.questions.generate import KINDS, Example, Split, generate, is_held_out
from hone.sql.questions.patterns import Pattern, patterns

__all__ = ["KINDS", "Example", "Pattern", "Split", "generate", "is_held_out", "patterns"]
