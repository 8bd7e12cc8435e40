"""The code blocks of docs/ do what they say."""

import re
import shlex
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from dense_retrieval.checks import check
from dense_retrieval.config import CONF

DOCS = Path(__file__).parents[2] / "docs"
NAMES = re.compile(r"# (\S+\.(?:py|yaml))\n")


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda page: page.name)
def test_code_blocks_run(page, tmp_path, monkeypatch):
    """Those that begin with a file's name are written there; commands are composed, not run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    namespace = {"folder": tmp_path}
    blocks = re.findall(r"```(\w+)\n(.*?)```", page.read_text(), flags=re.DOTALL)
    for language, code in blocks:
        if named := NAMES.match(code):
            (tmp_path / named[1]).write_text(code)
        if language == "python":
            exec(compile(code, f"{page.name}", "exec"), namespace)
        elif language == "sh":
            (words,) = [shlex.split(line) for line in code.splitlines()]
            assert words[:2] == ["python", "-m"] and words[2].startswith("dense_retrieval.")
            with initialize_config_dir(CONF, version_base=None):
                check(compose("config", overrides=words[3:]))
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]
