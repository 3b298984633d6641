"""LoRA and DoRA: small trained updates beside frozen weights, in peft's files.

Here: settings, the layers that stand in for a model's own, switching and merging, files.
Not here: the products (kernels), number formats of the base (quant), training (train).

Use::

    add_adapter(model, LoraConfig(r=16, alpha=32, targets="all-linear"))
    train(model, ...)                                # only the adapter's weights have gradients
    save_adapter(model, "out")                       # opens in peft
    load_adapter(model, "other", "other")            # from peft, or from here
    set_adapter(model, None)                         # the model as it was
    merge(model)
"""

from hone.adapters.config import LoraConfig
from hone.adapters.files import (
    is_adapter,
    load_adapter,
    read_adapter_config,
    read_head,
    read_labels,
    save_adapter,
)
from hone.adapters.switch import (
    add_adapter,
    merge,
    remove_adapters,
    resize_vocabulary,
    set_adapter,
    unmerge,
)

__all__ = [
    "LoraConfig",
    "add_adapter",
    "is_adapter",
    "load_adapter",
    "merge",
    "read_adapter_config",
    "read_head",
    "read_labels",
    "remove_adapters",
    "resize_vocabulary",
    "save_adapter",
    "set_adapter",
    "unmerge",
]
