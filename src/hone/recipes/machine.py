"""The device that a run computes on, and what it has free."""

from dataclasses import replace

from hone.core.errors import ConfigError
from hone.plan import GPUS, Device
from hone.plan import find_device as known_device

# Of what is free, what a run may take: other programs and the allocator's gaps need some.
_SHARE_OF_MEMORY = 0.9


def find_device(name: str) -> str:
    """``auto`` is the first GPU if there is one.

    Raises:
        ConfigError: there is no such device here.
    """
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"{name!r} is no device; use auto, cpu or cuda.") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"The device is {name!r}, and this machine has no GPU. Use cpu.")
    return name


def memory_budget(device: str, asked: int | None = None) -> int:
    """Bytes that a run may take: those asked for, or most of what is free."""
    from hone.kernels.device import free_memory

    return asked or int(free_memory(device) * _SHARE_OF_MEMORY)


def device_name(device: str) -> str:
    """For people."""
    import torch

    if torch.device(device).type == "cuda":
        return str(torch.cuda.get_device_name(device))
    return "this machine's memory"


def plan_device(device: str, budget: int) -> Device:
    """The device as the planner knows it, with ``budget`` bytes; one that it does not know has an
    H100's rates.
    """
    if device == "cpu":
        return replace(known_device("cpu"), memory=budget, reserved=0)
    import torch

    name = torch.cuda.get_device_name(device)
    short = next((key for key in GPUS if key.split("-")[-1] in name.lower()), "h100")
    return replace(known_device(short), name=name, memory=budget, reserved=0)
