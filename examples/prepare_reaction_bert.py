"""Turns a reaction BERT of the `rxnfp` wheel, the pretrained one or a classifier, into a complete Hugging Face folder.

Takes an unpacked folder of `rxnfp/models/transformers`, `bert_pretrained` or `bert_ft_10k_25s` (config without
`model_type`, pickled weights, vocab.txt); gives config.json, model.safetensors and a fast tokenizer.
Called as `python examples/prepare_reaction_bert.py WHEEL_FOLDER OUTPUT` and by fetch_teacher.py.
"""

from __future__ import annotations

from pathlib import Path
from pickle import UnpicklingError
from tempfile import TemporaryDirectory

from preparing import run
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from wid_hf.errors import OutputError, TeacherError

WHEEL_FILES = ("config.json", "pytorch_model.bin", "vocab.txt")
SPECIAL_TOKENS = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}
SMILES_PIECE = "|".join(
    (
        r"\[[^\]]+\]",  # bracket atom: [C@@H], [nH], [Na+]
        r"%\([0-9]{3}\)|%[0-9]{2}|[0-9]",  # ring closure
        r"Br|Cl|[BCFINOPSbcnops]",  # element outside brackets
        r">>|>",  # reaction arrow
        r"[-=#$:~/\\]",  # bond
        r"[().*+@?|]",  # branch, dot, wildcard and the rest of the pretraining alphabet
    )
)


def prepare(wheel_folder: Path, output: Path) -> None:
    """Write `output`, a folder that transformers' auto classes load.

    Nothing is left at `output` when anything fails. Raises TeacherError when the wheel folder lacks a
    file or its weights do not fill the model, OutputError when `output` is already there.
    """
    missing = [name for name in WHEEL_FILES if not (wheel_folder / name).is_file()]
    if missing:
        raise TeacherError(
            f"{wheel_folder} lacks {', '.join(missing)}. It must be the folder "
            "rxnfp/models/transformers/bert_pretrained or bert_ft_10k_25s of the rxnfp 0.1.0 wheel: unpack it again."
        )
    if output.exists():
        raise OutputError(f"{output} is already there. Give a path that does not exist, or remove it first.")
    model, tokenizer = reaction_model(wheel_folder), reaction_tokenizer(wheel_folder / "vocab.txt")
    if len(tokenizer) != model.config.vocab_size:
        raise TeacherError(
            f"vocab.txt in {wheel_folder} has {len(tokenizer)} different tokens, config.json says "
            f"{model.config.vocab_size}; they must agree: unpack the rxnfp 0.1.0 wheel again."
        )
    output.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{output.name}-", dir=output.parent) as temporary:
        unfinished = Path(temporary) / output.name
        model.save_pretrained(unfinished)
        tokenizer.save_pretrained(unfinished)
        unfinished.rename(output)


def reaction_model(wheel_folder: Path) -> PreTrainedModel:
    """The model in eval mode; its pickle is read with `weights_only`, so no code in it runs."""
    try:
        config = BertConfig.from_pretrained(wheel_folder)
        classifies = "BertForSequenceClassification" in (config.architectures or ())
        model, loading = (BertForSequenceClassification if classifies else BertForMaskedLM).from_pretrained(
            wheel_folder, config=config, weights_only=True, output_loading_info=True
        )
    except (OSError, EOFError, RuntimeError, ValueError, UnpicklingError) as error:
        raise TeacherError(
            f"config.json and pytorch_model.bin in {wheel_folder} are not a BERT of plain tensors "
            f"({type(error).__name__}); unpack the rxnfp 0.1.0 wheel again."
        ) from error
    if loading["missing_keys"]:
        raise TeacherError(
            f"pytorch_model.bin in {wheel_folder} has no {', '.join(sorted(loading['missing_keys']))}; "
            f"a {type(model).__name__} needs all its weights: unpack the rxnfp 0.1.0 wheel again."
        )
    return model


def reaction_tokenizer(vocabulary: Path) -> PreTrainedTokenizerFast:
    """A word-level tokenizer of SMILES pieces, `[CLS] pieces [SEP]`; ids are the lines of `vocabulary`.

    What is no SMILES piece becomes [UNK] rather than vanishing; decoding joins pieces without spaces.
    """
    ids = {token: line for line, token in enumerate(vocabulary.read_text(encoding="utf-8").split())}
    absent = [token for token in SPECIAL_TOKENS.values() if token not in ids]
    if absent:
        raise TeacherError(
            f"{vocabulary} lacks {', '.join(absent)}; one token per line with all of "
            f"{', '.join(SPECIAL_TOKENS.values())} is needed: unpack the rxnfp 0.1.0 wheel again."
        )
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=SPECIAL_TOKENS["unk_token"]))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(SMILES_PIECE), behavior="isolated")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, ids[token]) for token in ("[CLS]", "[SEP]")],
    )
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=512,
        clean_up_tokenization_spaces=False,
        **SPECIAL_TOKENS,
    )


if __name__ == "__main__":
    run(prepare, "the rxnfp wheel")
