"""Train in one and in several processes; prints what came of it as JSON."""

import hashlib
import json
import logging
import os
import random
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch
from test_contrastive import embedder, pairs
from tiny import tiny_model

from hone.data import PackedBatches, completion_sample
from hone.train import Contrastive, SummedLoss, TrainConfig, train
from hone.train.optimizers import Optimizer
from hone.train.resume import Counters
from hone.train.step import Stepper

sys.path.insert(0, str(Path(__file__).parents[1]))
from forked import in_processes

CONFIG = TrainConfig(
    steps=20,
    optimizer="adamw",
    learning_rate=0.01,
    warmup_steps=2,
    log_every=5,
    checkpoint_every=5,
    precision="fp32",
)


def batches(samples=64):
    """Samples of very unequal length, most of them short."""
    draw = random.Random(3)
    words = [
        [draw.randrange(4, 32) for _ in range(int(2 + 60 * draw.random() ** 4))]
        for _ in range(samples)
    ]
    return PackedBatches(
        [completion_sample([1, *word[: len(word) // 3], 3], [*word, 2]) for word in words], 260, 0
    )


class Noticing:
    """Batches that note which steps they were asked for."""

    def __init__(self, inner):
        self.inner, self.fingerprint, self.digests = inner, inner.fingerprint, {}

    def at(self, step):
        batch = self.inner.at(step)
        self.digests[step] = hashlib.sha256(batch.input_ids_N.tobytes()).hexdigest()[:8]
        return batch


class Lonely:
    fingerprint = "lonely"

    def at(self, step):
        return batches().at(0).split(100)[step % 3]


def weights_of(model):
    return [round(x, 9) for p in model.parameters() for x in p.detach().flatten().tolist()]


def bits_of(model):
    digest = hashlib.sha256()
    for p in model.parameters():
        digest.update(p.detach().numpy().tobytes())
    return digest.hexdigest()


def outcome(model, result, data):
    return {
        "weights": weights_of(model),
        "bits": bits_of(model),
        "loss": result.loss,
        "skipped_bad": result.skipped_bad,
        "from": result.resumed_from,
        "data": data.digests,
    }


def run(folder, config, processes=None, model=None, **options):
    model, data = model or Failing(), Noticing(options.pop("data", None) or batches())
    return outcome(model, train(model, data, config, folder, processes=processes, **options), data)


def gradients(config, processes):
    """Those of the first step, not clipped, and what was counted."""
    model, counters = Failing(), Counters()
    config = replace(config, grad_clip=0.0)
    optimizer = Optimizer(model, config, torch.float32)
    stepper = Stepper(model, SummedLoss(), optimizer, config, processes)
    stepper.take(batches().at(0), counters)
    return [x for p in optimizer.masters.values() for x in p.grad.flatten().tolist()]


class Failing(torch.nn.Module):
    """Raises, or gives no finite loss, at a step (counted by its own calls)."""

    def __init__(self, at=0, how="", seed=0):
        super().__init__()
        self.inner = tiny_model(seed, hidden=16, layers=1)
        self.at, self.how, self.calls = at, how, 0

    def packed_loss(self, batch):
        self.calls += 1
        loss = self.inner.packed_loss(batch)
        if self.calls == self.at and self.how == "nan":
            return loss * float("nan")
        if self.calls == self.at and self.how == "raise":
            raise ValueError("something broke")
        if self.calls == self.at and self.how == "interrupt":
            os.kill(os.getpid(), signal.SIGINT)
        if self.calls == self.at and self.how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        return loss


def failing(folder, rank, at, how, config=CONFIG):
    def work(processes):
        model = Failing(at, how if processes.rank == rank else "")
        try:
            return run(folder, config, processes, model)
        except ValueError:
            time.sleep(0.5)  # whoever waits for this process does not wait for its end
            raise

    return work


def equivalence(root):
    """The same step and the same run however it is cut."""
    found = {}
    for count, parts in ((1, 1), (1, 2), (1, 4), (1, 8), (2, 1), (2, 4)):
        name, config = f"{count}x{parts}", replace(CONFIG, micro_batches=parts)

        def work(processes, name=name, config=config):
            return {
                "gradients": gradients(config, processes),
                **run(root / name, config, processes),
            }

        found[name] = in_processes(count, work)
    return found


def contrastive(root):
    """Pairs whose negatives are those of all processes."""

    def work(name):
        model = embedder()
        data = PackedBatches(pairs(), 120, 0)
        return lambda processes: {
            "loss": train(
                model, data, CONFIG, root / name, objective=Contrastive(0.1), processes=processes
            ).loss,
            "weights": weights_of(model),
        }

    return {name: in_processes(n, work(name)) for n, name in ((1, "pairs-1"), (2, "pairs-2"))}


def going_on(root):
    """Two processes are killed; two, or one with other parts, go on."""
    found = {
        "whole": in_processes(2, lambda p: run(root / "whole", CONFIG, p)),
        "killed": in_processes(2, failing(root / "again", 1, 13, "kill")),
        "again": in_processes(2, lambda p: run(root / "again", CONFIG, p)),
    }
    in_processes(2, failing(root / "alone", 1, 13, "kill"))
    config = replace(CONFIG, micro_batches=3, workers=2)
    found["alone"] = in_processes(1, lambda p: warned(lambda: run(root / "alone", config, p)))
    lines = {}
    for name in ("whole", "again", "alone"):
        text = (root / name / "metrics.jsonl").read_text()
        lines[name] = [json.loads(line) for line in text.splitlines()]
    return {**found, "lines": lines}


def warned(work):
    """The outcome of ``work`` and what it warned of."""
    messages = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())
    logging.getLogger("hone").addHandler(handler)
    return {**work(), "warnings": messages}


def failures(root):
    """One of two processes fails."""
    found, config = {}, replace(CONFIG, steps=10)
    for how, rank in (("raise", 1), ("raise", 0), ("nan", 1), ("interrupt", 1)):
        found[f"{how} {rank}"] = in_processes(
            2, failing(root / f"{how}-{rank}", rank, 7, how, config)
        )
    found["checkpoints"] = sorted(p.name for p in (root / "interrupt-1" / "checkpoints").iterdir())

    def unlike(processes):
        return run(root / "unlike", CONFIG, processes, Failing(seed=processes.rank))

    found["unlike"] = in_processes(2, unlike)

    def broken_evaluation(model, step):
        raise ValueError("no evaluation")

    evaluated = replace(config, evaluate_every=4)
    found["evaluation"] = in_processes(
        2, lambda p: run(root / "evaluation", evaluated, p, evaluate=broken_evaluation)
    )

    # Batches of a single sample: the second process has no part.
    for count in (1, 2):
        found[f"lonely {count}"] = in_processes(
            count, lambda p, n=count: run(root / f"lonely-{n}", config, p, data=Lonely())
        )
    return found


def main():
    torch.set_num_threads(1)
    # What torch imports at the first optimizer is imported once, here; no gradients, no threads.
    Optimizer(tiny_model(), CONFIG, torch.float32).step(0.0, 0)
    root = Path(sys.argv[1])
    print(
        json.dumps(
            {work.__name__: work(root) for work in (equivalence, contrastive, going_on, failures)}
        )
    )


if __name__ == "__main__":
    main()
