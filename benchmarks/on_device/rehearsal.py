"""A tiny teacher and texts in the places of the reaction BERT and its data, so that its trainings can be rehearsed.

`WID_HF_TEACHERS` and `WID_HF_DATA` name the places; both must be new.
"""

from __future__ import annotations

import gzip
import json
import random
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "shared"))

from places import DATA, TEACHERS
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast

SPECIAL = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
LETTERS = "BCFHINOPS=#()123"
WIDTH, INNER = 256, 512  # of the reaction BERT, whose students' sizes are shares of these


def main() -> None:
    """Write teacher, training texts and held-out texts."""
    words = [*SPECIAL.values(), *LETTERS]
    tokenizer = Tokenizer(models.WordLevel({word: at for at, word in enumerate(words)}, unk_token=SPECIAL["unk_token"]))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    folder = TEACHERS / "reaction-bert"
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **SPECIAL).save_pretrained(folder)
    sizes = {"hidden_size": WIDTH, "intermediate_size": INNER, "num_hidden_layers": 1, "num_attention_heads": 4}
    BertForMaskedLM(BertConfig(vocab_size=len(words), max_position_embeddings=128, **sizes)).save_pretrained(folder)
    draw = random.Random(0)
    texts = DATA / "uspto50k"
    texts.mkdir(parents=True)
    for name, count in (("train", 80), ("valid", 20)):
        with gzip.open(texts / f"{name}.jsonl.gz", "wt", encoding="utf-8") as file:
            for _ in range(count):
                file.write(json.dumps({"rxn": "".join(draw.choices(LETTERS, k=24))}) + "\n")


if __name__ == "__main__":
    main()
