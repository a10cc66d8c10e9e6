"""Model cards: what a student or an adapter is, in the figures of its report.

Takes a folder with `wid_report.json` and `config.json`, or a wid model; gives a `huggingface_hub.ModelCard`.
Called by `compress`. Cards have no names of local files, only names on the Hub.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import transformers
from huggingface_hub import ModelCard, ModelCardData, hf_hub_download
from peft import PeftModel
from transformers import AutoConfig, PretrainedConfig
from transformers.tokenization_utils_base import TOKENIZER_CONFIG_FILE

from ..errors import WidError
from ..extras import extra
from ..planning.empty_student import empty_student
from .model_size import ModelSize, model_size, size_rows
from .own_files import CALIBRATION_PICTURE, FILE_NAME
from .paths import expanded
from .report_file import read_report

CARD_NAME = "README.md"
TEMPLATE = Path(__file__).parent / "templates" / "card.md"
WID_TAG = "weight-inherited-distillation"
TAGS = ("wid-hf", WID_TAG, "compression")
TOKENS = "tokens"  # what the numbers of texts are called
SIDES = ("teacher", "start", "student")  # in the order of tables; JSON keeps none
SENTENCES = "sentence-vectors"  # the objective of models of sentence-transformers
INHERITED = ("license", "license_name", "license_link", "language")


def student_card(folder: str | Path, name: str | None = None) -> ModelCard:
    """Return the card of the student in `folder`; every figure comes from its `wid_report.json`.

    Args:
        folder: holds `wid_report.json` and `config.json`, as `compress` writes them.
        name: the argument of `from_pretrained` in the card, such as `me/my-student`; the folder's name if None.

    Raises:
        WidError: the folder has no report, a report that is not from `compress`, or no student.
        FormatError: a newer wid_hf wrote the report.
        MissingExtraError: jinja2 is not installed.
    """
    folder = Path(expanded(folder))
    path = folder / FILE_NAME
    if not path.is_file():
        raise WidError(
            f"{folder} holds no {FILE_NAME}, from which a card takes its figures. `wid-hf compress` writes it."
        )
    try:
        report = read_report(path)
        config = AutoConfig.from_pretrained(folder)
        return _student_card(folder, report, config, name or folder.resolve().name)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, WidError):
            raise
        raise WidError(
            f"No card can be made for {folder}: {FILE_NAME} or config.json is not as compress writes it "
            f"({type(error).__name__}: {error})."
        ) from error


def _student_card(folder: Path, report: dict[str, Any], config: PretrainedConfig, name: str) -> ModelCard:
    hub, is_wid = report["settings"]["hub"], report["weights"] in ("folded", "merged")
    model_class = config.architectures[0]
    library, task, usage = _loading(report, model_class, config, folder, name)
    data = ModelCardData(
        base_model=hub["teacher"],
        base_model_relation="finetune" if hub["teacher"] else None,
        library_name=library,
        pipeline_tag=task,
        datasets=[hub["dataset"]] if hub["dataset"] else None,
        tags=[*TAGS] if is_wid else [tag for tag in TAGS if tag != WID_TAG],
        **_inherited(hub["teacher"] or report["teacher"], hub["revision"]),
    )
    return _card(
        data,
        kind="student" if is_wid else "baseline",
        weights=report["weights"],
        title=name.rpartition("/")[2],
        model_class=model_class,
        teacher_link=_teacher_link(hub["teacher"], hub["revision"]),
        version=report["versions"]["wid-hf"],
        usage=usage,
        sizes={side: ModelSize(**report["sizes"][side]) for side in SIDES if side in report["sizes"]},
        requested=report["requested"],
        heads=report["head_strategy"],
        settled=report.get("settled"),
        search=report.get("search"),
        output_map=f'load_output_map("{name}")' if report.get("outputs") == "turned" else None,
        report=report,
        picture=CALIBRATION_PICTURE if (folder / CALIBRATION_PICTURE).is_file() else None,
    )


def _processor(unit: str, folder: Path) -> tuple[str, str]:
    """Return a name for what makes a student's inputs, and the auto class that loads it from the student's folder."""
    if unit == "images":
        return "processor", "AutoImageProcessor"
    if unit == "sounds":
        return "processor", "AutoProcessor" if (folder / TOKENIZER_CONFIG_FILE).is_file() else "AutoFeatureExtractor"
    return "tokenizer", "AutoTokenizer"


def _loading(
    report: Mapping[str, Any], model_class: str, config: PretrainedConfig, folder: Path, name: str
) -> tuple[str, str | None, list[str]]:
    """Return the library that loads a student, its pipeline tag, and the lines that load it."""
    if report["objective"] == SENTENCES:
        lines = [
            "from sentence_transformers import SentenceTransformer",
            "",
            f'model = SentenceTransformer("{name}")',
            "vectors = model.encode(texts)",
        ]
        return "sentence-transformers", "sentence-similarity", lines
    task, auto_class = _task(model_class, config)
    variable, processor = _processor(_unit(report), folder)
    lines = [
        f"from transformers import {auto_class}, {processor}",
        "",
        f'model = {auto_class}.from_pretrained("{name}")',
        f'{variable} = {processor}.from_pretrained("{name}")',
    ]
    return "transformers", task, lines


def adapter_card(model: PeftModel, name: str, report: Mapping[str, Any] | None = None) -> ModelCard:
    """Return the card of a wid adapter, to be saved as `README.md` after `model.save_pretrained(folder)`.

    PEFT writes a card as well, but from the student's config, which does not name the teacher.

    Args:
        model: what `get_wid_model` returned.
        name: the argument of `PeftModel.from_pretrained` in the card.
        report: the values of `wid_report.json`, if there is one; without it the card has neither scores nor recipe.

    Raises:
        MissingExtraError: jinja2 is not installed.
    """
    config = model.peft_config[model.active_adapter]
    wid_model = model.base_model
    teacher = wid_model.teacher
    model_class = type(teacher).__name__
    given = config.base_model_name_or_path
    hub_name = hub_id(given)
    task, auto_class = _task(model_class, teacher.config)
    at = f', revision="{config.revision}"' if config.revision else ""
    usage = [
        "import wid_hf  # makes PEFT know this kind of adapter",
        "from peft import PeftModel",
        f"from transformers import {auto_class}",
        "",
        f'teacher = {auto_class}.from_pretrained("{hub_name or "the teacher"}"{at})',
        f'model = PeftModel.from_pretrained(teacher, "{name}")',
        "student = model.merge_and_unload()  # a stock model",
    ]
    data = ModelCardData(
        base_model=hub_name,
        base_model_relation="adapter" if hub_name else None,
        library_name="peft",
        pipeline_tag=task,
        tags=[*TAGS, "transformers", *([f"base_model:adapter:{hub_name}"] if hub_name else [])],
        **_inherited(given, config.revision),
    )
    student = empty_student(teacher, wid_model.model.config)
    return _card(
        data,
        kind="adapter",
        title=name.rpartition("/")[2],
        model_class=model_class,
        teacher_link=_teacher_link(hub_name, config.revision),
        version=version("wid-hf"),
        usage=usage,
        sizes={"teacher": model_size(teacher), "student": model_size(student)},
        requested=config.requested,
        heads=config.head_strategy,
        settled=str(wid_model.settled),
        output_map="model.base_model.output_map" if wid_model.outputs == "turned" else None,
        report=report,
    )


def hub_id(name: str | None) -> str | None:
    """Return the Hub id in `name`, or None if it is a local file or folder; a dataset's config (`id:config`) is cut."""
    if not name or Path(name).exists() or Path(name).is_absolute():
        return None
    return name.partition(":")[0]


def _card(data: ModelCardData, *, sizes: dict[str, ModelSize], usage: list[str], **values: Any) -> ModelCard:
    report = values["report"]
    values["heads"] = {"dim": "as many, each narrower", "head": "fewer, as wide"}[values["heads"]]
    if search := values.get("search"):
        values["target"] = ", ".join(f"`{name}={most}`" for name, most in search["asked"]["target"].items())
    values["requested"] = ", ".join(f"`{name}={size}`" for name, size in values["requested"].items())
    if report:
        values |= {"scores": _scores(report), "held_out": _held_out(report), "recipe": list(_recipe(report))}
    with extra("cli"):
        import jinja2  # noqa: F401  huggingface_hub fills templates with it
    return ModelCard.from_template(
        data,
        template_str=TEMPLATE.read_text(encoding="utf-8"),
        usage="\n".join(usage),
        sizes=_markdown(["", *sizes], size_rows(sizes, list(sizes))),
        limits=list(_limits(data, report)),
        **values,
    )


def _teacher_link(hub_name: str | None, revision: str | None) -> str:
    if hub_name is None:
        return "a teacher that is not on the Hub"
    return f"[{hub_name}](https://huggingface.co/{hub_name})" + (f" at `{revision}`" if revision else "")


def _inherited(teacher: str | None, revision: str | None) -> dict[str, Any]:
    """Return the metadata that a student takes from its teacher's card, if that can be read."""
    if not teacher:
        return {}
    try:
        local = Path(teacher) / CARD_NAME
        path = local if Path(teacher).exists() else hf_hub_download(teacher, CARD_NAME, revision=revision)
        data = ModelCard.load(path, ignore_metadata_errors=True).data
    except Exception:  # no card, no network, metadata that is not YAML: each raises another error
        return {}
    return {name: value for name in INHERITED if (value := data.get(name)) is not None}


def _task(model_class: str, config: PretrainedConfig) -> tuple[str | None, str]:
    """Return the Hub's pipeline tag of a class, and the auto class that makes it; the class itself if there is none."""
    from transformers.pipelines import SUPPORTED_TASKS

    for task, row in SUPPORTED_TASKS.items():
        for auto_class in row["pt"]:
            made = auto_class._model_mapping.get(type(config), ())
            if model_class in [one.__name__ for one in (made if isinstance(made, tuple) else (made,))]:
                return task, auto_class.__name__
    return None, model_class if hasattr(transformers, model_class) else "AutoModel"


def _scores(report: Mapping[str, Any]) -> str | None:
    if "student" not in report["scores"]:  # its run was stopped, or scoring failed
        return None
    names = [name for name in SIDES if report["steps"] or name != "start"]
    figures = report["scores"]["student"]
    rows = [(figure.replace("_", " "), *(f"{report['scores'][n][figure]:.4f}" for n in names)) for figure in figures]
    whole = report.get("teacher_with_all_tokens") or {}
    rows += [
        (f"{figure.replace('_', ' ')}, with all tokens", f"{value:.4f}", *[""] * len(names[1:]))
        for figure, value in whole.items()
    ]
    return _markdown(["", *names], rows)


def _held_out(report: Mapping[str, Any]) -> str:
    settings = report["settings"]
    unit = _unit(report)
    whence = f"{unit} of another source" if settings["validation"] else f"{unit} held out of the training data"
    return f"up to {settings['validation_texts']:,} {whence}, seed {report['seed']}"


def _recipe(report: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    settings = report["settings"]
    dataset, unit, numbers = settings["hub"]["dataset"], _unit(report), report.get("numbers", TOKENS)
    yield (
        "Data",
        f"[{dataset}](https://huggingface.co/datasets/{dataset})" if dataset else f"{unit} that are not on the Hub",
    )
    yield "Method", report["title"]
    yield "Start", report["start"]
    if calibration := report["calibration"]:
        positions, seconds = calibration["positions"], calibration["seconds"]
        counted = TOKENS if numbers == TOKENS else "positions"
        yield "Calibration", f"{positions:,} {counted} in {seconds:.1f} s, ridge {settings['ridge']:g}"
    if report.get("vocabulary"):
        yield "Tokens", report["vocabulary"].removeprefix("Vocabulary: ")
    if dropped := (report["calibration"] or {}).get("dropped"):
        yield "Layers left out", ", ".join(f"`{layer['layer']}`" for layer in dropped)
    if report["steps"]:
        rates = ", ".join(f"{rate:g} for {kind}" for kind, rate in settings["learning_rates"].items())
        length = f" of up to {settings['max_length']} tokens" if numbers == TOKENS else ""
        amount = f"{report['tokens']:,} {numbers} in {report['seconds']:.0f} s"
        rows = f"{settings['batch_size']} {unit}{length}"
        yield "Training", f"{report['steps']:,} steps of {rows}; {amount}"
        yield "Learning rates", rates
    else:
        yield "Training", "none"
    yield "Hardware", report["hardware"]
    yield "Versions", ", ".join(f"{name} {number}" for name, number in report["versions"].items())


def _unit(report: Mapping[str, Any]) -> str:
    """Return what rows are called; a report of an earlier version is of texts."""
    unit: str = report.get("unit", "texts")
    return unit


def _limits(data: ModelCardData, report: Mapping[str, Any] | None) -> Iterator[str]:
    yield "It inherits the limitations and biases of its teacher; see the teacher's card."
    if report is None:
        yield "There are no evaluation results."
    elif "student" not in report["scores"]:
        yield "This student was not scored."
    else:
        yield "Only the scores above were measured. Measure it on your task before you rely on it."
        if not report["steps"]:
            yield "It was not trained after its start was made."
    if not data.get("license"):
        yield "The teacher's card names no license that could be taken over. Ask its owners before you share this."


def _markdown(header: list[str], rows: list[tuple[str, ...]]) -> str:
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
