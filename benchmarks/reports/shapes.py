"""Reports of shapes: models that would not load, heads that did not fit, ties that broke, formats out of reach."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
import transformers
from case import case
from small import (
    BERT,
    arguments,
    batches,
    bert,
    compressed,
    gpt2,
    half_bert,
    llama,
    program,
    rows,
    same_outputs,
    save_teacher,
)
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, BertForMaskedLM, PreTrainedModel

from wid_hf import WidConfig, WidTrainer, get_wid_model

KIND = "Shapes and loading"
LOAD_ALONE = """
import json, sys
sys.modules["wid_hf"] = None  # whoever imports it fails
import torch, transformers
model = transformers.AutoModelForMaskedLM.from_pretrained("student").eval()
with torch.no_grad():
    logits = model(torch.arange(5, 17)[None]).logits
print(json.dumps([type(model).__name__, logits.double().sum().item(), logits.double().square().sum().item()]))
"""


@case(KIND, "LLM-Pruner#3, LLM-Pruner#68, TransformerCompression#73", "A process without wid_hf loads the student")
def loads_without_wid_hf(folder: Path) -> None:
    compressed(save_teacher(folder / "teacher"), folder / "student")
    here = AutoModelForMaskedLM.from_pretrained(folder / "student").eval()
    with torch.no_grad():
        logits = here(torch.arange(5, 17)[None]).logits.double()
    done = subprocess.run([sys.executable, "-c", LOAD_ALONE], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-500:]
    assert json.loads(done.stdout) == ["BertForMaskedLM", logits.sum().item(), logits.square().sum().item()]


@case(
    KIND,
    "CoFiPruning#7, FLAP#7, fastformers#12, transformers#4490, Torch-Pruning#495",
    "`from_pretrained` finds every weight in the student's file, of the size that its config states",
)
def every_weight_is_found(folder: Path) -> None:
    half_bert().merge_and_unload().save_pretrained(folder / "student")
    loaded, found = BertForMaskedLM.from_pretrained(folder / "student", output_loading_info=True)
    assert not any(found.values()), found
    stock = BertForMaskedLM(loaded.config)
    assert {n: w.shape for n, w in stock.state_dict().items()} == {n: w.shape for n, w in loaded.state_dict().items()}


@case(
    KIND,
    "TransformerCompression#114, TransformerCompression#140, TransformerCompression#188",
    "A merged student is saved in pieces, loaded, and saved once more: the same outputs",
)
def saved_in_pieces(folder: Path) -> None:
    student = half_bert().merge_and_unload()
    student.save_pretrained(folder / "pieces", max_shard_size="10KB")
    assert len(list((folder / "pieces").glob("*.safetensors"))) > 1
    loaded = AutoModelForMaskedLM.from_pretrained(folder / "pieces")
    same_outputs(student, loaded)
    loaded.save_pretrained(folder / "whole")
    same_outputs(student, AutoModelForMaskedLM.from_pretrained(folder / "whole"))


@case(
    KIND,
    "Torch-Pruning#436, transformers#8451, nni#5187, neural-compressor#525",
    "A hidden size that the heads do not divide is refused before training, with sizes that are legal",
    refused=("hidden_size=13|13", "12"),
)
def hidden_size_that_heads_do_not_divide(folder: Path) -> None:
    get_wid_model(bert(), WidConfig(hidden_size=13, head_strategy="dim"))


@case(
    KIND,
    "TextPruner#4, LLM-Pruner#55, sentence-transformers#595",
    "Hidden size 768 to 128, with the heads that this leaves",
)
def from_768_to_128(folder: Path) -> None:
    sizes = {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072, "num_hidden_layers": 1}
    teacher = bert("BertModel", **sizes)
    wanted = WidConfig(hidden_size=128, intermediate_size=512, num_attention_heads=2, init="identity")
    student = get_wid_model(teacher, wanted).merge_and_unload()
    student.save_pretrained(folder / "student")
    loaded = transformers.BertModel.from_pretrained(folder / "student")
    assert loaded(**batches(1)[0]).last_hidden_state.shape == (8, 12, 128)
    assert (loaded.config.num_attention_heads, loaded.config.intermediate_size) == (2, 512)
    same_outputs(student, loaded)


@case(
    KIND,
    "sentence-transformers#967, sentence-transformers#1143",
    "Sentence vectors of 20 numbers from an encoder of 40",
)
def sentence_vectors_of_20(folder: Path) -> None:
    teacher = save_teacher(folder / "teacher", bert("BertModel", hidden_size=40))
    compressed(teacher, folder / "student", steps=0, hidden_size=20)
    loaded = transformers.AutoModel.from_pretrained(folder / "student").eval()
    assert loaded(**batches(1)[0]).last_hidden_state.mean(1).shape == (8, 20)


def _narrow(model: PreTrainedModel, folder: Path, **sizes: Any) -> PreTrainedModel:
    """Return the student by default of a causal language model, loaded from disk after a check that nothing changed."""
    wid = get_wid_model(model, WidConfig(**sizes), calibration_data=batches())
    student = wid.merge_and_unload()
    same_outputs(wid, student)
    student.save_pretrained(folder / "student")
    loaded = AutoModelForCausalLM.from_pretrained(folder / "student")
    same_outputs(student, loaded)
    return loaded


@case(
    KIND,
    "LLM-Pruner#57, LLM-Pruner#64, LLM-Pruner#83, LLM-Pruner#88, LLM-Shearing#62",
    "Grouped queries: query heads leave with their key/value heads",
)
def grouped_queries(folder: Path) -> None:
    loaded = _narrow(llama(), folder, hidden_size=16, head_strategy="head")
    attention = loaded.model.layers[0].self_attn
    assert (loaded.config.num_attention_heads, loaded.config.num_key_value_heads) == (2, 1)
    assert attention.q_proj.weight.shape == (16, 16)
    assert attention.k_proj.weight.shape == (8, 16)


@case(KIND, "Torch-Pruning#40, Torch-Pruning#461", "A decoder with rotary positions (Pythia) by its hidden size alone")
def rotary_decoder_by_default(folder: Path) -> None:
    torch.manual_seed(0)
    sizes = BERT | {"hidden_size": 64, "num_attention_heads": 4, "rotary_pct": 0.25}
    teacher = transformers.GPTNeoXForCausalLM(transformers.GPTNeoXConfig(**sizes)).eval()
    loaded = _narrow(teacher, folder, hidden_size=32)
    assert loaded.config.hidden_size == 32
    assert loaded.gpt_neox.layers[0].attention.dense.weight.shape == (32, 32)


@case(KIND, "Torch-Pruning#519, transformers#33180", "Norms inside the heads (Qwen3) by the hidden size alone")
def norms_inside_heads_by_default(folder: Path) -> None:
    torch.manual_seed(0)
    sizes = BERT | {"hidden_size": 32, "num_key_value_heads": 2, "head_dim": 8}
    teacher = transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**sizes)).eval()
    loaded = _narrow(teacher, folder, hidden_size=16)
    assert loaded.config.hidden_size == 16
    assert loaded.model.embed_tokens.weight.shape == (60, 16)


@case(KIND, "CoFiPruning#49, transformers#33180", "An encoder-decoder (T5), whose two halves share a table")
def encoder_decoder(folder: Path) -> None:
    torch.manual_seed(0)
    sizes = {"vocab_size": 60, "d_model": 24, "d_ff": 48, "d_kv": 6, "num_heads": 4, "num_layers": 2}
    tokens = {"decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 1}
    teacher = transformers.T5ForConditionalGeneration(transformers.T5Config(**sizes, **tokens)).eval()
    data = [batch | {"labels": batch["input_ids"][:, :6].contiguous()} for batch in batches()]
    model = get_wid_model(teacher, WidConfig(overrides={"d_model": 12, "d_ff": 24}), calibration_data=data)
    student = model.merge_and_unload()
    student.save_pretrained(folder / "student")
    loaded = transformers.T5ForConditionalGeneration.from_pretrained(folder / "student").eval()
    with torch.no_grad():
        values = [each.eval()(**data[0]).loss for each in (model, student, loaded)]
    assert values[0] == values[1] == values[2], values
    assert loaded.encoder.embed_tokens.weight is loaded.decoder.embed_tokens.weight


@case(
    KIND,
    "peft#2972, transformers#45127, transformers#45156",
    "A tied table and head: one tensor before, in the file and after loading",
)
def ties_stay(folder: Path) -> None:
    from safetensors import safe_open

    model = get_wid_model(gpt2(), WidConfig(hidden_size=12), calibration_data=batches())
    WidTrainer(model=model, args=arguments(folder, learning_rate=1e-3), train_dataset=rows()).train()
    student = model.merge_and_unload()
    assert student.lm_head.weight is student.transformer.wte.weight
    student.save_pretrained(folder / "student")
    with safe_open(folder / "student" / "model.safetensors", "pt") as file:
        assert "lm_head.weight" not in file.keys()  # noqa: SIM118  a file is no dictionary
    loaded = AutoModelForCausalLM.from_pretrained(folder / "student")
    assert loaded.lm_head.weight is loaded.transformer.wte.weight
    same_outputs(student, loaded)


@case(
    KIND,
    "peft#1035, peft#1381, peft#2502",
    "The merged student, untied, gives what the trained model gave: difference 0",
)
def merging_changes_nothing(folder: Path) -> None:
    model = get_wid_model(gpt2(tie_word_embeddings=False), WidConfig(hidden_size=12), calibration_data=batches())
    WidTrainer(model=model, args=arguments(folder, learning_rate=1e-2), train_dataset=rows()).train()
    student = model.merge_and_unload()
    assert student.lm_head.weight is not student.transformer.wte.weight
    same_outputs(model, student)
    student.save_pretrained(folder / "student")
    same_outputs(student, AutoModelForCausalLM.from_pretrained(folder / "student"))


@case(
    KIND,
    "LLM-Pruner#16, LLM-Pruner#73, Model-Optimizer#105",
    "The student as an ONNX file, run by onnxruntime: the same logits",
)
def onnx(folder: Path) -> None:
    import onnxruntime

    compressed(save_teacher(folder / "teacher"), folder / "student", steps=0)
    program("export", folder / "student", "--output", folder / "student.onnx")
    model = AutoModelForMaskedLM.from_pretrained(folder / "student").eval()
    batch = batches(1, rows=3, length=9)[0]
    session = onnxruntime.InferenceSession(str(folder / "student.onnx"))
    names = {each.name for each in session.get_inputs()}
    given = {name: value.numpy() for name, value in batch.items() if name in names}
    logits = torch.from_numpy(session.run(None, given)[0])
    with torch.no_grad():
        torch.testing.assert_close(logits, model(**batch).logits, atol=1e-4, rtol=1e-3)


@case(
    KIND,
    "CoFiPruning#39, TextPruner#9, transformers#20018, sparseml#741, wanda#81",
    "Fewer operations are fewer in fact: dense narrow matrices, no masks, hooks or wrappers left",
)
def dense_and_narrow(folder: Path) -> None:
    teacher = bert("BertModel", hidden_size=48, intermediate_size=96)
    model = get_wid_model(teacher, WidConfig(hidden_size=24, intermediate_size=48), calibration_data=batches())
    student = model.merge_and_unload()
    counted = []
    for each in (teacher, student):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            each(**batches(1)[0])
        counted.append(counter.get_total_flops())
    assert 2 * counted[1] < counted[0], counted
    for module in student.modules():
        assert not (module._forward_hooks or module._forward_pre_hooks), module
        assert type(module).__module__.startswith(("torch.nn.modules", "transformers.")), type(module)
    assert student.encoder.layer[0].intermediate.dense.weight.shape == (48, 24)


@case(KIND, "CoFiPruning#30, CoFiPruning#46", "Plan, training and merge with every deprecation warning made an error")
def no_deprecated_calls(folder: Path) -> None:
    warnings.simplefilter("error", DeprecationWarning)
    warnings.filterwarnings("error", category=FutureWarning, module="wid_hf")
    model = half_bert()
    WidTrainer(model=model, args=arguments(folder), train_dataset=rows()).train()
    model.merge_and_unload().save_pretrained(folder / "student")
    same_outputs(model, AutoModelForMaskedLM.from_pretrained(folder / "student"))
