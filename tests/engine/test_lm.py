import json
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch

import hone
from hone.core.errors import CheckpointError, RequestError


@pytest.mark.smoke
def test_importing_hone_does_not_import_torch():
    code = "import sys, hone; hone.__version__; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_what_hone_exports_is_there():
    for name in hone.__all__:
        assert getattr(hone, name) is not None
    with pytest.raises(AttributeError, match="no_such"):
        _ = hone.no_such


@pytest.mark.smoke
def test_a_run_means_its_checkpoint(lm, checkpoint, tmp_path):
    shutil.copytree(checkpoint, tmp_path / "run" / "checkpoint")
    loaded = hone.load(tmp_path / "run")
    assert loaded.path == tmp_path / "run" / "checkpoint"
    ids = torch.tensor([[1, 5, 9]])
    assert loaded.model(ids).logits.equal(lm.model(ids).logits)
    assert loaded.model(ids, attention_mask=torch.ones_like(ids)).logits.shape == (1, 3, 400)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (None, "does not exist"),
        ([], "neither a checkpoint"),
        (["recipe.json"], "not trained yet"),
    ],
)
def test_a_directory_without_a_model_is_refused(tmp_path, files, message):
    folder = tmp_path / "model"
    if files is not None:
        folder.mkdir()
        for name in files:
            (folder / name).write_text("{}")
    with pytest.raises(CheckpointError, match=message):
        hone.load(folder)


def test_an_unknown_dtype_is_refused(checkpoint):
    with pytest.raises(CheckpointError, match="int3"):
        hone.load(checkpoint, dtype="int3")


@pytest.mark.parametrize(
    ("dtype", "expected"), [("float32", torch.float32), ("bfloat16", torch.bfloat16)]
)
def test_the_dtype_can_be_chosen(checkpoint, dtype, expected):
    assert hone.load(checkpoint, dtype=dtype).model.dtype == expected


def test_16_bit_weights_are_computed_in_what_the_processor_is_fast_at(lm, tmp_path):
    from hone.kernels import preferred_dtype
    from hone.models import save_checkpoint

    save_checkpoint(tmp_path / "bf16", hone.load(lm.path, "bfloat16").model, lm.tokenizer)
    assert hone.load(tmp_path / "bf16").model.dtype == preferred_dtype("cpu")


def _with_generation_config(checkpoint, folder, values):
    shutil.copytree(checkpoint, folder)
    (folder / "generation_config.json").write_text(json.dumps(values))
    return hone.load(folder)


def test_the_end_tokens_come_from_the_generation_config_first(checkpoint, tmp_path):
    assert hone.load(checkpoint).end_ids == {2}
    several = _with_generation_config(checkpoint, tmp_path / "a", {"eos_token_id": [2, 7]})
    assert several.end_ids == {2, 7}
    nothing = _with_generation_config(checkpoint, tmp_path / "b", {})
    assert nothing.end_ids == {2}
    with pytest.raises(CheckpointError, match=r"generation_config\.json"):
        _with_generation_config(checkpoint, tmp_path / "c", [])


def test_no_prompt_begins_twice(checkpoint, tmp_path):
    from tokenizers.processors import TemplateProcessing

    folder = tmp_path / "model"
    shutil.copytree(checkpoint, folder)
    lm = hone.load(folder)
    lm.tokenizer.backend.post_processor = TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", 1)]
    )
    plain, given = (lm.generate(text)[0].prompt_token_ids for text in ("서울", "<bos>서울"))
    assert plain == given
    assert plain.count(1) == 1
    assert lm.generate("")[0].prompt_token_ids == [1]


def test_a_conversation_becomes_the_prompt_of_its_answer(lm):
    ids = lm.chat_prompt([{"role": "user", "content": "안녕"}])
    assert lm.tokenizer.decode(ids, skip_special_tokens=False) == "<bos>user: 안녕<eos>assistant: "
    assert ids.count(1) == 1


def test_without_a_template_there_is_no_conversation(checkpoint, tmp_path):
    shutil.copytree(checkpoint, tmp_path / "model")
    (tmp_path / "model" / "chat_template.jinja").unlink()
    with pytest.raises(CheckpointError, match="no chat template"):
        hone.load(tmp_path / "model").chat_prompt([{"role": "user", "content": "a"}])


def test_an_empty_prompt_starts_from_bos(lm):
    assert lm.generate("")[0].prompt_token_ids == [1]
    with pytest.raises(RequestError, match="Prompt 2: The prompt is empty"):
        lm.generate([[1], []])


def test_a_vocabulary_larger_than_the_embedding_is_refused(checkpoint, tmp_path):
    folder = shutil.copytree(checkpoint, tmp_path / "m")
    file = folder / "tokenizer.json"
    values = json.loads(file.read_text())
    count = len(values["model"]["vocab"])
    values["added_tokens"].append(values["added_tokens"][0] | {"id": count, "content": "<new>"})
    file.write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match="401 tokens and the model embeddings for 400"):
        hone.load(folder)


def test_generating_inside_of_a_stream_and_beside_another_thread(lm):
    params = hone.SamplingParams(max_tokens=12, ignore_eos=True)
    texts = ["서울에", "select name", "a b c"]
    expected = [lm.generate(text, params)[0].token_ids for text in texts]
    inner = []

    def stream(index, piece):
        if not inner:
            inner.append(lm.generate(texts[1], params)[0].token_ids)

    assert lm.generate(texts[0], params, stream)[0].token_ids == expected[0]
    assert inner == [expected[1]]
    with ThreadPoolExecutor(3) as pool:
        found = pool.map(lambda n: lm.generate(texts[n % 3], params)[0].token_ids, range(12))
        assert list(found) == [expected[n % 3] for n in range(12)]


def test_an_engine_that_was_taken_meanwhile_is_made_anew(lm):
    class Taken(list):
        """A list that another thread empties when it has been looked at."""

        def __bool__(self):
            full = len(self) > 0
            self.clear()
            return full

    taken = replace(lm, _kept=Taken(lm._kept))
    params = hone.SamplingParams(max_tokens=2)
    assert taken.generate("a", params)[0].token_ids == lm.generate("a", params)[0].token_ids


def test_an_interruption_leaves_a_model_that_generates(lm):
    params = hone.SamplingParams(max_tokens=6, ignore_eos=True)
    expected = lm.generate("서울에", params)[0].token_ids

    def interrupt(index, piece):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        lm.generate(["서울에", "b"], params, interrupt)
    assert lm.generate("서울에", params)[0].token_ids == expected
