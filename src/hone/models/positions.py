"""How a model is told the order of tokens: each way is one named choice; and rotation in files."""

from dataclasses import MISSING, dataclass, fields
from typing import Any, ClassVar

from hone.core.errors import CheckpointError
from hone.models.rotary import (
    SCALINGS,
    DynamicScaling,
    LinearScaling,
    Llama3Scaling,
    LongScaling,
    RopeScaling,
    Rotary,
    YarnScaling,
    check_whole,
)

__all__ = [
    "POSITIONS",
    "Alibi",
    "Buckets",
    "DynamicScaling",
    "Learned",
    "LinearScaling",
    "Llama3Scaling",
    "LongScaling",
    "NoPositions",
    "Positions",
    "RopeScaling",
    "Rotary",
    "Sinusoidal",
    "YarnScaling",
    "read_rope",
    "write_rope",
]


@dataclass(frozen=True, slots=True)
class Learned:
    """Each position has a row of an embedding (Vaswani et al. 2017, section 3.5), the first at
    row ``offset``.
    """

    name: ClassVar[str] = "learned"
    offset: int = 0

    def __post_init__(self) -> None:
        check_whole(self, "offset", 0)


@dataclass(frozen=True, slots=True)
class Sinusoidal:
    """Sines and cosines are added to the embedding (Vaswani et al. 2017, section 3.5)."""

    name: ClassVar[str] = "sinusoidal"


@dataclass(frozen=True, slots=True)
class Alibi:
    """Scores fall with distance, each head at its own slope (Press et al. 2022, section 3)."""

    name: ClassVar[str] = "alibi"


@dataclass(frozen=True, slots=True)
class Buckets:
    """Each head adds a learnt number per bucket of distances (Raffel et al. 2020, section 2.1).

    Attributes:
        count: buckets; a bidirectional model has half of them for each direction.
        max_distance: from here on all distances share one bucket.
    """

    name: ClassVar[str] = "buckets"
    count: int = 32
    max_distance: int = 128

    def __post_init__(self) -> None:
        check_whole(self, "count", 4)
        check_whole(self, "max_distance", self.count // 2 + 1)


@dataclass(frozen=True, slots=True)
class NoPositions:
    """Only causality tells the order of tokens, or something other than attention does."""

    name: ClassVar[str] = "none"


Positions = Rotary | Learned | Sinusoidal | Alibi | Buckets | NoPositions
POSITIONS: dict[str, type[Positions]] = {
    choice.name: choice for choice in (Rotary, Learned, Sinusoidal, Alibi, Buckets, NoPositions)
}


# Where old files keep the base: Gemma 3 and ModernBERT have one per type of layer.
_THETA_KEYS: dict[str | None, tuple[str, ...]] = {
    None: ("rope_theta", "rotary_emb_base"),
    "full_attention": ("rope_theta", "global_rope_theta"),
    "sliding_attention": ("rope_local_base_freq", "local_rope_theta"),
}
_FRACTION_KEYS = ("partial_rotary_factor", "rotary_pct")
_CONTEXT = "original_max_position_embeddings"


def read_rope(
    values: dict[str, Any],
    where: str,
    theta_default: float = 10000.0,
    layer_type: str | None = None,
    fraction_default: float = 1.0,
) -> Rotary:
    """The rotary settings of a ``config.json``, as transformers would take them.

    They stand in ``rope_parameters``, where a model with two kinds of layers has an object for each
    ``layer_type``; or, in older files, in ``rope_scaling`` and beside it. Keys that the rope type
    does not use are passed over.

    Args:
        values: the parsed file.
        where: its name for error messages.
        theta_default, fraction_default: the family's own, where the file is silent.
        layer_type: "full_attention" or "sliding_attention" in a family with settings for each. An
            old ``rope_scaling`` then holds for full attention only.

    Raises:
        CheckpointError: an unknown rope type, a missing key, or a value that cannot be.
    """
    rope = _rope_object(values, where, layer_type)
    theta = _first(rope.get("rope_theta"), *(values.get(key) for key in _THETA_KEYS[layer_type]))
    fraction = _first(
        rope.get("partial_rotary_factor"), *(values.get(key) for key in _FRACTION_KEYS)
    )
    try:
        return Rotary(
            theta=_first(theta, theta_default),
            fraction=_first(fraction, fraction_default),
            scaling=_read_scaling(rope, values, layer_type),
        )
    except CheckpointError as error:
        raise CheckpointError(f"{where}: {error}") from error


def write_rope(rotary: Rotary, fraction_default: float = 1.0) -> dict[str, Any]:
    """The content of ``rope_parameters``; :func:`read_rope` with the same default reads it back."""
    scaling = rotary.scaling
    rope: dict[str, Any] = {
        "rope_theta": rotary.theta,
        "rope_type": "default" if scaling is None else scaling.kind,
    }
    if rotary.fraction != fraction_default:
        rope["partial_rotary_factor"] = rotary.fraction
    for field in () if scaling is None else fields(scaling):
        value = getattr(scaling, field.name)
        if value != field.default:
            rope[field.name] = list(value) if isinstance(value, tuple) else value
    return dict(sorted(rope.items()))


def _rope_object(values: dict[str, Any], where: str, layer_type: str | None) -> dict[str, Any]:
    for key in ("rope_parameters", "rope_scaling"):
        if not isinstance(values.get(key) or {}, dict):
            raise CheckpointError(
                f"{where}: the rotary settings in {key} are {values[key]!r}; expected an object."
            )
    new, old = values.get("rope_parameters") or {}, values.get("rope_scaling") or {}
    split = any(isinstance(value, dict) for value in new.values())
    if layer_type is None:
        if split:
            raise CheckpointError(
                f"{where}: rope_parameters holds settings for {', '.join(new)}; this family has "
                "the same for all layers."
            )
        return old or new
    if new and not split and any(value is not None for value in new.values()):
        raise CheckpointError(
            f"{where}: rope_parameters holds {', '.join(new)}; expected an object for each type of "
            f"layer, such as {layer_type!r}."
        )
    rope = new.get(layer_type) or {}
    if not isinstance(rope, dict):
        raise CheckpointError(
            f"{where}: rope_parameters has {rope!r} for {layer_type}; expected an object."
        )
    return rope | old if layer_type == "full_attention" else rope


def _read_scaling(
    rope: dict[str, Any], values: dict[str, Any], layer_type: str | None
) -> RopeScaling | None:
    kind = _first(rope.get("rope_type"), rope.get("type"), "default")
    # What LongRoPE was called in Phi-3's first files.
    if kind == "su" or (kind == "yarn" and "short_factor" in rope):
        kind = LongScaling.kind
    if kind == "default":
        return None
    if not isinstance(kind, str) or kind not in SCALINGS:
        raise CheckpointError(
            f"rope_type is {kind!r}; hone computes default, {', '.join(SCALINGS)}."
        )
    chosen: dict[str, Any] = {}
    for field in fields(SCALINGS[kind]):
        value = rope.get(field.name)
        if field.name == _CONTEXT:
            # Phi-3 has it beside the settings, where it also counts for more.
            beside = values.get(_CONTEXT) if layer_type is None else None
            value = _first(beside, value, values.get("max_position_embeddings"))
        if value is None and field.default is MISSING and field.name not in rope:
            raise CheckpointError(f"rope_type {kind!r} needs the key {field.name!r}.")
        if value is not None or field.default is MISSING:
            chosen[field.name] = tuple(value) if isinstance(value, list) else value
    return SCALINGS[kind](**chosen)


def _first(*values: Any) -> Any:
    return next((value for value in values if value is not None), None)
