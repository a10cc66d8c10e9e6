"""The recipe that is WID: how it is called, at which learning rates it trains, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
from distilled_models import bert
from encoder_decoders import bart
from transformers import BartForSequenceClassification, BertForSequenceClassification, BertModel

from wid_hf import ConfigError, TeacherError, WidConfig, get_wid_model
from wid_hf.objectives.features import Features
from wid_hf.objectives.masked_lm import MaskedLM
from wid_hf.objectives.seq2seq import Seq2Seq
from wid_hf.objectives.sequence_classification import SequenceClassification
from wid_hf.tools.recipe import LEARNING_RATES, CompressSettings, WidRecipe, recipe_of

SIZES: dict[str, Any] = {"hidden_size": 12, "intermediate_size": 24}
CONFIG = WidConfig(**SIZES)
KD = CompressSettings(distillation=("logits", "relations"))


@pytest.mark.parametrize(
    ("schedule", "settings", "name", "title"),
    [
        ("narrow", CompressSettings(), "wid", "WID"),
        ("progressive", CompressSettings(), "wid-progressive", "WID, progressive"),
        ("narrow", KD, "wid-kd", "WID with distillation"),
    ],
)
def test_the_name_in_reports_is_that_of_0_1(schedule: Any, settings: CompressSettings, name: str, title: str) -> None:
    config = WidConfig(**SIZES, schedule=schedule)
    recipe = WidRecipe.of(config, settings)
    assert (recipe.name, recipe.title, recipe.weights) == (name, title, "folded")
    assert recipe.configured(config) is config


def test_learning_rates_are_those_given_else_the_defaults_and_a_followed_teacher_stays() -> None:
    compactors, teacher = LEARNING_RATES["masked-lm", "calibrated"]
    given = CompressSettings(compactor_learning_rate=0.5)
    assert WidRecipe().learning_rates(MaskedLM, CONFIG, given) == {"compactors": 0.5, "teacher": teacher}
    recipe = WidRecipe.of(CONFIG, KD)
    assert recipe.learning_rates(MaskedLM, CONFIG, KD) == {"compactors": compactors, "teacher": 0.0}
    trains = CompressSettings(distillation=KD.distillation, teacher_learning_rate=1e-3)
    with pytest.raises(ConfigError, match=r"distillation=logits,relations follows .* pass teacher_learning_rate=0"):
        recipe.learning_rates(MaskedLM, CONFIG, trains)


def test_unknown_losses_and_headless_teachers_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"distillation=.*magic.* is unknown.*logits"):
        WidRecipe.of(CONFIG, CompressSettings(distillation=("logits", "magic")))
    with pytest.raises(TeacherError, match=r"BertModel is a headless encoder.*Leave .logits. out"):
        WidRecipe.of(CONFIG, KD).check_objective(Features, "BertModel")
    with pytest.raises(TeacherError, match=r'distillation="relations" .* T5 has both. Leave relations out'):
        WidRecipe.of(CONFIG, KD).check_objective(Seq2Seq, "T5")


def test_a_merged_student_compares_inner_states_where_it_learns_outputs() -> None:
    recipe = recipe_of(CONFIG, CompressSettings(train_weights="merged", distillation=("hidden",)))
    assert (recipe.name, recipe.distillation) == ("wid-merged", ("hidden",))
    recipe.check_objective(SequenceClassification, "BertForSequenceClassification")
    with pytest.raises(TeacherError, match=r"it trains by its own loss alone.*train_weights=compactors"):
        recipe.check_objective(MaskedLM, "BertForMaskedLM")
    with pytest.raises(TeacherError, match=r'distillation="hidden" .* T5 has both. Leave hidden out'):
        recipe.check_objective(Seq2Seq, "T5")


@pytest.mark.parametrize(
    ("settings", "compared"),
    [
        ({}, ("hidden",)),
        ({"distillation": ()}, ()),
        ({"distillation": ("relations",), "train_weights": "merged"}, ("relations",)),
        ({"label_weight": 1}, ()),
        ({"training": {"torch_compile": True}}, ()),
    ],
)
def test_merged_classifiers_compare_hidden_states_unless_told_otherwise(
    settings: dict[str, Any], compared: tuple[str, ...]
) -> None:
    model = get_wid_model(bert(BertForSequenceClassification), CONFIG)
    recipe = recipe_of(CONFIG, CompressSettings(**settings)).decided(SequenceClassification, model)
    assert (recipe.name, recipe.compared) == ("wid-merged", compared)


def test_merged_students_without_comparable_states_or_of_other_objectives_compare_outputs_alone() -> None:
    recipe = recipe_of(CONFIG, CompressSettings())
    whole = get_wid_model(bart_classifier(), WidConfig(hidden_size=12, overrides={"decoder_ffn_dim": 24}))
    assert recipe.decided(SequenceClassification, whole).compared == ()
    assert recipe.decided(Features, get_wid_model(bert(BertModel), CONFIG)).compared == ()


def bart_classifier() -> BartForSequenceClassification:
    config = bart(0).config
    config.num_labels = 3
    return BartForSequenceClassification(config).eval()


def test_a_teacher_whose_outputs_are_learned_must_not_change() -> None:
    assert WidRecipe().learning_rates(Features, CONFIG, CompressSettings())["teacher"] == 0
    with pytest.raises(ConfigError, match=r"headless encoders learn the outputs .* pass teacher_learning_rate=0"):
        WidRecipe().learning_rates(Features, CONFIG, CompressSettings(teacher_learning_rate=1e-4))


def test_labels_alone_may_train_the_teacher_and_a_share_of_them_may_not() -> None:
    trains = CompressSettings(teacher_learning_rate=1e-4, label_weight=1)
    rates = WidRecipe.of(CONFIG, trains).learning_rates(SequenceClassification, CONFIG, trains)
    assert rates["teacher"] == 1e-4
    mixed = CompressSettings(teacher_learning_rate=1e-4, label_weight=0.5)
    with pytest.raises(ConfigError, match="pass teacher_learning_rate=0"):
        WidRecipe.of(CONFIG, mixed).learning_rates(SequenceClassification, CONFIG, mixed)
    with pytest.raises(ConfigError, match=r"label_weight=1.5 is not a share. Legal: from 0 to 1"):
        CompressSettings(label_weight=1.5)


def test_language_models_have_no_labels_to_weigh() -> None:
    recipe = WidRecipe.of(CONFIG, CompressSettings(label_weight=0.5))
    with pytest.raises(TeacherError, match=r"label_weight=0.5 .*BertForMaskedLM is a masked language model"):
        recipe.check_objective(MaskedLM, "BertForMaskedLM")


def test_a_merged_student_has_one_learning_rate_and_nothing_of_compactors() -> None:
    settings = CompressSettings(train_weights="merged", learning_rate=0.5)
    recipe = recipe_of(CONFIG, settings)
    assert (recipe.name, recipe.weights) == ("wid-merged", "merged")
    assert recipe.learning_rates(MaskedLM, CONFIG, settings) == {"student": 0.5}
    default = CompressSettings(train_weights="merged")
    assert recipe_of(CONFIG, default).learning_rates(MaskedLM, CONFIG, default)["student"] > 0


@pytest.mark.parametrize(
    ("config", "settings", "name"),
    [
        (CONFIG, CompressSettings(), "wid-merged"),
        (CONFIG, CompressSettings(learning_rate=1e-4), "wid-merged"),
        (CONFIG, CompressSettings(train_weights="compactors"), "wid"),
        (CONFIG, CompressSettings(compactor_learning_rate=1e-4), "wid"),
        (CONFIG, CompressSettings(teacher_learning_rate=0), "wid"),
        (CONFIG, CompressSettings(training={"full_logits": "true"}), "wid"),
        (CONFIG, CompressSettings(steps=0), "wid"),
        (CONFIG, KD, "wid-kd"),
        (WidConfig(**SIZES, schedule="progressive"), CompressSettings(), "wid-progressive"),
    ],
)
def test_a_student_is_merged_at_once_unless_something_is_about_compactors(
    config: WidConfig, settings: CompressSettings, name: str
) -> None:
    assert recipe_of(config, settings).name == name


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"train_weights": "merged", "compactor_learning_rate": 1e-4}, "leave compactor_learning_rate= out"),
        ({"train_weights": "merged", "training": {"full_logits": "true"}}, "leave full_logits= out"),
        ({"train_weights": "merged", "distillation": ("logits",)}, r"distillation=\['logits'\] is unknown"),
        ({"train_weights": "merged", "distillation": ("hidden",), "label_weight": 1}, "leave distillation= out"),
        ({"train_weights": "compactors", "learning_rate": 1e-4}, "learning_rate=0.0001 is for train_weights=merged"),
    ],
)
def test_settings_of_weights_that_do_not_train_are_refused(given: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        recipe_of(CONFIG, CompressSettings(**given))
    with pytest.raises(ConfigError, match="leave schedule= out"):
        recipe_of(WidConfig(**SIZES, schedule="progressive"), CompressSettings(train_weights="merged"))
    with pytest.raises(ConfigError, match=r"train_weights='all' is unknown. Legal: auto, compactors, merged"):
        CompressSettings(train_weights="all")
