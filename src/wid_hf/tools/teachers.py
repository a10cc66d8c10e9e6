"""Teachers from a folder or the Hub.

Takes a name, gives a stock model of the class that its checkpoint was saved as or with the head of a task, and what
makes its inputs: a tokenizer, an image processor or a processor of sounds. Called by the commands.
"""

from __future__ import annotations

import copy
import inspect
import shutil
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import AutoConfig, AutoTokenizer, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_PRETRAINING_MAPPING_NAMES,
)
from transformers.tokenization_utils_base import (
    ADDED_TOKENS_FILE,
    FULL_TOKENIZER_FILE,
    SPECIAL_TOKENS_MAP_FILE,
    TOKENIZER_CONFIG_FILE,
)
from transformers.utils import CHAT_TEMPLATE_FILE, FEATURE_EXTRACTOR_NAME, PROCESSOR_NAME, cached_file, logging

from ..errors import TeacherError
from ..hub.paths import expanded
from ..inputs import STORED
from ..planning.teacher_check import why_not_made_of_a_config
from ..sentence_models import has_pooling

PROCESSOR_FILES = (
    FEATURE_EXTRACTOR_NAME,  # of image processors too
    PROCESSOR_NAME,
    FULL_TOKENIZER_FILE,
    TOKENIZER_CONFIG_FILE,
    SPECIAL_TOKENS_MAP_FILE,
    ADDED_TOKENS_FILE,
    CHAT_TEMPLATE_FILE,
    "tokenizer.model",  # current tokenizers do not need it, but converters to other formats do
)
LANGUAGE_MODELS = {
    name
    for names in (
        MODEL_FOR_PRETRAINING_MAPPING_NAMES,
        MODEL_FOR_MASKED_LM_MAPPING_NAMES,
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    )
    for name in names.values()
}


class Teacher:
    """A model with what makes its inputs; both are loaded when they are needed.

    Args:
        name: folder or Hub id; for a model from elsewhere, what reports call it.
        revision: on the Hub.
        trust_remote_code: passed on to transformers.
        model: the model, if it is loaded already; it stays as it is.
        processing_class: what makes its inputs, instead of what is in the folder or repository.
        headless: a sentence encoder loads without the head of a language model that its config may name.
    """

    def __init__(
        self,
        name: str,
        *,
        revision: str | None = None,
        trust_remote_code: bool = False,
        model: PreTrainedModel | None = None,
        processing_class: Any = None,
        headless: bool = False,
    ) -> None:
        self.name = expanded(name)
        self._headless = headless
        self.revision = revision
        self._trust_remote_code = trust_remote_code
        self._model, self._processing_class = model, processing_class

    @classmethod
    def of(cls, model: PreTrainedModel, processing_class: Any = None) -> Teacher:
        """Return a loaded model as a teacher."""
        return cls(model.name_or_path or type(model).__name__, model=model, processing_class=processing_class)

    def replaced(self, model: PreTrainedModel, processing_class: Any) -> Teacher:
        """Return another model with what makes its inputs under the same name."""
        return Teacher(self.name, revision=self.revision, model=model, processing_class=processing_class)

    @cached_property
    def model(self) -> PreTrainedModel:
        """The model, in evaluation mode.

        Raises:
            TeacherError: see `load_teacher`.
        """
        if self._model is not None:
            return _on_the_same_weights(self._model).eval()
        return load_teacher(
            self.name,
            revision=self.revision,
            trust_remote_code=self._trust_remote_code,
            headless=self._headless and has_pooling(self.name, self.revision),
        )

    def own_weights(self) -> None:
        """Let training change the weights of `model`, but not those of a model that was given."""
        if self._model is not None:
            for parameter in self.model.parameters():
                parameter.data = parameter.data.clone()

    @cached_property
    def processor(self) -> Any:
        """What makes its inputs: a tokenizer, an image processor or a processor of sounds.

        Raises:
            TeacherError: there is none.
        """
        if self._processing_class is not None:
            return self._processing_class
        return load_processor(self.name, self.model, revision=self.revision, trust_remote_code=self._trust_remote_code)

    def save_processor(self, folder: Path) -> None:
        """Save what makes the inputs for a student in `folder`."""
        if self._processing_class is not None:
            self._processing_class.save_pretrained(folder)
        else:
            save_processor(self.processor, folder, self.name, revision=self.revision)


def _on_the_same_weights(model: PreTrainedModel) -> PreTrainedModel:
    """Return a copy of a model that shares the values of its weights and nothing else, such as what is frozen."""
    shared = {id(p): nn.Parameter(p.detach(), p.requires_grad) for p in model.parameters()}
    return copy.deepcopy(model, shared | {id(b): b.detach() for b in model.buffers()})


def load_teacher(
    name: str,
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
    dtype: str = "auto",
    headless: bool = False,
) -> PreTrainedModel:
    """Return the model in the folder or Hub repository `name`, in evaluation mode.

    Its class is the one its config names under `architectures`, or the headless model of its type.

    Args:
        name: folder or Hub id.
        revision: of the model on the Hub.
        trust_remote_code: passed on to transformers.
        dtype: of the weights.
        headless: leave out the head of a language model; `architectures` of many sentence encoders names one that
            their checkpoints lack.

    Raises:
        TeacherError: there is no model, weights are unreadable or missing, its own code would have to run without
            `trust_remote_code`, or its class's constructor needs more than a config.
    """
    name = expanded(name)
    config = _config(name, revision, trust_remote_code)
    model_class = _model_class(name, config, trust_remote_code, headless)
    if why := why_not_made_of_a_config(model_class):
        raise TeacherError(why)
    try:
        model, info = model_class.from_pretrained(
            name,
            config=config,
            revision=revision,
            trust_remote_code=trust_remote_code,
            dtype=dtype,
            output_loading_info=True,
        )
    except Exception as cause:  # each file format that from_pretrained loads raises other errors
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
    name = expanded(name)
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # no warning about the new head, which is intended
    try:
        model, info = head.from_pretrained(
            name,
            revision=revision,
            trust_remote_code=trust_remote_code,
            dtype=torch.float32,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            **settings,
        )
    except Exception as cause:  # every file format behind from_pretrained raises other errors
        raise TeacherError(f"{name!r} cannot be loaded by {head.__name__}: {_first_line(cause)}.") from cause
    finally:
        logging.set_verbosity(verbosity)
    fresh = {key if isinstance(key, str) else key[0] for key in (*info["missing_keys"], *info["mismatched_keys"])}
    below = {id(parameter): parameter.numel() for parameter in model.base_model.parameters()}
    lost = sum(below.get(id(parameter), 0) for key, parameter in model.named_parameters() if key in fresh)
    if lost > sum(below.values()) / 2:  # a pooler that the checkpoint's own head did not need is new as well
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
    name = expanded(name)
    advice = "Save one beside the model with tokenizer.save_pretrained(folder)."
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=trust_remote_code)
    except Exception as cause:
        raise TeacherError(f"{name!r} has no usable tokenizer: {_first_line(cause)}. {advice}") from cause
    if len(tokenizer) <= len(tokenizer.all_special_ids):  # transformers makes an empty one if there are no files
        raise TeacherError(f"{name!r} has no usable tokenizer: its vocabulary is empty. {advice}")
    return tokenizer


def load_processor(
    name: str, teacher: PreTrainedModel, *, revision: str | None = None, trust_remote_code: bool = False
) -> Any:
    """Return what makes the inputs of `teacher` from the folder or Hub repository `name`.

    Returns:
        A tokenizer; for images an image processor; for sounds a processor with a feature extractor and a tokenizer, or
        a feature extractor alone where that is all there is.

    Raises:
        TeacherError: there is none.
    """
    main = teacher.main_input_name
    if main not in STORED:
        return load_tokenizer(name, revision=revision, trust_remote_code=trust_remote_code)
    kind, cause = STORED[main], None
    for auto in kind.loaders:
        try:
            made = auto.from_pretrained(expanded(name), revision=revision, trust_remote_code=trust_remote_code)
        except Exception as error:  # each kind of file raises another
            cause = error
            continue
        if kind.can_use(made):
            return made
    why = f": {_first_line(cause)}" if cause is not None else ""
    raise TeacherError(
        f"{name!r} has no usable processor of {kind.unit}{why}. Save one beside the model with "
        "processor.save_pretrained(folder)."
    ) from cause


def save_processor(processor: Any, folder: Path, name: str, *, revision: str | None = None) -> None:
    """Copy the files of a processor of the teacher `name` to `folder`; saving the processor could change them.

    Args:
        processor: the loaded processor, saved if the files cannot be copied.
        folder: of the student.
        name: folder or Hub id of the teacher.
        revision: of the teacher on the Hub.
    """
    processor.save_pretrained(folder)
    tokenizer = getattr(processor, "tokenizer", processor)
    for file in sorted({*PROCESSOR_FILES, *getattr(tokenizer, "vocab_files_names", {}).values()}):
        path = cached_file(
            expanded(name),
            file,
            revision=revision,
            _raise_exceptions_for_gated_repo=False,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
        if path is not None and not _names_code(Path(path)):
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, folder / file)


def _names_code(path: Path) -> bool:
    """Return whether a config names code in the teacher's folder; saving makes it name the teacher too."""
    return path.name.endswith("config.json") and '"auto_map"' in path.read_text(encoding="utf-8")


def working_processor(processor: Any, model: PreTrainedModel, *, masks: bool = False) -> Any:
    """Return `working_tokenizer` of a tokenizer, and any other processor as it is."""
    is_tokenizer = isinstance(processor, PreTrainedTokenizerBase)
    return working_tokenizer(processor, model, masks=masks) if is_tokenizer else processor


def working_tokenizer(
    tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, *, masks: bool = False
) -> PreTrainedTokenizerBase:
    """Return a copy of `tokenizer` for making batches for `model`; the original is not changed.

    A tokenizer without padding token, as decoders often have, pads with its end-of-text token, which is masked anyway.

    Args:
        tokenizer: of the model.
        model: the model with the table of tokens.
        masks: whether tokens will be masked.

    Raises:
        TeacherError: it has no token to pad or to mask with, or tokens that the model has no row for.
    """
    kind = type(tokenizer).__name__
    advice = "and save the tokenizer beside the model with tokenizer.save_pretrained(folder)"
    if masks and tokenizer.mask_token is None:
        raise TeacherError(
            f"The tokenizer ({kind}) has no mask token, which masked language modelling needs. Set "
            f"tokenizer.mask_token to the one that {type(model).__name__} was trained with, {advice}."
        )
    table = getattr(_input_table(model), "weight", None)
    tokens = max(len(tokenizer), 1 + max(tokenizer.get_vocab().values(), default=0))
    if table is not None and tokens > len(table):
        raise TeacherError(
            f"The tokenizer ({kind}) has {tokens:,} tokens, and {type(model).__name__} has {len(table):,} rows for "
            "them: a token without a row cannot be looked up. Use the tokenizer that belongs to the model, or call "
            "model.resize_token_embeddings(len(tokenizer)), train the new rows, and save both."
        )
    if tokenizer.pad_token is None and tokenizer.eos_token is None:
        raise TeacherError(
            f"The tokenizer ({kind}) has neither a padding token nor an end-of-text token, so texts of different "
            f"lengths cannot be put into a batch. Set tokenizer.pad_token, {advice}."
        )
    working = copy.deepcopy(tokenizer)
    if working.pad_token is None:
        working.pad_token = working.eos_token
    return working


@torch.no_grad()
def longest_text(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, length: int) -> int:
    """Return how many of `length` tokens a text may have for `model`, which is on a CPU and in evaluation mode.

    The length in config and tokenizer is tried in a forward without head: RoBERTa's table, for example, has two unused
    rows. A decoder beside an encoder gets a text of this length as well.
    """
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    stated = [n for n in (positions, tokenizer.model_max_length) if isinstance(n, int) and n > 0]
    longest = min([length, *stated])
    plain = next(n for n in range(len(tokenizer)) if n not in tokenizer.all_special_ids)
    body = model.base_model
    taken = {"input_ids", "decoder_input_ids"} & inspect.signature(body.forward).parameters.keys()

    def fits(tokens: int) -> bool:
        try:
            body(**dict.fromkeys(taken, torch.full((1, tokens), plain, device=model.device)))
        except (IndexError, RuntimeError):
            return False
        return True

    if fits(longest) or not fits(1):  # with one token it fails for another reason, which is reported elsewhere
        return longest
    least, most = 1, longest
    while most - least > 1:
        middle = (least + most) // 2
        least, most = (middle, most) if fits(middle) else (least, middle)
    return least


def _input_table(model: PreTrainedModel) -> nn.Module | None:
    try:
        return model.get_input_embeddings()
    except NotImplementedError:
        return None


def _config(name: str, revision: str | None, trust_remote_code: bool) -> PretrainedConfig:
    path = Path(name)
    if path.is_dir() and not (path / "config.json").is_file():
        raise TeacherError(f"The folder {name!r} has no config.json, so it is not a Hugging Face model folder.")
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


def _model_class(name: str, config: PretrainedConfig, trusted: bool, headless: bool) -> Any:
    """Return the class of the checkpoint, or the auto class that finds it in the code beside the checkpoint."""
    wanted = (config.architectures or [""])[0]
    places = getattr(config, "auto_map", None) or {}  # such as {"AutoModel": "modeling.MyModel"}
    own = next((auto for auto, place in places.items() if str(place).rpartition(".")[2] == wanted), None)
    if own is not None and trusted:
        return getattr(transformers, own)
    if own is not None and not hasattr(transformers, wanted):
        raise TeacherError(_own_code(name))
    if headless and wanted in LANGUAGE_MODELS:
        return transformers.AutoModel
    return getattr(transformers, wanted, transformers.AutoModel)


def _own_code(name: str) -> str:
    where = str(Path(name).absolute()) if Path(name).is_dir() else f"https://huggingface.co/{name}"
    return (
        f"{name!r} is a model with its own Python code, which would run on this machine with your rights. None "
        f"of it has run. Read it at {where}; if you trust it, allow it by trust_remote_code=True, and name the "
        "revision= that you read."
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
