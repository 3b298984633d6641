"""What a family of checkpoints is: how its ``config.json`` reads, and how its weights are named.

A file of ``hone.models.families`` defines one :class:`Family`. Inside hone all families share the
names of ``hone.models.stack`` and ``heads`` (those of a Llama); rules say where the files differ.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hone.core.errors import CheckpointError
from hone.core.nearest import nearest
from hone.models.config import Head, ModelConfig
from hone.models.keys import Keys
from hone.models.rules import EachExpert, Rule

# The release whose files we match; readers use it only to tell old layouts from new ones.
TRANSFORMERS_VERSION = "5.23.0"

_SUFFIXES: dict[Head, str] = {
    "causal": "ForCausalLM",
    "masked": "ForMaskedLM",
    "seq2seq": "ForConditionalGeneration",
    "classification": "ForSequenceClassification",
    "token-classification": "ForTokenClassification",
    "embedding": "Model",
}
_OTHER_SUFFIXES: dict[str, Head] = {"LMHeadModel": "causal", "ForPreTraining": "masked"}


@dataclass(frozen=True, slots=True)
class Family:
    """How the checkpoints of one ``model_type`` are read and written.

    Attributes:
        model_type: as in ``config.json``; also the file's name.
        class_name: what transformers' class names begin with.
        read: the content of ``config.json`` to a configuration.
        write: the keys of ``config.json`` that say what ``read`` reads.
        rules: where weights have other names or another layout; the first that matches counts.
        prefix: what precedes the body's weights in the files, except in files of a bare body.
        head: the usual one, where ``config.json`` names no architecture.
        heads: class names that are not made of ``class_name`` and the usual suffix.
        ignored: regular expressions of weights that are computed, or not needed here.
        carried: names of weights that transformers' class for a configuration has and no layer here
            reads; they go from the files that are read to those that are written.
        old_names: regular expressions and what replaces them in names that are not known as such:
            those of older files.
        features: what is special, for people.
    """

    model_type: str
    class_name: str
    read: Callable[[Keys], ModelConfig]
    write: Callable[[ModelConfig], dict[str, Any]]
    rules: Callable[[ModelConfig], Sequence[Rule | EachExpert]] = lambda _: ()
    prefix: str = "model"
    head: Head = "causal"
    heads: Mapping[Head, str] = field(default_factory=dict)
    ignored: tuple[str, ...] = (r"rotary_emb\.inv_freq$",)
    carried: Callable[[ModelConfig], Sequence[str]] = lambda _: ()
    old_names: tuple[tuple[str, str], ...] = ()
    features: tuple[str, ...] = ()

    def architecture(self, head: Head) -> str:
        """The name of transformers' class for a model of this family with ``head``."""
        return self.heads.get(head, self.class_name + _SUFFIXES[head])

    def head_of(self, keys: Keys) -> Head:
        """The head that the files hold, by ``architectures``."""
        names = keys.names("architectures")
        if not names:
            return self.head
        name = names[0]
        for head, own in self.heads.items():
            if name == own:
                return head
        for head, suffix in _SUFFIXES.items():
            if name.endswith(suffix) and suffix != "Model":
                return head
        for suffix, head in _OTHER_SUFFIXES.items():
            if name.endswith(suffix):
                return head
        if name.endswith("Model"):
            return "embedding"
        raise keys.wrong("architectures", name, "a name that ends in one of " + _known_suffixes())


def _known_suffixes() -> str:
    return ", ".join([*_SUFFIXES.values(), *_OTHER_SUFFIXES])


def unknown_family(model_type: Any, known: Iterable[str], where: str) -> CheckpointError:
    """The error for a ``model_type`` that there is no family file for."""
    known = sorted(known)
    hint = nearest(str(model_type), known)
    return CheckpointError(
        f"{where}: model_type is {model_type!r}, an architecture that hone does not read. {hint}"
    )
