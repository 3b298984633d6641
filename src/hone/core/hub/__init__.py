"""The hub: from a model's name to its directory, and from a directory back to the hub.

Here: names, what is fetched and from where, uploads, and a sentence for each way in which the hub
can refuse. Not here: what the files mean (models, text), and the text of a model card (recipes).

The library that speaks to the hub is imported where it is used: most commands never need it.
"""

from hone.core.hub.checkpoints import find_checkpoint
from hone.core.hub.download import resolve
from hone.core.hub.names import CHECKPOINT_FILES, CONFIG_FILES, HubName, parse_name
from hone.core.hub.upload import checkpoint_files, destination, upload

__all__ = [
    "CHECKPOINT_FILES",
    "CONFIG_FILES",
    "HubName",
    "checkpoint_files",
    "destination",
    "find_checkpoint",
    "parse_name",
    "resolve",
    "upload",
]
