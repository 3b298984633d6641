"""What a family must do to be equal to transformers; one class per kind of model.

A test file makes a subclass per family, with ``cases``: for each, the keys of a small configuration
of theirs. Sizes are odd on purpose. Weights are random, norms and biases too.
"""

import inspect
from types import SimpleNamespace

import agreement
import pytest
import torch
from safetensors.torch import load_file

from hone.core.errors import CheckpointError
from hone.engine.cache import RowCache
from hone.models import find_family, load_model, save_checkpoint
from hone.models.weights import file_tensors

SIZES = {
    "vocab_size": 61,
    "hidden_size": 40,
    "intermediate_size": 56,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
IDS = torch.tensor([[0, 0, 0, 7, 8, 22], [0, 11, 12, 13, 14, 30], [4, 5, 3, 9, 10, 33]])
MASK = (IDS != 0).long()
# What loss and gradients are computed on: texts of unequal length.
TEXTS = [[3, 7, 4, 9, 5], [9, 12], [6, 5, 3, 5, 8, 9, 7, 33, 41, 5, 60]]


class Interop:
    """The parts that all kinds of models share."""

    family = ""
    cases: dict[str, dict] = {}
    auto_class = "AutoModelForCausalLM"
    head = None
    tolerance = 1e-4
    sizes = SIZES

    @pytest.fixture(scope="class")
    def pair(self, case, tmp_path_factory):
        """Their model, ours, and the directory that theirs was saved to."""
        theirs = self.make(self.cases[case])
        folder = tmp_path_factory.mktemp(case) / "theirs"
        theirs.save_pretrained(folder)
        return theirs, load_model(folder, head=self.head), folder

    def make(self, changes, **options):
        """A random model of theirs."""
        import transformers

        torch.manual_seed(0)
        config = transformers.AutoConfig.for_model(self.family, **(self.sizes | changes))
        options = {"attn_implementation": "eager"} | options
        model = getattr(transformers, self.auto_class).from_config(config, **options)
        model = model.float().eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn(parameter.shape) * 0.15)
        if getattr(model, "generation_config", None) is not None:
            model.generation_config.eos_token_id = None
            model.generation_config.forced_eos_token_id = None
        return model

    def close(self, ours, theirs, tolerance=None):
        """Assert equality to the family's tolerance."""
        tolerance = tolerance or self.tolerance
        if ours.dtype == theirs.dtype == torch.float32 and ours.shape == theirs.shape:
            error = (ours.detach() - theirs.detach()).abs().max().item()
            agreement.note(self.family, agreement.column_of_test(), error)
        torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=tolerance)

    def test_saved_here_opens_there(self, pair, tmp_path):
        theirs, ours, _ = pair
        save_checkpoint(tmp_path / "ours", ours)
        again = (
            type(theirs)
            .from_pretrained(tmp_path / "ours", dtype="float32", attn_implementation="eager")
            .eval()
        )
        for (name, mine), original in zip(
            again.state_dict().items(), theirs.state_dict().values(), strict=True
        ):
            assert torch.equal(mine, original), name
        for key, value in theirs.config.to_dict().items():
            if key not in ("_name_or_path", "transformers_version", "architectures", "dtype"):
                assert again.config.to_dict()[key] == value, key

    def test_what_we_load_we_write_back(self, pair, tmp_path):
        _, ours, folder = pair
        save_checkpoint(tmp_path / "ours", ours)
        mine = load_file(tmp_path / "ours" / "model.safetensors")
        original = load_file(folder / "model.safetensors")
        assert mine.keys() == original.keys()
        for name, tensor in original.items():
            assert torch.equal(mine[name], tensor), name
        again = load_model(tmp_path / "ours")
        assert again.config == ours.config

    def test_a_missing_weight_is_named(self, pair, tmp_path):
        from safetensors.torch import save_file

        _, ours, _ = pair
        save_checkpoint(tmp_path / "ours", ours)
        file = tmp_path / "ours" / "model.safetensors"
        tensors = load_file(file)
        name = sorted(
            name for name in tensors if "layer" in name or "block" in name or "h." in name
        )[0]
        tensors["stray.weight"] = tensors.pop(name)
        save_file(tensors, file)
        with pytest.raises(CheckpointError, match=r"stray\.weight|in none of its files"):
            load_model(tmp_path / "ours")
        del tensors["stray.weight"]
        save_file(tensors, file)
        with pytest.raises(CheckpointError, match="in none of its files") as error:
            load_model(tmp_path / "ours")
        assert name in str(error.value)

    def gradients(self, theirs, ours, tmp_path):
        """Both models' gradients, by the names of weights in files."""
        with torch.no_grad():
            for model in (theirs, ours):
                for parameter in model.parameters():
                    gradient = parameter.grad
                    parameter.data = torch.zeros_like(parameter) if gradient is None else gradient
            for tensor in ours.carried.values():  # which nothing reads
                tensor.zero_()
        theirs.save_pretrained(tmp_path / "gradients")
        family = find_family(ours.config.model_type)
        return (
            load_file(tmp_path / "gradients" / "model.safetensors"),
            file_tensors(family, ours.config, ours),
        )

    def compare_gradients(self, theirs, ours, tmp_path, scale):
        """Assert that the gradients of two models that ran backward are the same."""
        expected, found = self.gradients(theirs, ours, tmp_path)
        assert expected.keys() == found.keys()
        largest = max(gradient.norm().item() for gradient in expected.values())
        for name, gradient in expected.items():
            # Below that a gradient is zero but for rounding: that of the keys' bias, for one.
            if (norm := gradient.norm().item()) > 1e-5 * largest:
                error = (found[name] - gradient).norm().item() / norm
                agreement.note(self.family, "gradients", error)
            torch.testing.assert_close(
                found[name],
                gradient,
                atol=0.1 * self.tolerance * scale,
                rtol=max(1e-3, 10 * self.tolerance),
                msg=lambda text, name=name: f"{name}: {text}",
            )


def call(model, ids, mask=None, **more):
    """Their forward pass, with positions that count tokens and not padding, as generation has."""
    if mask is not None:
        more["attention_mask"] = mask
        if "position_ids" in inspect.signature(model.forward).parameters:
            more["position_ids"] = (mask.cumsum(-1) - 1).clamp_min(0)
    return model(ids, **more)


def make_pack(sequences):
    """A training batch of whole sequences, every token but the first a label."""
    lengths = [len(sequence) for sequence in sequences]
    return SimpleNamespace(
        input_ids_N=torch.tensor([token for sequence in sequences for token in sequence]),
        position_ids_N=torch.cat([torch.arange(length) for length in lengths]),
        cu_seqlens=torch.tensor([0, *lengths]).cumsum(0).int(),
        max_length=max(lengths),
        labels_N=torch.tensor([t for sequence in sequences for t in [*sequence[1:], -100]]),
    )


class CausalInterop(Interop):
    """Decoders."""

    steps = 14
    # Cases in which padding on the left changes what theirs computes for real tokens.
    padding_leaks: tuple[str, ...] = ()

    def test_logits_and_hidden_states(self, pair, case):
        theirs, ours, _ = pair
        real = MASK.bool()
        with torch.no_grad():
            whole = torch.arange(3, 61).view(2, 29)
            self.close(ours(whole).logits, theirs(whole).logits)
            expected = self.padded(theirs, case)
            found = ours(IDS, MASK, output_hidden_states=True)
            assert torch.equal(found.logits, ours(IDS, MASK).logits)
        self.close(found.logits[real], expected.logits[real])
        pairs = self.hidden_pairs(found.hidden_states, expected.hidden_states)
        for mine, original in pairs:
            self.close(mine[real], original[real])

    def padded(self, theirs, case):
        """Their output for the padded batch; row by row where padding would change it."""
        if case not in self.padding_leaks:
            return call(theirs, IDS, MASK, output_hidden_states=True)
        alone = [
            call(theirs, ids[mask.bool()][None], output_hidden_states=True)
            for ids, mask in zip(IDS, MASK, strict=True)
        ]

        def stacked(parts):
            return torch.stack(
                [torch.nn.functional.pad(p[0], (0, 0, 6 - p.shape[1], 0)) for p in parts]
            )

        return SimpleNamespace(
            logits=stacked([output.logits for output in alone]),
            hidden_states=[
                stacked(layer) for layer in zip(*(o.hidden_states for o in alone), strict=True)
            ],
        )

    def hidden_pairs(self, ours, theirs):
        """Hidden states that should be the same."""
        return list(zip(ours, theirs, strict=True))

    def test_loss_and_gradients(self, pair, case, tmp_path):
        ours = load_model(pair[2], head=self.head)
        theirs = self.make(self.cases[case])
        count = sum(len(text) - 1 for text in TEXTS)
        loss = ours.train().packed_loss(make_pack(TEXTS))
        loss.backward()
        expected = sum(
            theirs(torch.tensor([t]), labels=torch.tensor([t])).loss * (len(t) - 1) for t in TEXTS
        )
        expected.backward()
        self.close(loss / count, expected.detach() / count)
        self.compare_gradients(theirs, ours, tmp_path, count)

    def test_greedy_generation(self, pair):
        theirs, ours, _ = pair
        with torch.no_grad():
            cached = self.greedy(ours, IDS, MASK, cached=True)
            assert torch.equal(cached, self.greedy(ours, IDS, MASK, cached=False))
            for row, text in enumerate(IDS):
                alone = text[MASK[row].bool()][None]
                expected = theirs.generate(
                    alone,
                    attention_mask=torch.ones_like(alone),
                    max_new_tokens=self.steps,
                    do_sample=False,
                )
                assert torch.equal(cached[row, -self.steps :], expected[0, -self.steps :])

    def test_left_padded_batch_of_theirs(self, pair, case):
        theirs, ours, _ = pair
        if case in self.padding_leaks:
            logits = call(theirs, IDS, MASK).logits[0, -1]
            alone = call(theirs, IDS[:1, 3:]).logits[0, -1]
            assert (logits - alone).abs().max() > self.tolerance, "it leaks no more: compare it"
            return
        expected = theirs.generate(
            IDS, attention_mask=MASK, max_new_tokens=self.steps, do_sample=False
        )
        with torch.no_grad():
            assert torch.equal(self.greedy(ours, IDS, MASK, cached=True), expected)

    def test_a_prompt_may_enter_the_cache_in_pieces(self, pair):
        _, ours, _ = pair
        cache = RowCache(ours.config, 3, torch.float32)
        with torch.no_grad():
            whole = ours(IDS, MASK).logits
            pieces = [
                ours(IDS[:, a:b], MASK[:, :b], cache).logits for a, b in ((0, 4), (4, 5), (5, 6))
            ]
        self.close(torch.cat(pieces, 1)[MASK.bool()], whole[MASK.bool()])

    def test_bfloat16_within_its_precision(self, pair):
        theirs, _, folder = pair
        ours = load_model(folder, dtype="bfloat16", head=self.head)
        assert {p.dtype for p in ours.parameters()} == {torch.bfloat16}
        ids = torch.arange(3, 33).view(2, 15)
        with torch.no_grad():
            exact = theirs(ids).logits
            their_error = (theirs.bfloat16()(ids).logits.float() - exact).norm()
            found = (ours(ids).logits.float() - exact).norm()
            theirs.float()
        theirs.load_state_dict(type(theirs).from_pretrained(folder, dtype="float32").state_dict())
        assert found < 1.5 * their_error + 0.01 * exact.norm()

    def greedy(self, model, ids, mask, cached):
        """Continue padded rows, with the cache or by computing everything again."""
        cache = RowCache(model.config, len(ids), torch.float32) if cached else None
        start = 0
        for _ in range(self.steps):
            fed = ids[:, start:] if cached else ids
            logits = model(fed, mask, cache, logits_to_keep=1).logits
            start = ids.shape[1]
            ids = torch.cat((ids, logits.argmax(-1)), dim=1)
            mask = torch.cat((mask, torch.ones_like(mask[:, :1])), dim=1)
        return ids


# What a batch of an encoder looks like: padding stands on the right.
ROWS = torch.tensor([[7, 8, 22, 41, 5, 60], [11, 12, 13, 14, 0, 0], [4, 5, 3, 0, 0, 0]])
REAL = (ROWS != 0).long()
KINDS = torch.tensor([[0, 0, 0, 1, 1, 1], [0, 1, 1, 1, 0, 0], [0, 0, 1, 0, 0, 0]])


class ReaderInterop(Interop):
    """Models that read whole texts; subclasses say for which task."""

    def inputs(self, theirs):
        """A padded batch in the arguments that their model takes."""
        more = {"attention_mask": REAL}
        if getattr(theirs.config, "type_vocab_size", 1) > 1:
            more["token_type_ids"] = KINDS
        return {"input_ids": ROWS} | more

    def outputs(self, theirs, inputs):
        """What is compared with ours; by default their logits."""
        return theirs(**inputs).logits

    def real(self, outputs):
        """The part of the outputs that means something."""
        return outputs

    def test_outputs_and_hidden_states(self, pair):
        theirs, ours, _ = pair
        inputs, real = self.inputs(theirs), REAL.bool()
        with torch.no_grad():
            every = theirs(**inputs, output_hidden_states=True).hidden_states
            found = ours(**inputs, output_hidden_states=True)
            self.close(self.real(found.logits), self.real(self.outputs(theirs, inputs)))
            assert torch.equal(ours(**inputs).logits, found.logits)
        assert len(found.hidden_states) == len(every)
        for mine, original in zip(found.hidden_states, every, strict=True):
            self.close(mine[real], original[real])

    def test_padding_changes_nothing(self, pair):
        theirs, ours, _ = pair
        inputs = self.inputs(theirs)
        with torch.no_grad():
            batch = ours(**inputs).logits
            for row, length in enumerate(REAL.sum(-1).tolist()):
                one = {name: x[row : row + 1] for name, x in inputs.items()}
                alone = ours(**{name: x[:, :length] for name, x in one.items()}).logits
                self.close(alone, self.alone(batch[row : row + 1], slice(length)), 1e-5)
                shifted = ours(**{name: x.roll(-length, 1) for name, x in one.items()}).logits
                self.close(self.alone(shifted, slice(-length, None)), alone, 1e-5)

    def alone(self, outputs, columns):
        """The part of one row's outputs that belongs to its text, which is in ``columns``."""
        return outputs

    def test_loss_and_gradients(self, pair, case, tmp_path):
        theirs = self.make(self.cases[case])
        ours = load_model(pair[2]).train()
        inputs = self.inputs(theirs)
        expected = self.loss(self.outputs(theirs, inputs), theirs.config)
        found = self.loss(ours(**inputs).logits, theirs.config)
        expected.backward()
        found.backward()
        self.close(found, expected.detach())
        self.compare_gradients(theirs, ours, tmp_path, 1.0)

    def loss(self, outputs, config):
        """A loss of the task on either side's outputs."""
        raise NotImplementedError

    def test_bfloat16_within_its_precision(self, pair):
        theirs, _, folder = pair
        ours = load_model(folder, dtype="bfloat16")
        assert {p.dtype for p in ours.parameters()} == {torch.bfloat16}
        inputs = self.inputs(theirs)
        rounded = type(theirs).from_pretrained(folder, dtype="bfloat16").eval()
        with torch.no_grad():
            exact = self.real(self.outputs(theirs, inputs))
            their_error = (self.real(self.outputs(rounded, inputs)).float() - exact).norm()
            found = (self.real(ours(**inputs).logits).float() - exact).norm()
        assert found < 1.5 * their_error + 0.01 * exact.norm()


class MaskedInterop(ReaderInterop):
    """Encoders that score masked tokens."""

    auto_class = "AutoModelForMaskedLM"

    def real(self, outputs):
        return outputs[REAL.bool()]

    def alone(self, outputs, columns):
        return outputs[:, columns]

    def test_loss_and_gradients(self, pair, case, tmp_path):
        theirs, ours = self.make(self.cases[case]), load_model(pair[2])
        # As in training: some positions are labelled, each with the token that stands there.
        batch, labels = make_pack(TEXTS), []
        generator = torch.Generator().manual_seed(0)
        for text in TEXTS:
            chosen = torch.rand(len(text), generator=generator) < 0.5
            labels.append(torch.where(chosen, torch.tensor(text), -100))
        batch.labels_N = torch.cat(labels)
        loss = ours.train().packed_loss(batch)
        loss.backward()
        expected = torch.zeros(())
        for text, label in zip(TEXTS, labels, strict=True):
            logits = theirs(torch.tensor([text])).logits[0]
            expected = expected + torch.nn.functional.cross_entropy(logits, label, reduction="sum")
        expected.backward()
        count = int((batch.labels_N != -100).sum())
        assert 5 < count < len(batch.labels_N)
        self.close(loss / count, expected.detach() / count)
        self.compare_gradients(theirs, ours, tmp_path, count)


class ClassifierInterop(ReaderInterop):
    """Classes of a text: one label, several, or a number."""

    auto_class = "AutoModelForSequenceClassification"

    def loss(self, outputs, config):
        count = outputs.shape[-1]
        if config.problem_type == "multi_label_classification":
            targets = torch.arange(len(ROWS) * count).view(-1, count) % 2
            return torch.nn.functional.binary_cross_entropy_with_logits(outputs, targets.float())
        if count == 1:
            return torch.nn.functional.mse_loss(outputs[:, 0], torch.tensor([0.5, -1.0, 2.0]))
        return torch.nn.functional.cross_entropy(outputs, torch.arange(len(ROWS)) % count)

    def test_labels_are_kept(self, pair):
        theirs, ours, _ = pair
        assert dict(enumerate(ours.config.labels)) == theirs.config.id2label


class TokenClassifierInterop(ReaderInterop):
    """Classes of every token."""

    auto_class = "AutoModelForTokenClassification"

    def real(self, outputs):
        return outputs[REAL.bool()]

    def alone(self, outputs, columns):
        return outputs[:, columns]

    def loss(self, outputs, config):
        labels = torch.where(REAL.bool(), ROWS % outputs.shape[-1], -100)
        return torch.nn.functional.cross_entropy(outputs.flatten(0, 1), labels.flatten())


class EmbeddingInterop(ReaderInterop):
    """Bare bodies, whose hidden states are pooled: the mean, as sentence-transformers does."""

    auto_class = "AutoModel"
    pooling = "mean"

    def outputs(self, theirs, inputs):
        hidden = theirs(**inputs).last_hidden_state
        if self.pooling == "cls":
            return hidden[:, 0]
        if self.pooling == "last":
            return hidden[torch.arange(len(ROWS)), REAL.sum(-1) - 1]
        mask = inputs["attention_mask"][..., None].to(hidden.dtype)
        return (hidden * mask).sum(1) / mask.sum(1)

    def loss(self, outputs, config):
        wanted = torch.linspace(-1, 1, outputs.numel()).view_as(outputs)
        return (outputs - wanted).square().mean()


# Sources of unequal length, padded on the right, and answers to them.
LEFT = torch.stack([row.roll(6 - int(real.sum())) for row, real in zip(ROWS, REAL, strict=True)])
ANSWERS = torch.tensor([[9, 8, 40, 33, 5], [17, 6, 0, 0, 0], [4, 51, 23, 16, 0]])


def make_pairs():
    """A training batch: each row of ``ROWS`` and what is to be answered to it."""
    from types import SimpleNamespace

    sources = [row[row != 0] for row in ROWS]
    answers = [row[row != 0] for row in ANSWERS]
    bounds = [torch.tensor([0, *map(len, x)]).cumsum(0).int() for x in (sources, answers)]
    return (
        sources,
        answers,
        SimpleNamespace(
            source_ids_M=torch.cat(sources),
            source_cu_seqlens=bounds[0],
            position_ids_N=torch.cat([torch.arange(len(answer)) for answer in answers]),
            cu_seqlens=bounds[1],
            max_length=5,
            labels_N=torch.cat(answers),
        ),
    )


class Seq2SeqInterop(Interop):
    """Encoders with decoders."""

    auto_class = "AutoModelForSeq2SeqLM"
    steps = 14
    # A source padded on the left has the same positions as without padding.
    relative = True

    def make(self, changes, **options):
        model = super().make(changes, **options)
        with torch.no_grad():
            for buffer in model.buffers():
                buffer.add_(torch.randn(buffer.shape) * 0.1)
            # Else a tied output layer mostly repeats what it reads.
            norms = [x for name, x in model.named_modules() if name.endswith("final_layer_norm")]
            norms[-1].weight.normal_()
        return model

    def gradients(self, theirs, ours, tmp_path):
        """Without that of a bias that is a constant to them."""
        expected, found = super().gradients(theirs, ours, tmp_path)
        for tensors in (expected, found):
            tensors.pop("final_logits_bias", None)
        return expected, found

    def starts(self, model, ids):
        """The decoder's input for answers ``ids``."""
        first = torch.full_like(ids[:, :1], model.config.decoder_start_token_id)
        return torch.cat((first, ids[:, :-1]), dim=1)

    def test_logits_and_hidden_states(self, pair):
        theirs, ours, _ = pair
        ids, real = self.starts(theirs, ANSWERS), REAL.bool()
        with torch.no_grad():
            expected = theirs(ROWS, REAL, ids, output_hidden_states=True)
            found = ours(ROWS, REAL, ids, output_hidden_states=True)
            assert torch.equal(found.logits, ours(ROWS, REAL, ids).logits)
        self.close(found.logits, expected.logits)
        stacks = (
            (found.encoder_hidden_states, expected.encoder_hidden_states, real),
            (found.hidden_states, expected.decoder_hidden_states, torch.ones_like(ids).bool()),
        )
        for mine, original, where in stacks:
            assert len(mine) == len(original)
            for x, y in zip(mine, original, strict=True):
                self.close(x[where], y[where])

    def test_padding_on_either_side(self, pair):
        theirs, ours, _ = pair
        ids, left = self.starts(theirs, ANSWERS), (LEFT != 0).long()
        # As many tokens as there are labels, which begin where they stand.
        mask = (ANSWERS != 0).long()
        with torch.no_grad():
            expected = theirs(ROWS, REAL, ids, decoder_attention_mask=mask).logits
            found = ours(ROWS, REAL, ids, mask).logits
            self.close(found[mask.bool()], expected[mask.bool()])
            assert torch.equal(ours(LEFT, left, ids, mask).logits, found)
            if self.relative:
                self.close(theirs(LEFT, left, ids, decoder_attention_mask=mask).logits, expected)
            for kept in (1, 3):
                few = ours(ROWS, REAL, ids, mask, logits_to_keep=kept).logits
                self.close(few, found[:, -kept:])
            turned = [x.roll(1, 1) for x in (ids[2:], mask[2:])]  # padded on the left
            self.close(ours(ROWS[2:], REAL[2:], *turned).logits.roll(-1, 1), found[2:])

    def test_loss_and_gradients(self, pair, case, tmp_path):
        ours, theirs = load_model(pair[2]), self.make(self.cases[case])
        sources, answers, batch = make_pairs()
        starts = [self.starts(theirs, answer[None])[0] for answer in answers]
        batch.input_ids_N = torch.cat(starts)
        batch.labels_N[3] = -100
        loss = ours.train().packed_loss(batch)
        loss.backward()
        expected, labels = torch.zeros(()), batch.labels_N.split([len(x) for x in answers])
        for source, ids, wanted in zip(sources, starts, labels, strict=True):
            logits = theirs(source[None], decoder_input_ids=ids[None]).logits[0]
            expected = expected + torch.nn.functional.cross_entropy(logits, wanted, reduction="sum")
        expected.backward()
        count = int((batch.labels_N != -100).sum())
        self.close(loss / count, expected.detach() / count)
        self.compare_gradients(theirs, ours, tmp_path, count)

    def test_greedy_generation(self, pair):
        theirs, ours, _ = pair
        with torch.no_grad():
            cached = self.greedy(ours, cached=True)
            assert torch.equal(cached, self.greedy(ours, cached=False))
        assert len(cached.unique()) > 2, "too little variety to tell anything"
        options = {"max_new_tokens": self.steps, "do_sample": False}
        assert torch.equal(cached, theirs.generate(ROWS, attention_mask=REAL, **options))
        for row, real, found in zip(ROWS, REAL, cached, strict=True):
            alone = row[real.bool()][None]
            expected = theirs.generate(alone, attention_mask=torch.ones_like(alone), **options)
            assert torch.equal(found, expected[0])

    def test_an_answer_may_enter_the_cache_in_pieces(self, pair):
        _, ours, _ = pair
        cache = RowCache(ours.config, 3, torch.float32)
        ids = self.starts(ours, ANSWERS)
        with torch.no_grad():
            whole = ours(ROWS, REAL, ids).logits
            pieces = [
                ours(ROWS if a == 0 else None, REAL, ids[:, a:b], cache=cache).logits
                for a, b in ((0, 3), (3, 4), (4, 5))
            ]
        self.close(torch.cat(pieces, 1), whole)

    def test_bfloat16_within_its_precision(self, pair):
        theirs, _, folder = pair
        ours = load_model(folder, dtype="bfloat16")
        assert {p.dtype for p in ours.parameters()} == {torch.bfloat16}
        rounded = type(theirs).from_pretrained(folder, dtype="bfloat16").eval()
        ids = self.starts(theirs, ANSWERS)
        with torch.no_grad():
            exact = theirs(ROWS, REAL, ids).logits
            their_error = (rounded(ROWS, REAL, ids).logits.float() - exact).norm()
            found = (ours(ROWS, REAL, ids).logits.float() - exact).norm()
        assert found < 1.5 * their_error + 0.01 * exact.norm()

    def greedy(self, model, cached):
        """Answers to padded sources, with the cache or by computing everything again."""
        ids = torch.full((len(ROWS), 1), model.config.decoder_start_token_id)
        cache = RowCache(model.config, len(ROWS), torch.float32) if cached else None
        for step in range(self.steps):
            known = cached and step > 0
            logits = model(
                None if known else ROWS,
                REAL,
                ids[:, -1:] if cached else ids,
                cache=cache,
                logits_to_keep=1,
            ).logits
            ids = torch.cat((ids, logits.argmax(-1)), dim=1)
        return ids
