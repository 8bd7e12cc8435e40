"""What each stage of the tiny run is made from: a key that changes rebuilds every user's cache."""

import hashlib
import json
from pathlib import Path
from typing import Any

from dense_retrieval.files import fingerprint

GOLDEN = Path(__file__).with_name("keys.json")


def records(cache: Path, names: dict[str, str]) -> dict[str, dict[str, Any]]:
    """Each artifact's stage, version, settings and inputs, by a label that no machine changes.

    Args:
        names: fingerprint of an external file or folder -> its name here.
    """
    files = {file.parent.name: json.loads(file.read_text()) for file in cache.glob("*/stage.json")}
    labels: dict[str, str] = {}

    def label(folder: str) -> str:
        if folder in names:
            return names[folder]
        whole, _, inner = folder.partition("/")
        if inner:
            return f"{label(whole)}/{inner}"
        if folder not in labels:
            text = json.dumps(made_from(files[folder]), sort_keys=True)
            labels[folder] = f"{files[folder]['stage']}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
        return labels[folder]

    def made_from(record: dict[str, Any]) -> dict[str, Any]:
        kept = {name: record[name] for name in ("stage", "version", "settings")}
        inputs = {name: label(value) for name, value in record["inputs"].items()}
        return rounded(kept | {"inputs": inputs})

    return {label(folder): made_from(record) for folder, record in files.items()}


def rounded(value: Any) -> Any:
    """Fitted temperatures differ in their last digits from machine to machine."""
    if isinstance(value, dict):
        return {name: rounded(item) for name, item in value.items()}
    return round(value, 4) if isinstance(value, float) else value


def test_keys_are_what_they_were(finished, corpus, encoder_folder, cross_encoder_folder):
    external = {
        "corpus": corpus,
        "queries": corpus / "synthetic.jsonl",
        "student": encoder_folder,
        "teacher": cross_encoder_folder,
    }
    found = records(finished / "cache", {fingerprint(path): name for name, path in external.items()})
    assert found == json.loads(GOLDEN.read_text())


def test_a_folder_is_named_by_what_it_was_made_from(finished):
    for file in (finished / "cache").glob("*/stage.json"):
        record = json.loads(file.read_text())
        made_from = {name: record[name] for name in ("stage", "version", "settings", "inputs")}
        digest = hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()
        assert file.parent.name == f"{record['stage']}-{digest[:16]}"
