"""The process of one contender of decode_peers.py: it generates when a line on its input says so.

    python benchmarks/decode_contenders.py NAME MODEL VARIANT THREADS

Needs nothing but the contender's own library, so that each can run in an environment of its own.
A line in is ``{"batch": 8, "prompt": 128, "new": 32, "vocabulary": 32000, "seed": 1}``, a line out
``{"prefill": seconds, "decode": seconds}``. Every run has prompts of its own: nobody finds one in
a cache. The first line out says ``{"ready": version}``, or why the contender cannot run.
"""

import json
import os
import random
import sys
import time
from collections.abc import Callable
from typing import Any

# generate(prompts, new tokens): runs to the end.
Generate = Callable[[list[list[int]], int], None]
# times(prompts, new tokens): the seconds of the prompts, and of so many tokens after them.
Times = Callable[[list[list[int]], int, Callable[[], list[list[int]]]], tuple[float, float]]


def by_difference(generate: Generate) -> Times:
    """A run of one token has the prompts alone; what a longer one takes more is decoding."""

    def times(
        prompts: list[list[int]], new: int, others: Callable[[], list[list[int]]]
    ) -> tuple[float, float]:
        start = time.perf_counter()
        generate(prompts, 1)
        prefill = time.perf_counter() - start
        fresh = others()
        start = time.perf_counter()
        generate(fresh, new + 1)
        return prefill, time.perf_counter() - start - prefill

    return times


def hone(path: str, variant: str, threads: int) -> tuple[str, Times]:
    """``lm.generate`` as a user calls it; ``int8`` is a checkpoint that is stored so."""
    import torch

    import hone

    torch.set_num_threads(threads)
    dtype = {"fp32": "float32", "bf16": "bfloat16", "int8": "auto"}[variant]
    lm = hone.load(path, dtype)

    def generate(prompts: list[list[int]], new: int) -> None:
        params = hone.SamplingParams(max_tokens=new, ignore_eos=True)
        results = lm.generate(prompts, params)
        assert all(len(result.token_ids) == new for result in results)

    return hone.__version__, by_difference(generate)


def transformers(path: str, variant: str, threads: int) -> tuple[str, Times]:
    """``model.generate`` with its key/value cache."""
    import torch
    import transformers
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(threads)
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[variant]
    model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype).eval()

    def generate(prompts: list[list[int]], new: int) -> None:
        ids = torch.tensor(prompts)
        with torch.inference_mode():
            out = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=new,
                min_new_tokens=new,
                do_sample=False,
                pad_token_id=0,
            )
        assert out.shape[1] == ids.shape[1] + new

    return transformers.__version__, by_difference(generate)


def generate_batch(path: str, variant: str, threads: int) -> tuple[str, Times]:
    """transformers' continuous batching."""
    import torch
    import transformers
    from transformers import AutoModelForCausalLM, GenerationConfig

    torch.set_num_threads(threads)
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[variant]
    model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype).eval()

    def generate(prompts: list[list[int]], new: int) -> None:
        config = GenerationConfig(
            max_new_tokens=new,
            do_sample=False,
            eos_token_id=-1,
            pad_token_id=0,
            num_blocks=400,
            max_batch_tokens=4096,
        )
        outputs = model.generate_batch(inputs=prompts, generation_config=config)
        assert all(len(out.generated_tokens) == new for out in outputs.values())

    return transformers.__version__, by_difference(generate)


def llama_cpp(path: str, variant: str, threads: int) -> tuple[str, Times]:
    """llama.cpp's own batches, a sequence for each prompt; nothing is sampled, which favours it."""
    del variant  # the file's
    import llama_cpp

    llama_cpp.llama_backend_init()
    model = llama_cpp.llama_model_load_from_file(
        path.encode(), llama_cpp.llama_model_default_params()
    )
    if not model:
        raise ValueError(f"llama.cpp does not load {path}")

    def batch(rows: list[list[int]], first: int) -> Any:
        count = sum(len(row) for row in rows)
        made = llama_cpp.llama_batch_init(count, 0, 1)
        made.n_tokens = count
        at = 0
        for sequence, row in enumerate(rows):
            for place, token in enumerate(row):
                made.token[at], made.pos[at] = token, first + place
                made.n_seq_id[at], made.seq_id[at][0] = 1, sequence
                made.logits[at] = place == len(row) - 1
                at += 1
        return made

    def times(
        prompts: list[list[int]], new: int, others: Callable[[], list[list[int]]]
    ) -> tuple[float, float]:
        del others
        rows, length = len(prompts), len(prompts[0])
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = (length + new + 8) * rows
        params.n_batch = max(length * rows, 512)
        params.n_ubatch, params.n_seq_max = 512, rows
        params.n_threads = params.n_threads_batch = threads
        params.kv_unified = False
        context = llama_cpp.llama_init_from_model(model, params)
        steps = [batch(prompts, 0)]
        steps += [batch([[row[at % length]] for row in prompts], length + at) for at in range(new)]
        ends = [time.perf_counter()]
        for step in steps:
            failed = llama_cpp.llama_decode(context, step)
            llama_cpp.llama_synchronize(context)
            assert not failed
            ends.append(time.perf_counter())
        for step in steps:
            llama_cpp.llama_batch_free(step)
        llama_cpp.llama_free(context)
        return ends[1] - ends[0], ends[-1] - ends[1]

    # The first decoding of a process reads the weights from the disk.
    times([[3] * 8], 2, list)
    return llama_cpp.__version__, times


def openvino(path: str, variant: str, threads: int) -> tuple[str, Times]:
    """OpenVINO GenAI's continuous batching, without its prefix cache."""
    import numpy as np
    import openvino as ov
    import openvino_genai as genai

    settings: dict[str, Any] = {"INFERENCE_NUM_THREADS": threads}
    if variant in ("fp32", "bf16"):
        settings["INFERENCE_PRECISION_HINT"] = {"fp32": "f32", "bf16": "bf16"}[variant]
    schedule = genai.SchedulerConfig()
    schedule.cache_size = 2
    schedule.max_num_batched_tokens = 8192
    schedule.enable_prefix_caching = False
    pipeline = genai.ContinuousBatchingPipeline(path, schedule, "CPU", settings)

    def generate(prompts: list[list[int]], new: int) -> None:
        config = genai.GenerationConfig()
        config.max_new_tokens = config.min_new_tokens = new
        config.ignore_eos, config.do_sample = True, False
        ids = [ov.Tensor(np.array([prompt], dtype=np.int64)) for prompt in prompts]
        pipeline.generate(ids, [config] * len(prompts))

    return genai.__version__, by_difference(generate)


CONTENDERS = {
    "hone": hone,
    "transformers": transformers,
    "generate_batch": generate_batch,
    "llama.cpp": llama_cpp,
    "OpenVINO": openvino,
}


def draw(job: dict[str, int], number: int) -> list[list[int]]:
    """Random prompts."""
    chooser = random.Random(f"{job['seed']} {number}")
    return [
        [chooser.randrange(3, job["vocabulary"]) for _ in range(job["prompt"])]
        for _ in range(job["batch"])
    ]


def main() -> None:
    """Get ready, then run once for every line."""
    # Libraries print where they like; only lines of ours go to who started this.
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    name, path, variant, threads = sys.argv[1:]

    def say(message: dict[str, Any]) -> None:
        out.write(json.dumps(message) + "\n")
        out.flush()

    try:
        version, times = CONTENDERS[name](path, variant, int(threads))
    except Exception as error:  # noqa: BLE001 - whatever a peer cannot do, it is left out for
        say({"ready": None, "why": f"{type(error).__name__}: {error}"})
        return
    say({"ready": version})
    for line in sys.stdin:
        job = json.loads(line)
        try:
            prefill, decode = times(draw(job, 0), job["new"], lambda job=job: draw(job, 1))
        except Exception as error:  # noqa: BLE001 - as above
            say({"why": f"{type(error).__name__}: {error}"})
            return
        say({"prefill": prefill, "decode": decode})


if __name__ == "__main__":
    main()
