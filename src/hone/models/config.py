"""``config.json`` of a Llama-shaped model, as transformers writes and reads it."""

import math
from dataclasses import dataclass, fields
from typing import Any

from hone.core.errors import CheckpointError

_MODEL_TYPE = "llama"
_ROPE_TYPES = ("default", "llama3")
# The release whose files we match; readers use it only to tell old layouts from new ones.
_TRANSFORMERS_VERSION = "5.23.0"


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """Llama 3.1's stretching of the low rotary frequencies (its model card and reference code)."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int


@dataclass(frozen=True, slots=True)
class LlamaConfig:
    """Sizes and switches of a decoder of the Llama shape; field names are Hugging Face's.

    ``num_key_value_heads`` and ``head_dim`` of 0 mean: as many as query heads, and
    ``hidden_size / num_attention_heads``; they are filled in on construction.

    Raises:
        CheckpointError: sizes that do not fit one another.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int = 0
    head_dim: int = 0
    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    initializer_range: float = 0.02
    bos_token_id: int | None = None
    eos_token_id: int | tuple[int, ...] | None = None
    pad_token_id: int | None = None
    dtype: str = "float32"
    quantization_config: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        set_field = object.__setattr__
        for name in (
            "vocab_size",
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "max_position_embeddings",
        ):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise CheckpointError(
                    f"{name} is {value!r} in the model's configuration; "
                    "it must be a whole number of 1 or more."
                )
        if self.num_key_value_heads == 0:
            set_field(self, "num_key_value_heads", self.num_attention_heads)
        if self.head_dim == 0:
            if self.hidden_size % self.num_attention_heads:
                raise CheckpointError(
                    f"hidden_size {self.hidden_size} is no multiple of num_attention_heads "
                    f"{self.num_attention_heads}; set head_dim, or change one of them."
                )
            set_field(self, "head_dim", self.hidden_size // self.num_attention_heads)
        if self.head_dim < 2 or self.head_dim % 2:
            raise CheckpointError(
                f"head_dim is {self.head_dim}; rotary positions need an even number of 2 or more."
            )
        if self.num_key_value_heads < 1 or self.num_attention_heads % self.num_key_value_heads:
            raise CheckpointError(
                f"num_attention_heads {self.num_attention_heads} is no multiple of "
                f"num_key_value_heads {self.num_key_value_heads}; change one of them."
            )
        for name in ("rms_norm_eps", "rope_theta"):
            value = getattr(self, name)
            if not isinstance(value, int | float) or not (value > 0 and math.isfinite(value)):
                raise CheckpointError(f"{name} is {value!r}; it must be a positive number.")

    @property
    def parameter_count(self) -> int:
        """The number of weights, tied embeddings counted once."""
        e, f, d = self.hidden_size, self.intermediate_size, self.head_dim
        heads = self.num_attention_heads * d
        kv = self.num_key_value_heads * d
        attention = 2 * e * heads + 2 * e * kv
        biases = (heads + 2 * kv + e) * self.attention_bias + (2 * f + e) * self.mlp_bias
        block = attention + 3 * e * f + 2 * e + biases
        embeddings = self.vocab_size * e * (1 if self.tie_word_embeddings else 2)
        return embeddings + self.num_hidden_layers * block + e

    @classmethod
    def from_dict(cls, values: dict[str, Any], where: str = "config.json") -> "LlamaConfig":
        """Read the content of a ``config.json``, old layout or new.

        Args:
            values: the parsed JSON object.
            where: the file's name for error messages.

        Raises:
            CheckpointError: another architecture, a missing size, or a feature we do not compute.
        """
        model_type = values.get("model_type")
        if model_type != _MODEL_TYPE:
            raise CheckpointError(
                f"{where}: model_type is {model_type!r}; hone reads {_MODEL_TYPE!r} models."
            )
        activation = values.get("hidden_act", "silu")
        if activation not in ("silu", "swish"):
            raise CheckpointError(
                f"{where}: hidden_act is {activation!r}; a Llama block here uses 'silu'."
            )
        chosen = {
            field.name: values[field.name]
            for field in fields(cls)
            if values.get(field.name) is not None and field.name not in ("rope_scaling", "dtype")
        }
        for field in fields(cls)[:5]:
            if field.name not in chosen:
                raise CheckpointError(f"{where}: the key {field.name!r} is missing.")
        chosen["rope_theta"], chosen["rope_scaling"] = _read_rope(values, where)
        chosen["dtype"] = _dtype_name(values, where)
        if isinstance(chosen.get("eos_token_id"), list):
            chosen["eos_token_id"] = tuple(chosen["eos_token_id"])
        try:
            return cls(**chosen)
        except CheckpointError as error:
            raise CheckpointError(f"{where}: {error}") from error

    def to_dict(self) -> dict[str, Any]:
        """The content of ``config.json`` as the current transformers writes it."""
        rope: dict[str, Any] = {"rope_theta": self.rope_theta, "rope_type": "default"}
        if self.rope_scaling is not None:
            scaling = self.rope_scaling
            rope = {
                "factor": scaling.factor,
                "high_freq_factor": scaling.high_freq_factor,
                "low_freq_factor": scaling.low_freq_factor,
                "original_max_position_embeddings": scaling.original_max_position_embeddings,
                "rope_theta": self.rope_theta,
                "rope_type": "llama3",
            }
        eos = self.eos_token_id
        values: dict[str, Any] = {
            "architectures": ["LlamaForCausalLM"],
            "attention_bias": self.attention_bias,
            "attention_dropout": 0.0,
            "bos_token_id": self.bos_token_id,
            "dtype": self.dtype,
            "eos_token_id": list(eos) if isinstance(eos, tuple) else eos,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "hidden_size": self.hidden_size,
            "initializer_range": self.initializer_range,
            "intermediate_size": self.intermediate_size,
            "max_position_embeddings": self.max_position_embeddings,
            "mlp_bias": self.mlp_bias,
            "model_type": _MODEL_TYPE,
            "num_attention_heads": self.num_attention_heads,
            "num_hidden_layers": self.num_hidden_layers,
            "num_key_value_heads": self.num_key_value_heads,
            "pad_token_id": self.pad_token_id,
            "pretraining_tp": 1,
            "rms_norm_eps": self.rms_norm_eps,
            "rope_parameters": rope,
            "tie_word_embeddings": self.tie_word_embeddings,
            "transformers_version": _TRANSFORMERS_VERSION,
            "use_cache": True,
            "vocab_size": self.vocab_size,
        }
        if self.quantization_config is not None:
            values["quantization_config"] = self.quantization_config
        return values


def _dtype_name(values: dict[str, Any], where: str) -> str:
    name = values.get("dtype", values.get("torch_dtype")) or "float32"
    name = str(name).removeprefix("torch.")
    if name not in ("float32", "bfloat16", "float16"):
        raise CheckpointError(
            f"{where}: dtype is {name!r}; hone reads float32, bfloat16 and float16 weights."
        )
    return name


def _read_rope(values: dict[str, Any], where: str) -> tuple[float, RopeScaling | None]:
    """The base and the scaling, from ``rope_parameters`` (new) or two separate keys (old)."""
    rope = values.get("rope_parameters") or values.get("rope_scaling") or {}
    if not isinstance(rope, dict):
        raise CheckpointError(f"{where}: the rotary settings are {rope!r}; expected an object.")
    theta = rope.get("rope_theta") or values.get("rope_theta") or 10000.0
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in _ROPE_TYPES:
        raise CheckpointError(
            f"{where}: rope_type is {kind!r}; hone computes {' and '.join(_ROPE_TYPES)}."
        )
    if kind == "default":
        return theta, None
    names = [field.name for field in fields(RopeScaling)]
    missing = [name for name in names if rope.get(name) is None]
    if missing:
        raise CheckpointError(f"{where}: rope_type 'llama3' needs the key {missing[0]!r}.")
    return theta, RopeScaling(**{name: rope[name] for name in names})
