"""Teachers from a folder or the Hub.

Takes a name, gives a stock model of the class that its checkpoint was saved as or with the head of a task, and its
tokenizer. Called by the commands.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoTokenizer, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from .errors import TeacherError


def load_teacher(
    name: str, *, revision: str | None = None, trust_remote_code: bool = False, dtype: str = "auto"
) -> PreTrainedModel:
    """Return the model in the folder or Hub repository `name`, in evaluation mode.

    Its class is the one its config names under `architectures`, or the headless model of its type.

    Raises:
        TeacherError: nothing there, unreadable weights, weights missing from the checkpoint, or code of its own that
            would have to run without `trust_remote_code`.
    """
    config = _config(name, revision, trust_remote_code)
    model_class = _model_class(name, config, trust_remote_code)
    try:
        model, info = model_class.from_pretrained(
            name, config=config, revision=revision, trust_remote_code=trust_remote_code, dtype=dtype,
            output_loading_info=True,
        )  # fmt: skip
    except Exception as cause:  # every file format behind from_pretrained raises errors of its own
        raise TeacherError(
            f"The weights of {name!r} cannot be loaded as {model_class.__name__}: {_first_line(cause)}. "
            "A complete checkpoint is a config.json with model.safetensors; download or save it again."
        ) from cause
    if info["missing_keys"] or info["mismatched_keys"]:
        missing = sorted(map(str, [*info["missing_keys"], *info["mismatched_keys"]]))
        raise TeacherError(
            f"The checkpoint {name!r} lacks {len(missing)} weights of {model_class.__name__} ({missing[0]}, ...); "
            "they would be random. Use a checkpoint that was saved from this class."
        )
    return model.eval()


def load_with_head(
    name: str, head: Any, *, revision: str | None = None, trust_remote_code: bool = False, **settings: Any
) -> PreTrainedModel:
    """Return the model `name` in float32 under another head, whose weights are drawn from torch's global generator.

    Args:
        name: folder or Hub id.
        head: an auto class of transformers, such as `AutoModelForSequenceClassification`.
        revision: of the model on the Hub.
        trust_remote_code: passed on to transformers.
        settings: of its config, such as `num_labels`.

    Raises:
        TeacherError: the weights below the head are not those of the checkpoint.
    """
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # that the head is new is what was asked for
    try:
        model, info = head.from_pretrained(
            name, revision=revision, trust_remote_code=trust_remote_code, dtype=torch.float32,
            ignore_mismatched_sizes=True, output_loading_info=True, **settings,
        )  # fmt: skip
    finally:
        logging.set_verbosity(verbosity)
    fresh = {key if isinstance(key, str) else key[0] for key in (*info["missing_keys"], *info["mismatched_keys"])}
    below = {id(parameter): parameter.numel() for parameter in model.base_model.parameters()}
    lost = sum(below.get(id(parameter), 0) for key, parameter in model.named_parameters() if key in fresh)
    if lost > sum(below.values()) / 2:  # a pooler that the checkpoint's own head had no use for is new as well
        raise TeacherError(
            f"Of {name!r}, {lost:,} weights below the head of {type(model).__name__} are not in the checkpoint; they "
            "would be random. Save the model from a class with the same base model."
        )
    return model


def load_tokenizer(
    name: str, *, revision: str | None = None, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """Return the tokenizer in the folder or Hub repository `name`.

    Raises:
        TeacherError: there is none.
    """
    advice = "Save one beside the model with tokenizer.save_pretrained(folder)."
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=trust_remote_code)
    except Exception as cause:
        raise TeacherError(f"{name!r} has no usable tokenizer: {_first_line(cause)}. {advice}") from cause
    if len(tokenizer) <= len(tokenizer.all_special_ids):  # transformers makes an empty one where there are no files
        raise TeacherError(f"{name!r} has no usable tokenizer: its vocabulary is empty. {advice}")
    return tokenizer


def _config(name: str, revision: str | None, trust_remote_code: bool) -> PretrainedConfig:
    path = Path(name)
    if path.is_dir() and not (path / "config.json").is_file():
        raise TeacherError(f"The folder {name!r} has no config.json, so it is no Hugging Face model folder.")
    if not path.is_dir() and (path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1):
        raise TeacherError(f"There is no folder {name!r}. Give a model folder or a Hub id such as 'org/name'.")
    try:
        return AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=trust_remote_code)
    except Exception as cause:  # as above
        if not trust_remote_code and "trust_remote_code=True" in str(cause):  # transformers has no class for it
            raise TeacherError(_own_code(name)) from cause
        raise TeacherError(
            f"{name!r} is neither a model folder here nor a model on the Hub that can be read: {_first_line(cause)}. "
            "Check the name, the network and, for private models, `hf auth login`; a folder needs a config.json "
            "with a model_type."
        ) from cause


def _model_class(name: str, config: PretrainedConfig, trusted: bool) -> Any:
    """Return the class of the checkpoint, or the auto class that finds it in the code beside the checkpoint."""
    wanted = (config.architectures or [""])[0]
    places = getattr(config, "auto_map", None) or {}  # such as {"AutoModel": "modeling.MyModel"}
    own = next((auto for auto, place in places.items() if str(place).rpartition(".")[2] == wanted), None)
    if own is not None and trusted:
        return getattr(transformers, own)
    if own is not None and not hasattr(transformers, wanted):
        raise TeacherError(_own_code(name))
    return getattr(transformers, wanted, transformers.AutoModel)


def _own_code(name: str) -> str:
    where = str(Path(name).absolute()) if Path(name).is_dir() else f"https://huggingface.co/{name}"
    return (
        f"{name!r} is a model with Python code of its own, which would run on this machine with your rights. None "
        f"of it has run. Read it at {where}; if you trust it, allow it by --trust-remote-code, in Python "
        "trust_remote_code=True, and name the --revision that you read."
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
