"""Text in and out: tokenizers, chat and prompt templates, Korean particles.

Training and serving render through the same functions here. No databases and no torch.
"""
