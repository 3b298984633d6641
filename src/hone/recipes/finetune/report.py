"""What a finished tuning run leaves for people and programs: results, manifest, report."""

import shlex
import shutil
from typing import TYPE_CHECKING, Any

from hone.core.files import atomic_path, read_json, write_json
from hone.evals.formatting import duration, quantity
from hone.evals.held_out import RISING
from hone.evals.training_report import (
    Answer,
    TrainingReport,
    read_metrics,
    write_training_report,
)
from hone.recipes.manifest import run_manifest
from hone.recipes.runner import Progress

if TYPE_CHECKING:
    from hone.recipes.finetune.tuning import Tuning


def write_outcome(tuning: "Tuning", done: Progress, inputs: dict[str, Any]) -> None:
    """Write ``results.json``, ``manifest.json``, ``metrics.jsonl`` and ``report.html``."""

    out, trained = tuning.out, read_json(tuning.out / "train" / "result.json")
    scores = tuning.scores()
    both = {
        name: {"before": scores["before"].get(name), "after": scores["after"].get(name)}
        for name in scores["after"]
    }
    predicted, measured = tuning.plan.peak, trained["tensor_bytes"]
    manifest = run_manifest(out, inputs, sorted(tuning.result.glob("*.safetensors")), done)
    write_json(out / "manifest.json", manifest)
    with atomic_path(out / "metrics.jsonl") as temporary:
        shutil.copyfile(out / "train" / "metrics.jsonl", temporary)
    metrics = read_metrics(out / "metrics.jsonl")
    write_training_report(
        out / "report.html",
        TrainingReport(
            title=f"{out.name}: {tuning.options.model}, tuned",
            summary=_summary(tuning, trained),
            scores={name: (pair["before"], pair["after"]) for name, pair in both.items()},
            better=RISING,
            choices=tuning.choices.rows(),
            metrics=metrics,
            counts={
                "Steps": f"{trained['steps']:,}",
                "Trained tokens": quantity(trained["trained_tokens"]),
                "Training": duration(trained["seconds"]),
            },
            memory=tuning.plan.parts,
            predicted=predicted,
            measured=measured,
            sample=tuning.sample(),
            answers=_answers(tuning),
            settings={
                "asked": tuning.options.model_dump(mode="json", exclude_defaults=True),
                "skipped steps": {
                    name: trained[name]
                    for name in ("skipped_empty", "skipped_bad", "skipped_overflow")
                },
                "notes": {str(n): note for n, note in enumerate(tuning.data.notes, 1)},
                "outputs": manifest["outputs"],
            },
            next_commands=next_commands(tuning),
        ),
    )
    # Last, since a run with results is a finished one.
    write_json(
        out / "results.json",
        {
            "kind": "finetune",
            "scores": both,
            "train": trained,
            "memory": {"predicted_bytes": predicted, "measured_bytes": measured},
            "result": tuning.result.name,
        },
    )


def _summary(tuning: "Tuning", trained: dict[str, Any]) -> str:
    method = {"full": "all weights", "lora": "low-rank updates (LoRA)"}.get(
        tuning.choices["method"], "low-rank updates beside a 4-bit base (QLoRA)"
    )
    return (
        f"{method[0].upper()}{method[1:]} trained on {tuning.options.data}, "
        f"{trained['precision']}, and scored on data that it did not see."
    )


def _answers(tuning: "Tuning") -> list[Answer]:
    before, after = (read_json(tuning.out / name / "answers.json") for name in ("before", "after"))
    return [
        Answer(one["prompt"], one["wanted"], one["answer"], two["answer"])
        for one, two in zip(before, after, strict=True)
    ]


def next_commands(tuning: "Tuning") -> list[str]:
    """What to type after a run."""
    result = str(tuning.result)
    head = tuning.data.head
    if head not in ("causal", "seq2seq"):
        call = f"hone.pipeline({_TASKS[head]!r}, {result!r})('...')"
        return [f'python -c "import hone; print({call})"']
    if tuning.data.template is not None:
        commands = [shlex.join(["hone", "chat", result])]
    else:
        commands = [shlex.join(["hone", "generate", result, "..."])]
    if tuning.choices["method"] != "full":
        commands.append(shlex.join(["hone", "merge", result, "-o", f"{tuning.out}/merged"]))
    return commands


_TASKS = {
    "classification": "text-classification",
    "token-classification": "token-classification",
    "embedding": "feature-extraction",
}
