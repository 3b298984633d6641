"""The model card of a checkpoint: ``README.md`` as the hub shows it.

Every figure is read from a file: of a run ``manifest.json``, ``recipe.json`` and ``results.json``,
of a bare checkpoint its ``config.json`` alone. What no file says, the card does not say.

The header follows the hub's documentation of model cards, "Model card metadata" and
"Evaluation results" (``model-index``).
"""

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hone.core.errors import CheckpointError, DataError
from hone.core.files import read_json, sha256_file
from hone.recipes.adapter_base import base_config, hub_name
from hone.recipes.runner import RECIPE_FILE

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

MANIFEST = "manifest.json"
_WEIGHTS, _ADAPTER_WEIGHTS = "model.safetensors", "adapter_model.safetensors"
_COMPRESSED = "int8"
_METRICS = {"execution_accuracy": "Execution accuracy", "exact_match": "Exact match"}
_LANGUAGES = {"all": "all", "ko": "Korean", "en": "English"}
# The hub's tasks, by the end of the name in "architectures".
_TASKS = {
    "ForCausalLM": "text-generation",
    "LMHeadModel": "text-generation",
    "ForMaskedLM": "fill-mask",
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
}
# The keys of config.json that say what a model is, in the spellings of its families.
_SHAPE = {
    "Layers": ("num_hidden_layers", "n_layer", "num_layers"),
    "Hidden size": ("hidden_size", "n_embd", "d_model"),
    "Attention heads": ("num_attention_heads", "n_head", "num_heads"),
    "Key and value heads": ("num_key_value_heads",),
    "Experts": ("num_local_experts", "num_experts"),
    "Vocabulary": ("vocab_size",),
    "Context": ("max_position_embeddings", "n_positions"),
    "Stored as": ("dtype", "torch_dtype"),
}


@dataclass(frozen=True, slots=True)
class Source:
    """What a card is about.

    Attributes:
        checkpoint: the directory with the weights.
        run: the run that made it, if its manifest says so.
    """

    checkpoint: Path
    run: Path | None

    @property
    def compressed(self) -> bool:
        """Whether it is the compressed form of a run's model."""
        return self.run is not None and self.checkpoint.name == _COMPRESSED


def find_source(path: str | Path) -> Source:
    """The checkpoint that ``path`` means, a run's own or a bare one, and its run if it has one.

    Raises:
        CheckpointError: it is neither; the run is not finished; or the weights are no longer those
            that the run's manifest describes, whose results would be another model's.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is not there; give the directory of a run or checkpoint.")
    # Not resolved: a run may be a link, and its checkpoint too.
    if (folder / RECIPE_FILE).is_file():
        made = (folder / name for name in ("checkpoint", "adapter"))
        checkpoint = next((path for path in made if path.is_dir()), folder / "checkpoint")
        run = folder
        if not (run / MANIFEST).is_file() or not checkpoint.is_dir():
            raise CheckpointError(
                f"{folder} is a run that is not finished (it has no {MANIFEST}); finish it with "
                "the command that started it."
            )
    elif (folder / "config.json").is_file() or (folder / "adapter_config.json").is_file():
        checkpoint, run = folder, folder.absolute().parent
        if not (run / RECIPE_FILE).is_file() or not (run / MANIFEST).is_file():
            return Source(checkpoint, None)
    else:
        raise CheckpointError(
            f"{folder} is neither a checkpoint (it has no config.json) nor a run (it has no "
            f"{RECIPE_FILE})."
        )
    outputs = _object(run / MANIFEST).get("outputs")
    if not isinstance(outputs, dict):
        raise CheckpointError(f"{run / MANIFEST} has no 'outputs', so it is not a run's manifest.")
    whole = (checkpoint / "config.json").is_file()
    weights = checkpoint / (_WEIGHTS if whole else _ADAPTER_WEIGHTS)
    said = outputs.get(f"{checkpoint.absolute().name}/{weights.name}")
    if said is None:
        return Source(checkpoint, None)
    if not weights.is_file() or sha256_file(weights) != said:
        raise CheckpointError(
            f"{weights} is not the file that {run / MANIFEST} describes, so the "
            "results in there are of another model. Run the recipe again, or copy the checkpoint "
            "out of the run to publish it without results."
        )
    return Source(checkpoint, run)


def model_card(source: str | Path | Source, name: str | None = None) -> str:
    """The text of ``README.md`` for a run or a checkpoint.

    Args:
        source: a run, a checkpoint within one, any other checkpoint, or what was found of it.
        name: the repository on the hub, ``org/name``, for the title and the commands.

    Raises:
        CheckpointError: see :func:`find_source`, or one of the files is broken.
    """
    if not isinstance(source, Source):
        source = find_source(source)
    address = f"hf://{name}" if name else str(source.checkpoint)
    where = source.checkpoint if source.run is None else source.run
    try:
        header, sections = _bare(source, name) if source.run is None else _of_run(source, name)
        sections += _usage(address, source)
    except (AttributeError, KeyError, IndexError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{where}: one of its JSON files is not of the form that hone writes ({error!r})."
        ) from error
    return f"---\n{header.strip()}\n---\n\n" + "\n\n".join(filter(None, sections)) + "\n"


def _bare(source: Source, name: str | None) -> tuple[str, list[str]]:
    config = _config(source.checkpoint)
    title = (name or source.checkpoint.absolute().name).rpartition("/")[2]
    return _header(title, config), [f"# {_cell(title)}", _architecture(config)]


def _of_run(source: Source, name: str | None) -> tuple[str, list[str]]:
    assert source.run is not None
    config = _config(source.checkpoint)
    manifest, recipe = _object(source.run / MANIFEST), _object(source.run / RECIPE_FILE)
    results = _results(source)
    data = recipe.get("data", {})
    title = (name or str(recipe.get("name", source.run.name))).rpartition("/")[2]
    evaluations = _evaluations(results, _database(data))
    return _header(title, config, data.get("languages", ()), evaluations), [
        f"# {_cell(title)}",
        _introduction(data, manifest),
        _accuracy(results, manifest),
        _scores(results),
        _speed(results, manifest),
        "## Model",
        _architecture(config),
        "## Training",
        _training(recipe, manifest, results),
    ]


def _object(file: Path) -> dict[str, Any]:
    try:
        value = read_json(file)
    except DataError as error:
        raise CheckpointError(str(error)) from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{file}: expected a JSON object, found {type(value).__name__}.")
    return value


def _config(checkpoint: Path) -> dict[str, Any]:
    """The model's config; of an adapter its base's, and as ``adapter_of`` what that is called."""
    file = checkpoint / "config.json"
    if file.is_file():
        return _object(file)
    adapter = _object(checkpoint / "adapter_config.json")
    try:
        base = base_config(adapter, checkpoint)
    except DataError as error:
        raise CheckpointError(str(error)) from error
    name = hub_name(adapter, checkpoint)
    shown = name or _architecture_name(base) or base.get("model_type")
    return base | {"base_model": name, "adapter_of": shown}


def _results(source: Source) -> dict[str, Any]:
    """What was measured of this form of the model; nothing if nothing was."""
    assert source.run is not None
    file = source.run / "results.json"
    results = _object(file) if file.is_file() else {}
    if not source.compressed:
        return results
    # The whole run's figures hold for both forms, the accuracy and the speed only for one.
    shared = {key: results[key] for key in ("parameters", "seconds") if key in results}
    return shared | results.get(_COMPRESSED, {})


def _architecture_name(config: Mapping[str, Any]) -> str:
    names = config.get("architectures") or [""]
    return str(names[0])


def _task(config: Mapping[str, Any]) -> str | None:
    name = _architecture_name(config)
    return next((task for end, task in _TASKS.items() if name.endswith(end)), None)


def _header(
    title: str,
    config: Mapping[str, Any],
    languages: Iterable[str] = (),
    evaluations: Sequence["EvalResult"] = (),
) -> str:
    """The YAML between the two lines of dashes, by the hub's own library."""
    from huggingface_hub import ModelCardData

    tags = [config.get("model_type"), "text-to-sql" if evaluations else None]
    card = ModelCardData(
        language=list(languages) or None,
        library_name="hone",
        pipeline_tag=_task(config),
        base_model=config.get("base_model"),
        tags=[str(tag) for tag in tags if tag] or None,
        model_name=_line(title) if evaluations else None,
        eval_results=list(evaluations) or None,
    )
    return str(card.to_yaml())


def _evaluations(results: Mapping[str, Any], database: str) -> list["EvalResult"]:
    """The measured shares as the hub's library takes them."""
    from huggingface_hub import EvalResult

    return [
        EvalResult(
            task_type="text-generation",
            task_name="Text-to-SQL",
            dataset_type=database.removeprefix("the ").replace(" ", "-"),
            dataset_name=f"{database}, {_words(split)}",
            dataset_split=_line(split),
            metric_type=metric,
            metric_name=f"{_METRICS[metric]}, {_line(_LANGUAGES.get(group, group))}",
            metric_value=value,
        )
        for metric, split, group, value in _shares(results)
    ]


def _shares(results: Mapping[str, Any]) -> list[tuple[str, str, str, float]]:
    """(metric, held-out set, language, share) of everything that was scored."""
    return [
        (metric, split, group, value)
        for metric in _METRICS
        for split, groups in results.get(metric, {}).items()
        for group, value in groups.items()
    ]


def _file_name(path: object) -> str:
    """A file without its folders, which are nobody's business."""
    return _line(Path(str(path)).name)


def _words(name: str) -> str:
    return _line(name.replace("_", " "))


def _line(text: object) -> str:
    """``text`` without line breaks, which could end the header or a table."""
    return " ".join(str(text).split())


def _cell(value: object) -> str:
    """``value`` within a Markdown table."""
    counts = isinstance(value, int) and not isinstance(value, bool)
    return _line(f"{value:,}" if counts else value).replace("|", "\\|")


def _table(head: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    head = list(head)
    lines = [head, ["---"] * len(head), *([_cell(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _database(data: Mapping[str, Any]) -> str:
    name = data.get("database", "unknown")
    return "the sample database of hone" if name == "sample" else _file_name(name)


def _introduction(data: Mapping[str, Any], manifest: Mapping[str, Any]) -> str:
    version = f" {manifest['hone']}" if "hone" in manifest else ""
    if "database" not in data:
        return f"Trained with hone{version}."
    said = " and ".join(_LANGUAGES.get(code, code) for code in data.get("languages", ()))
    return (
        f"Writes SQL for questions{f' in {said}' if said else ''} about one database, "
        f"{_database(data)}. Trained with hone{version}."
    )


def _accuracy(results: Mapping[str, Any], manifest: Mapping[str, Any]) -> str:
    shares = {(metric, split, group): v for metric, split, group, v in _shares(results)}
    if not shares:
        return ""
    metrics = [metric for metric in _METRICS if metric in results]
    places = dict.fromkeys((split, group) for _, split, group in shares)
    rows = [
        [
            _words(split),
            _LANGUAGES.get(group, group),
            results.get("items", {}).get(split, {}).get(group, ""),
            *(
                _share(
                    shares.get((metric, split, group)),
                    results.get("intervals", {}).get(metric, {}).get(split, {}).get(group),
                )
                for metric in metrics
            ),
        ]
        for split, group in places
    ]
    head = ["Held-out set", "Language", "Questions", *(_METRICS[metric] for metric in metrics)]
    notes = [
        "Shares in percent with their 95 % intervals. Execution accuracy: the written query "
        "returns what the right one returns."
    ]
    notes += [
        f"{share:.1%} of the set “{_words(split)}” ask for a query that differs from one of the "
        "training set in its values only."
        for split, share in manifest.get("held_out_templates_seen", {}).items()
    ]
    return "\n\n".join(["## Results", _table(head, rows), " ".join(notes)])


def _scores(results: Mapping[str, Any]) -> str:
    """What training changed on held-out data; without a column of what was not measured."""
    scores = results.get("scores", {})
    times = [
        time
        for time in ("before", "after")
        if any(pair.get(time) is not None for pair in scores.values())
    ]
    if not times:
        return ""
    rows = [
        [name, *("" if pair.get(time) is None else f"{pair[time]:.4g}" for time in times)]
        for name, pair in scores.items()
    ]
    head = ["Score on held-out data", *(f"{time} training".capitalize() for time in times)]
    return f"## Results\n\n{_table(head, rows)}"


def _share(value: float | None, interval: list[float] | None) -> str:
    if value is None:
        return ""
    if not interval:
        return f"{100 * value:.1f}"
    return f"{100 * value:.1f} ({100 * interval[0]:.1f}–{100 * interval[1]:.1f})"


def _speed(results: Mapping[str, Any], manifest: Mapping[str, Any]) -> str:
    machine = manifest.get("machine", {})
    threads = f", {machine['threads']} threads" if "threads" in machine else ""
    rows = []
    if "bytes" in results:
        rows.append(("Weights", f"{results['bytes']:,} bytes"))
    if "tokens_per_second" in results:
        place = f"{machine.get('processor', 'one machine')}{threads}"
        speed = f"{results['tokens_per_second']:,.0f} tokens/s"
        rows.append((f"Generation, many questions at once, on {place}", speed))
    return _table(("Measured", ""), rows) if rows else ""


def _architecture(config: Mapping[str, Any]) -> str:
    rows: list[tuple[str, object]] = []
    if "model_type" in config:
        rows.append(("Kind", config["model_type"]))
    if _architecture_name(config):
        rows.append(("Architecture", _architecture_name(config)))
    if config.get("adapter_of"):
        rows.append(("Adapter of", config["adapter_of"]))
    for label, keys in _SHAPE.items():
        value = next((config[key] for key in keys if config.get(key) is not None), None)
        if value is not None:
            rows.append((label, value))
    quantization = config.get("quantization_config")
    if isinstance(quantization, dict):
        said = [quantization.get("quant_method"), quantization.get("format")]
        rows.append(("Quantized", ", ".join(str(word) for word in said if word)))
    return _table(("Model", ""), rows)


def _training(
    recipe: Mapping[str, Any], manifest: Mapping[str, Any], results: Mapping[str, Any]
) -> str:
    # Of a tuned run, what it chose.
    train, data = recipe.get("train", recipe.get("chosen", {})), recipe.get("data", {})
    rows: list[tuple[str, object]] = [
        (key, recipe[key]) for key in ("name", "seed") if key in recipe
    ]
    for name, file in manifest.get("inputs", {}).items():
        digest = f", SHA-256 {file['sha256']}" if "sha256" in file else ""
        rows.append((f"input, {name}", f"{_file_name(file.get('file') or file['path'])}{digest}"))
    rows += [
        (f"data, {_words(key)}", data[key]) for key in ("questions", "held_out") if key in data
    ]
    settings = ("method", "steps", "tokens_per_step", "optimizer", "schedule", "precision")
    rows += [(_words(key), train[key]) for key in settings if key in train]
    rows += [("parameters", results["parameters"])] if "parameters" in results else []
    for key, seconds in results.get("seconds", {}).items():
        rows.append((f"seconds, {key}", f"{seconds:,.0f}"))
    machine, libraries = manifest.get("machine", {}), manifest.get("libraries", {})
    rows += [(key, machine[key]) for key in ("processor", "system", "python") if key in machine]
    rows += [(name, version) for name, version in libraries.items()]
    rows += [(f"SHA-256 of {file}", digest) for file, digest in manifest["outputs"].items()]
    return _table(("Run", ""), rows)


def _usage(address: str, source: Source) -> list[str]:
    """How the model is used, in English and in Korean; nothing where it generates no text."""
    config = _config(source.checkpoint)
    if _task(config) != "text-generation":
        return []
    if "adapter_of" in config and config["base_model"] is None:
        return []  # others do not have its base
    about = {} if source.run is None else _object(source.run / RECIPE_FILE).get("data", {})
    at = shlex.quote(address)
    sections = []
    for title, prompt, question in (
        ("Usage", "Once upon a time", "How many customers are there?"),
        ("사용법", "옛날 옛적에", "고객은 모두 몇 명인가요?"),
    ):
        ask = f'hone ask {at} --db DATABASE.sqlite "{question}"'
        lines = [ask if "database" in about else f'hone generate {at} "{prompt}"']
        if (source.checkpoint / "chat_template.jinja").is_file():
            lines.append(f"hone chat {at}")
        sections += [f"## {title}", "```sh\n{}\n```".format("\n".join(lines))]
    return [*sections, f"```python\nimport hone\n\nlm = hone.load({address!r})\n```"]
