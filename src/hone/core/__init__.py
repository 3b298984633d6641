"""What every room needs: errors, atomic files, configuration, seeds and progress.

Nothing here knows about models or data, and nothing here imports torch.
"""
