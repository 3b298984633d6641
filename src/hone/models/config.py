"""The architecture of a model: one configuration, in which every choice has a name.

Field names are Hugging Face's where they name the same thing. How a ``config.json`` becomes a
:class:`ModelConfig`, and one a ``config.json``, is written in ``hone.models.families``.
"""

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from hone.core.errors import CheckpointError
from hone.models.positions import Alibi, Buckets, NoPositions, Positions, Rotary

Head = Literal["causal", "masked", "seq2seq", "classification", "token-classification", "embedding"]
HEADS: tuple[Head, ...] = get_args(Head)
# No size is larger: what counts the numbers of a tensor would overflow.
LARGEST = 2**31 - 1

Mixer = Literal["attention", "mamba", "mamba2"]
BlockKind = Literal["pre", "post", "sandwich", "parallel"]
Norm = Literal["rms", "rms+1", "layer"]
Activation = Literal["silu", "gelu", "gelu_tanh", "relu", "tanh"]
Pooling = Literal["cls", "mean", "last", "eos"]
Problem = Literal["single_label", "multi_label", "regression"]


@dataclass(frozen=True, slots=True)
class Experts:
    """A feed-forward layer that is a mixture of experts (Shazeer et al. 2017; Fedus et al. 2021).

    Attributes:
        count: experts of a layer.
        per_token: how many of them each token takes.
        size: feed-forward size of one.
        shared_size: of the expert that every token takes, behind a gate of its own; 0 for none.
        normalise: the weights of the chosen experts add up to one.
        layers: which layers have experts, None for all; the others are plain.
        balance: factor of the load-balancing loss in training.
        router_z: factor of the router's z-loss in training.
    """

    count: int
    per_token: int
    size: int
    shared_size: int = 0
    normalise: bool = True
    layers: tuple[int, ...] | None = None
    balance: float = 0.001
    router_z: float = 0.0

    def __post_init__(self) -> None:
        _check_whole("the number of experts", self.count)
        _check_whole("the size of an expert", self.size)
        _check_whole("the size of the shared expert", self.shared_size, least=0)
        for name in ("balance", "router_z"):
            if not 0 <= getattr(self, name) < math.inf:
                raise CheckpointError(
                    f"{name} of the experts is {getattr(self, name)!r}; it must be 0 or more."
                )
        if not 1 <= self.per_token <= self.count:
            raise CheckpointError(
                f"{self.per_token} of {self.count} experts per token: there must be at least one, "
                "and no more than there are."
            )


@dataclass(frozen=True, slots=True)
class StateSpace:
    """The mixer of Mamba (Gu and Dao 2023) and Mamba-2 (Dao and Gu 2024).

    Attributes:
        inner: channels of the mixer.
        state: numbers that each channel remembers.
        width: of the causal convolution.
        rank: of the projection to the time step (Mamba only).
        heads, groups: of Mamba-2; groups share B and C.
        conv_bias, bias: of the convolution and of the projections.
        step_limits: bounds of the time step.
    """

    inner: int
    state: int
    width: int = 4
    rank: int = 0
    heads: int = 0
    groups: int = 1
    conv_bias: bool = True
    bias: bool = False
    step_limits: tuple[float, float] = (0.0, math.inf)

    def __post_init__(self) -> None:
        for name in ("inner", "state", "width", "groups"):
            _check_whole(f"{name} of the state space", getattr(self, name))
        for name in ("rank", "heads"):
            _check_whole(f"{name} of the state space", getattr(self, name), least=0)
        if self.heads and (self.inner % self.heads or self.heads % self.groups):
            raise CheckpointError(
                f"The state space has {self.inner} channels, {self.heads} heads and {self.groups} "
                "groups; each must be a multiple of the next."
            )
        if not 0 <= self.step_limits[0] <= self.step_limits[1]:
            raise CheckpointError(
                f"step_limits are {self.step_limits!r}; expected two numbers of 0 or more, the "
                "smaller first."
            )


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Sizes and choices of a model. The defaults are those of a Llama.

    ``num_key_value_heads`` and ``head_dim`` of 0 mean: as many as query heads, and
    ``hidden_size / num_attention_heads``; they are filled in on construction.

    Attributes:
        model_type: the family whose files the model is read from and written to.
        head: what the model's last layer is for; see ``hone.models.heads``.
        encoder: the encoder's own configuration; then this one is the decoder's, which attends to
            it.
        causal: a position sees none after it.
        positions: how attention knows the order of tokens.
        local_positions: in layers with a sliding window, where that differs.
        sliding_window: keys at a distance below this are seen, in the layers of
            ``sliding_layers``; None for all keys.
        sliding_layers: which layers have the window; None for all of them.
        attention_scale: factor of the scores; None for ``head_dim ** -0.5``.
        attention_scale_by_layer: it is divided by the number of the layer, counted from 1
            (Karamcheti et al. 2021, Mistral).
        attention_softcap, logit_softcap: ``cap · tanh(x / cap)``; None for none.
        qk_norm: queries and keys are normalised per head.
        block: where the normalisations stand; see ``hone.models.blocks``.
        norm: "rms+1" multiplies by one plus the weight.
        gated: the feed-forward layer has a gate (GLU); else it is a plain pair of layers.
        first_norm: False leaves out the first block's normalisation before attention.
        token_types: kinds of segments with an embedding of their own; 0 for none.
        transforms: for each head that has them, the layers between the body and the output layer:
            an activation's name, then optionally "norm".
        pooling: which hidden state stands for a text that is classified.
        score_bias: of the layer that scores the classes of a text; that for tokens has one.
        embedding_pooling: which hidden state is a text's embedding; None for the last one of a
            causal body, else the mean.
        unit_length: embeddings are scaled to the length 1.
        labels: names of the classes.
        problem: of classification: one label, several, or a number.
        decoder_start_token_id: what every answer to a source begins with.
        forced_bos_token_id, forced_eos_token_id: the first token after that, and the last one of an
            answer of the greatest length.
        extra: further keys of ``config.json``, kept as they were found.

    Raises:
        CheckpointError: sizes that do not fit one another.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int = 1
    num_key_value_heads: int = 0
    head_dim: int = 0
    max_position_embeddings: int = 2048
    model_type: str = "llama"
    head: Head = "causal"
    encoder: "ModelConfig | None" = None
    # Mixing tokens.
    mixer: Mixer = "attention"
    state_space: StateSpace | None = None
    causal: bool = True
    positions: Positions = field(default_factory=Rotary)
    local_positions: Rotary | None = None
    sliding_window: int | None = None
    sliding_layers: tuple[int, ...] | None = None
    attention_bias: bool = False
    output_bias: bool = False
    attention_scale: float | None = None
    attention_scale_by_layer: bool = False
    attention_softcap: float | None = None
    qk_norm: bool = False
    # Mixing channels.
    activation: Activation = "silu"
    gated: bool = True
    mlp_bias: bool = False
    experts: Experts | None = None
    # The residual stream.
    block: BlockKind = "pre"
    norm: Norm = "rms"
    norm_eps: float = 1e-6
    norm_bias: bool = False
    first_norm: bool = True
    final_norm: bool = True
    final_norm_bias: bool | None = None
    # In and out.
    embedding_scale: float = 1.0
    embedding_norm: bool = False
    token_types: int = 0
    tie_word_embeddings: bool = False
    head_bias: bool = False
    logit_scale: float = 1.0
    logit_softcap: float | None = None
    # Other heads.
    transforms: Mapping[Head, tuple[str, ...]] = field(default_factory=dict, hash=False)
    transform_bias: bool = True
    pooling: Pooling = "last"
    score_bias: bool = False
    embedding_pooling: Pooling | None = None
    unit_length: bool = False
    labels: tuple[str, ...] = ("LABEL_0", "LABEL_1")
    problem: Problem = "single_label"
    # Tokens and files.
    initializer_range: float = 0.02
    bos_token_id: int | None = None
    eos_token_id: int | tuple[int, ...] | None = None
    pad_token_id: int | None = None
    decoder_start_token_id: int | None = None
    forced_bos_token_id: int | None = None
    forced_eos_token_id: int | None = None
    dtype: str = "float32"
    quantization_config: dict[str, Any] | None = None
    extra: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self) -> None:
        for name in (
            "vocab_size",
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "max_position_embeddings",
        ):
            _check_whole(name, getattr(self, name))
        _check_whole("token_types", self.token_types, least=0)
        if not self.labels:
            raise CheckpointError("labels is empty; a head that scores classes needs at least one.")
        for name in ("norm_eps", "initializer_range"):
            _check_positive(name, getattr(self, name))
        for name in ("attention_scale", "attention_softcap", "logit_softcap"):
            if getattr(self, name) is not None:
                _check_positive(name, getattr(self, name))
        if self.sliding_window is not None:
            _check_whole("sliding_window", self.sliding_window)
        if self.mixer == "attention":
            self._fill_heads()
        elif self.state_space is None:
            raise CheckpointError(f"The mixer {self.mixer!r} needs the sizes of its state space.")
        else:
            name = "rank" if self.mixer == "mamba" else "heads"
            _check_whole(f"{name} of the state space", getattr(self.state_space, name))
            object.__setattr__(self, "positions", NoPositions())  # the recurrence knows the order
        if self.embedding_pooling is None:
            object.__setattr__(self, "embedding_pooling", "last" if self.causal else "mean")
        if self.encoder is not None and self.encoder.hidden_size != self.hidden_size:
            raise CheckpointError(
                f"The encoder's hidden_size {self.encoder.hidden_size} and the decoder's "
                f"{self.hidden_size} must be the same."
            )
        if self.encoder is not None and self.block not in ("pre", "post"):
            raise CheckpointError(
                f"block is {self.block!r}; a decoder with an encoder has 'pre' or 'post'."
            )

    def _fill_heads(self) -> None:
        set_field = object.__setattr__
        if self.num_key_value_heads == 0:
            set_field(self, "num_key_value_heads", self.num_attention_heads)
        if self.head_dim == 0:
            if self.hidden_size % self.num_attention_heads:
                raise CheckpointError(
                    f"hidden_size {self.hidden_size} is no multiple of num_attention_heads "
                    f"{self.num_attention_heads}; set head_dim, or change one of them."
                )
            set_field(self, "head_dim", self.hidden_size // self.num_attention_heads)
        _check_whole("head_dim", self.head_dim)
        _check_whole("num_key_value_heads", self.num_key_value_heads)
        for positions in (self.positions, self.local_positions):
            if isinstance(positions, Rotary):
                positions.rotated(self.head_dim)  # refuses heads that cannot be turned so
        if self.num_attention_heads % self.num_key_value_heads:
            raise CheckpointError(
                f"num_attention_heads {self.num_attention_heads} is no multiple of "
                f"num_key_value_heads {self.num_key_value_heads}; change one of them."
            )

    @property
    def parameter_count(self) -> int:
        """The number of weights with the head of the configuration, tied ones counted once."""
        from hone.models.heads import make_model  # a model is made of its configuration
        from hone.models.meta import without_memory

        with without_memory():
            return sum(weight.numel() for weight in make_model(self).parameters())

    @property
    def extrapolates(self) -> bool:
        """Whether ``max_position_embeddings`` is only the length of training: a farther distance is
        one among the farthest, or costs in proportion; or a recurrence has no longest text.
        """
        return self.mixer != "attention" or isinstance(self.positions, Alibi | Buckets)

    def is_sliding(self, layer: int) -> bool:
        """Whether ``layer`` sees no further than the sliding window."""
        if self.sliding_window is None:
            return False
        return self.sliding_layers is None or layer in self.sliding_layers

    def score_scale(self, layer: int) -> float | None:
        """The factor of the scores in ``layer``; None for ``head_dim ** -0.5``."""
        if not self.attention_scale_by_layer:
            return self.attention_scale
        scale = self.head_dim**-0.5 if self.attention_scale is None else self.attention_scale
        return scale / (layer + 1)

    def has_experts(self, layer: int) -> bool:
        """Whether the feed-forward layer of ``layer`` is a mixture of experts."""
        if self.experts is None:
            return False
        return self.experts.layers is None or layer in self.experts.layers


def _check_whole(name: str, value: Any, least: int = 1) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise CheckpointError(
            f"{name} is {value!r} in the model's configuration; "
            f"it must be a whole number of {least} or more."
        )
    if value > LARGEST:
        raise CheckpointError(
            f"{name} is {value!r} in the model's configuration; it must be at most {LARGEST}."
        )


def _check_positive(name: str, value: Any) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 < value <= sys.float_info.max:
        raise CheckpointError(f"{name} is {value!r}; it must be a positive number.")
