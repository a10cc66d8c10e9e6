"""A student whose folds can be told apart."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import BertForMaskedLM

from wid_hf import WidConfig, get_wid_model


@pytest.fixture
def wid(tiny_bert: BertForMaskedLM) -> nn.Module:
    """The student inside the wid model of a tiny BERT with distinct weights everywhere."""
    with torch.no_grad():
        for seed, parameter in enumerate(tiny_bert.parameters()):
            parameter.normal_(std=0.3, generator=torch.Generator().manual_seed(seed))
    return get_wid_model(tiny_bert, WidConfig(hidden_size=12, intermediate_size=32, init="identity")).base_model
