"""Pages of the site that are made when it is built: the settings, from their schemas, and what experiments/ found."""

import posixpath
import re
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from dense_retrieval import help
from dense_retrieval.config import GROUPS, Config

ROOT = Path(__file__).resolve().parents[1]
_ROLE = re.compile(r":(?:class|func|meth|mod|data|attr):<code>~?([\w.]+)</code>")
_LINK = re.compile(r"\[((?:[^\[\]]|\[[^\]]*\])*)\]\((?!https?:|#)([^)#\s]+)(#[^)]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are no files of docs/."""
    files.append(File.generated(config, "settings.md", content=_settings()))
    for found in sorted(ROOT.glob("experiments/**/*")):
        if found.suffix in (".md", ".png"):
            name = found.relative_to(ROOT).as_posix().replace("README.md", "index.md")
            files.append(File.generated(config, name, abs_src_path=str(found)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links to files and folders of the project lead to their pages; where there is none they become plain text."""
    pages = {Path(f.abs_src_path).resolve(): f for f in files if f.abs_src_path}
    here = Path(page.file.abs_src_path or ROOT / "docs" / page.file.src_uri).parent

    def led(found: re.Match[str]) -> str:
        target = (here / found[2]).resolve()
        file = pages.get(target / "README.md") or pages.get(target)
        if file is None:
            return found[1]
        link = posixpath.relpath(file.src_uri, posixpath.dirname(page.file.src_uri))
        return f"[{found[1]}]({link}{found[3] or ''})"

    return _LINK.sub(led, markdown)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Of the docstrings' roles, such as ``:class:`~a.b.C```, the name remains."""
    return _ROLE.sub(lambda found: f"<code>{found[1].rpartition('.')[2]}</code>", html)


def _settings() -> str:
    lines = [
        "# Settings",
        "",
        "Every setting of `python -m dense_retrieval.run`, with its default, meaning and range. `--cfg job` prints "
        "what a command would use, with the values that the chosen files of `conf/` give.",
    ]
    own = {f.name: f for f in fields(Config)}
    alone = [name for name, f in own.items() if name not in GROUPS and not is_dataclass(f.type)]
    lines += ["", "## Of the run", "", *_table([own[name] for name in alone], "")]
    for name, f in own.items():
        if name in GROUPS:
            lines += ["", f"## {name}", ""]
            choices = sorted(p.stem for p in (ROOT / "conf" / name).glob("*.yaml"))
            lines += [f"`{name}=` " + " ".join(f"`{c}`" for c in choices)]
            for schema in GROUPS[name].values():
                title = f"### {schema.__name__}" if len(GROUPS[name]) > 1 else ""
                lines += ["", title, "", _first(schema), "", *_table(fields(schema), f"{name}.")]
        elif is_dataclass(f.type):
            schema: Any = f.type
            lines += ["", f"## {name}", "", _first(schema), "", *_table(fields(schema), f"{name}.")]
    return "\n".join(lines) + "\n"


def _first(schema: type) -> str:
    return re.sub(r"``(.*?)``", r"`\1`", (schema.__doc__ or "").strip().split("\n\n")[0])


def _table(of: Any, prefix: str) -> list[str]:
    rows = ["| setting | default | meaning |", "| --- | --- | --- |"]
    for f in of:
        if f.name.startswith("_"):
            continue
        default = f.default if f.default is not MISSING else None
        if f.default_factory is not MISSING:
            default = f.default_factory()
        if is_dataclass(default):
            rows += _table(fields(default), f"{prefix}{f.name}.")[2:]
            continue
        shown = "" if default == "???" else "null" if default is None else default
        shown = str(shown).lower() if isinstance(shown, bool) else shown
        said = help.meaning(f).replace("|", "\\|")
        rows.append(f"| `{prefix}{f.name}` | {f'`{shown}`' if shown != '' else ''} | {said} |")
    return rows
