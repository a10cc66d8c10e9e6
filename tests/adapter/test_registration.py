"""PEFT knows wid_hf once, however often it is imported, and a PEFT that does not fit is refused in words."""

from __future__ import annotations

import importlib
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import peft.mapping
import pytest
from peft.tuners.tuners_utils import BaseTuner

import wid_hf
from wid_hf import WidConfig, WidError, WidModel
from wid_hf.adapter import compat, registration

MAPPINGS = ("PEFT_TYPE_TO_CONFIG_MAPPING", "PEFT_TYPE_TO_TUNER_MAPPING", "PEFT_TYPE_TO_PREFIX_MAPPING")


def registered() -> list[object]:
    return [getattr(peft.mapping, name)["WID"] for name in MAPPINGS]


def test_reloading_changes_nothing() -> None:
    assert registered() == [WidConfig, WidModel, "wid_"]
    importlib.reload(wid_hf)
    importlib.reload(registration).register()
    assert registered() == [WidConfig, WidModel, "wid_"]


IMPORTS = """
import sys
from pathlib import Path
import wid_hf
def again():
    for name in [name for name in sys.modules if name.partition(".")[0] == "wid_hf"]:
        del sys.modules[name]
    import wid_hf
    return wid_hf
wid_hf = again()  # the same files once more
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from transformers import BertConfig, BertModel
config = wid_hf.WidConfig(hidden_size=12, init="identity")
assert PEFT_TYPE_TO_CONFIG_MAPPING["WID"] is wid_hf.WidConfig
teacher = BertModel(BertConfig(vocab_size=9, hidden_size=24, num_hidden_layers=1, num_attention_heads=4))
assert wid_hf.get_wid_model(teacher, config).merge_and_unload().config.hidden_size == 12
sys.path.insert(0, sys.argv[1])  # another copy of them
try:
    again()
except Exception as refusal:
    print(type(refusal).__name__, refusal)
"""


@pytest.mark.slow
def test_the_same_files_may_be_imported_twice_and_a_second_copy_is_refused(tmp_path: Path) -> None:
    source = Path(wid_hf.__file__).parent
    shutil.copytree(source, tmp_path / "wid_hf", ignore=shutil.ignore_patterns("__pycache__"))
    done = subprocess.run([sys.executable, "-c", IMPORTS, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert 'WidError PEFT has another method with the name "WID" already' in done.stdout
    for package in (source, tmp_path / "wid_hf"):
        assert str(package / "adapter" / "tuner.py") in done.stdout


def test_the_oldest_peft_is_that_of_the_package() -> None:
    (floor,) = re.findall(r'"peft>=([\d.]+)"', (Path(__file__).parents[2] / "pyproject.toml").read_text())
    assert floor == compat.OLDEST


@pytest.mark.parametrize("old", ["0.20.4", "0.9.0", "0.21.0rc1"])
def test_an_older_peft_is_refused_with_both_versions(old: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compat, "version", lambda name: old)
    with pytest.raises(WidError, match=rf"needs peft >= 0\.21, found {re.escape(old)}: run `pip install"):
        compat.refuse_unsupported_peft()


@pytest.mark.parametrize(
    ("holder", "name", "told"),
    [
        (peft.mapping, "PEFT_TYPE_TO_TUNER_MAPPING", "peft.mapping.PEFT_TYPE_TO_TUNER_MAPPING"),
        (BaseTuner, "_get_adapter_state_dict", "BaseTuner._get_adapter_state_dict"),
    ],
)
def test_a_peft_without_what_is_used_is_refused_with_the_name_of_it(
    holder: object, name: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(holder, name)
    found = re.escape(metadata.version("peft"))
    with pytest.raises(WidError, match=rf"needs {re.escape(told)}, which peft {found} does not have.*0\.21"):
        compat.refuse_unsupported_peft()


def test_an_uncompat_is_refused_before_anything_of_it_is_imported() -> None:
    script = (
        "import importlib.metadata as metadata, sys\n"
        "true = metadata.version\n"
        "metadata.version = lambda name: '0.14.0' if name == 'peft' else true(name)\n"
        "try:\n    import wid_hf\n"
        "except Exception as refusal:\n    print(type(refusal).__name__, refusal, 'peft' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "WidError wid_hf needs peft >= 0.21, found 0.14.0" in done.stdout and done.stdout.strip().endswith("False")
