"""The documentation site builds without a warning, and has what is generated."""

import re
from dataclasses import fields, is_dataclass
from html import unescape
from pathlib import Path

import pytest
from mkdocs.commands.build import build
from mkdocs.config import load_config

from dense_retrieval.config import GROUPS

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    config = load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder), strict=True)
    build(config)  # raises where a link or an API's name leads nowhere
    return folder


def text_of(page: Path) -> str:
    return unescape(re.sub(r"<[^>]+>", "", page.read_text()))


def test_every_setting_of_every_schema_has_a_row_with_its_meaning(site):
    shown = text_of(site / "settings/index.html")
    rows = 0
    for group, schemas in GROUPS.items():
        for f in (f for schema in schemas.values() for f in fields(schema)):
            if not f.name.startswith("_") and not is_dataclass(f.type):
                assert f"{group}.{f.name}" in shown
                assert " ".join(f.metadata["meaning"].split()) in " ".join(shown.split())
                rows += 1
    assert rows > 100


def test_each_experiment_is_a_page_and_no_link_leads_out_of_the_site(site):
    for readme in ROOT.glob("experiments/*/README.md"):
        assert (site / "experiments" / readme.parent.name / "index.html").is_file()
    for page in site.rglob("index.html"):
        for link in re.findall(r'href="([^"#?]+)', page.read_text()):
            if not re.match(r"https?:|mailto:|/|\.$", link):
                target = (page.parent / unescape(link)).resolve()
                assert target.exists(), f"{page.relative_to(site)}: {link}"


def test_docstrings_are_shown_without_the_marks_of_roles(site):
    shown = (site / "api/index.html").read_text()
    assert "in_shards" in shown and ":class:" not in shown and ":func:" not in shown
