"""A recipe's run: its stages, its folder, its manifest.

database/    the sample database, when the recipe asks for it
questions/   train.jsonl and held_out.jsonl, prompts included
tokenizer/
train/       the loop's own checkpoints
checkpoint/  the trained model, a Hugging Face directory
eval/        every held-out question with the model's answer
int8/        the compressed model, and eval-int8/ its answers
metrics.jsonl, results.json, report.html, manifest.json, recipe.json
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from hone.core.files import read_json, write_json
from hone.evals.summary import Variant
from hone.parallel import Processes
from hone.plan import Plan
from hone.recipes.machine import find_device
from hone.recipes.manifest import run_manifest
from hone.recipes.runner import RECIPE_FILE, Progress, Stage, run_stages
from hone.recipes.settings import Recipe, TrainSettings
from hone.recipes.stages import Work
from hone.recipes.together import Together

# How the same weights are come by.
HABITS = {
    "micro_batches",
    "activation_checkpointing",
    "checkpointed_blocks",
    "offload_activations",
    "workers",
    "checkpoint_every",
    "keep_last",
    "device",
    "memory",
}


def run_recipe(
    recipe: Recipe,
    out: Path,
    fresh: bool = False,
    processes: Processes | None = None,
    on_plan: Callable[[Plan], None] = lambda plan: None,
) -> Path:
    """Run what is not done yet of ``recipe`` in the folder ``out``; returns ``out``.

    Args:
        fresh: forget what an earlier run left in the folder.
        processes: those that train together, each of which calls this.
        on_plan: called with what training is predicted to take, before it begins.

    Raises:
        HoneError: a stage failed. What was finished is kept; the same call goes on from there.
    """
    processes = processes or Processes()
    work = Work(recipe, out, processes)
    together = Together(processes, work.train)
    if not processes.first:
        together.follow(out / "train")
        return out
    inputs = work.inputs()
    find_device(recipe.train.device)  # before any work is done in vain
    stages = [
        Stage("database", {"database": inputs}, work.database),
        Stage("questions", {"data": _dump(recipe.data), "seed": recipe.seed}, work.questions),
        Stage("tokenizer", _dump(recipe.tokenizer), work.tokenizer),
        Stage(
            "train",
            {"model": _dump(recipe.model), "train": _without_habits(recipe.train)},
            together.train,
            in_place=True,
            check=lambda: on_plan(work.check()),
        ),
        Stage("eval", _dump(recipe.eval), work.evaluate),
    ]
    if recipe.quantize is not None:
        stages.append(Stage("int8", _dump(recipe.quantize), work.quantize, in_place=True))
        stages.append(Stage("eval-int8", {}, work.evaluate_quantized))
    done = run_stages(stages, out, fresh=fresh, prepare=lambda: _save_recipe(recipe, out))
    together.finish()
    manifest = _manifest(recipe, inputs, done, work)
    write_json(out / "manifest.json", manifest)
    work.report(done, manifest)
    return out


def _dump(settings: Any) -> dict[str, Any]:
    return settings.model_dump(mode="json")


def _without_habits(train: TrainSettings) -> dict[str, Any]:
    """The settings without those that change no weight: changing them must cost no work."""
    return train.model_dump(mode="json", exclude=HABITS)


def _save_recipe(recipe: Recipe, out: Path) -> None:
    write_json(out / RECIPE_FILE, _dump(recipe))


def _manifest(recipe: Recipe, inputs: dict[str, Any], done: Progress, work: Work) -> dict[str, Any]:
    """What went in, what came out and what it ran on."""
    folders = ["checkpoint"] if recipe.quantize is None else ["checkpoint", "int8"]
    return run_manifest(
        work.out,
        inputs,
        [work.out / folder / "model.safetensors" for folder in folders],
        done,
        libraries=("sqlglot",),
        recipe=_dump(recipe),
        held_out_templates_seen=_templates_seen(work),
    )


def _templates_seen(work: Work) -> dict[str, float]:
    """The share of each held-out set whose query differs from a training query in values only."""
    trained = {question.template for question in work.train_questions()}
    seen: dict[str, list[bool]] = {}
    for question in work.held_out():
        seen.setdefault(question.split, []).append(question.template in trained)
    return {split: round(sum(found) / len(found), 4) for split, found in seen.items()}


def run_variants(run: Path) -> tuple[Variant, ...]:
    """What was measured of a finished run's model, and of its compressed form if it has one."""
    recipe = Recipe.model_validate(read_json(run / RECIPE_FILE))
    return Work(recipe, run).variants()
