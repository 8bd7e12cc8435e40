"""python -m dense_retrieval.export RUN format=onnx|openvino|int8|hub [OVERRIDE...]: a tuned student for others to use.

    python -m dense_retrieval.export runs/... format=onnx              # for CPUs: ONNX Runtime
    python -m dense_retrieval.export runs/... format=openvino,int8     # OpenVINO; and both in int8
    python -m dense_retrieval.export runs/... format=hub push=ME/NAME  # to the Hugging Face hub, private at first

RUN/export becomes a folder that sentence-transformers opens and the hub takes; each format adds its files, and what
they cost on the run's test queries is printed and in its README. RUN may be a model's folder, with the overrides that
say on what it is measured (data=fiqa student=bge_base) and output=FOLDER.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np
from hydra.errors import HydraException
from hydra.utils import instantiate
from omegaconf.errors import OmegaConfBaseException

from dense_retrieval.errors import in_one_line
from dense_retrieval.evaluation import agreement
from dense_retrieval.evaluation.card import FOLDER
from dense_retrieval.files import fingerprint, link
from dense_retrieval.models import student_settings
from dense_retrieval.parity import Asked, ask, own_words
from dense_retrieval.records import InputError
from dense_retrieval.search import Opened, opened
from dense_retrieval.student.encode import encode
from dense_retrieval.student.engine import by_onnx, by_openvino, require
from dense_retrieval.student.export_engine import export_to

if TYPE_CHECKING:
    from dense_retrieval.student.bi_encoder import BiEncoder

FORMATS = {"onnx": ["onnx"], "openvino": ["openvino"], "int8": ["onnx_int8", "openvino_int8"], "hub": []}
# Where sentence-transformers' backends look, and how its own exporters name what they quantise.
FILES = {
    "onnx": "onnx/model.onnx",
    "openvino": "openvino/openvino_model.xml",
    "onnx_int8": "onnx/model_qint8_quantized.onnx",
    "openvino_int8": "openvino/openvino_model_qint8_quantized.xml",
}
_PARITY = "parity.json"
_TWO_LIMITS = ("query_length", "document_length")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m dense_retrieval.export",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, metavar="RUN")
    parser.add_argument("words", nargs="*", metavar="NAME=VALUE", help="format=, output=, push=, overrides")
    given = parser.parse_intermixed_args()
    try:
        export(given.folder, *own_words(given.words, "format", "output", "push"))
    except (InputError, HydraException, OmegaConfBaseException) as error:
        sys.exit(f"error: {in_one_line(error)}")


def export(folder: Path, own: dict[str, str], overrides: list[str]) -> Path:
    """Make or complete the folder; print what each of its new files costs.

    Args:
        own: "format", and perhaps "output" and "push".

    Returns:
        The folder.

    Raises:
        InputError: no such run, format or package; the folder holds another model; the hub refuses.
    """
    formats = own.get("format", "").split(",")
    if not {*formats} <= {*FORMATS}:
        raise InputError(
            f"format={own.get('format', '')}: choose of {', '.join(FORMATS)}, or several: onnx,int8"
        )
    if own.get("push") and "hub" not in formats:
        raise InputError(f"push={own['push']} goes with format=hub")
    engines = [engine for name in formats for engine in FORMATS[name]]
    for engine in engines:
        require(engine)
    of = opened(folder, overrides)
    output = _output(of, own.get("output"))
    _copy_model(_model(of), output)
    if engines:
        student: BiEncoder = instantiate(student_settings(of.config), path=str(of.model.path))
        asked = ask(of, "torch")
        _warn_of_cuts(asked, output)
        for engine in engines:
            _add(engine, student, asked, output)
    _write_readme(_model(of), output, own.get("push"))
    print(f"SentenceTransformer({str(output)!r}) opens it")
    if own.get("push"):
        print(f"uploaded: {_push(output, own['push'])}")
    return output


def _output(of: Opened, given: str | None) -> Path:
    if given is None and not (of.folder / "model").is_dir():
        raise InputError(f"{of.folder} is a model, no run: say where to, output=FOLDER")
    return Path(given) if given else of.folder / "export"


def _model(of: Opened) -> Path:
    """With the run's card and lengths, which the one in the cache lacks."""
    own = of.folder / "model"
    return own if own.is_dir() else of.folder


def _copy_model(model: Path, output: Path) -> None:
    weights = {file.relative_to(model): file for file in sorted(model.rglob("*.safetensors"))}
    if (output / "modules.json").is_file():
        for name, file in weights.items():
            there = output / name
            if not there.is_file() or fingerprint(there) != fingerprint(file):
                raise InputError(
                    f"{output} holds another model than {model}: remove it, or give another output="
                )
        return
    if output.exists() and any(output.iterdir()):
        raise InputError(f"{output} holds something else: give another output=")
    shutil.copytree(model, output, copy_function=link, dirs_exist_ok=True)
    (output / "README.md").unlink(missing_ok=True)  # a link, where the copy is to be another
    _one_limit(output / "sentence_bert_config.json")


def _one_limit(lengths: Path) -> None:
    """Of tokens, for queries and passages alike: sentence-transformers before 6, which ONNX backends need still,
    opens no folder that has two."""
    if lengths.is_file():
        kept = {name: n for name, n in json.loads(lengths.read_text()).items() if name not in _TWO_LIMITS}
        lengths.unlink()  # a link
        lengths.write_text(json.dumps(kept, indent=2))


def _add(engine: str, student: BiEncoder, asked: Asked, output: Path) -> None:
    """Write a file of the model by another engine, and measure it."""
    file = output / FILES[engine]
    file.parent.mkdir(exist_ok=True)
    export_to(engine, student, file.parent, asked.tokens["passages"], stem=file.stem, hidden_states=True)
    forward = (by_openvino if engine.startswith("openvino") else by_onnx)(file)
    pool = asked.pool
    embedded = {}
    for name, rows in (("queries", asked.rows), ("passages", pool)):
        with TemporaryDirectory() as folder:
            label = f"{engine}: {name}"
            encode(student, asked.tokens[name].select(rows), Path(folder), forward=forward, label=label)
            embedded[name] = np.load(Path(folder) / "embeddings.npy")
    theirs = asked.ranking(embedded["queries"], embedded["passages"], pool)
    passages = asked.passages[pool].astype(np.float32)
    cosines = agreement.cosine(
        np.concatenate([asked.queries, passages]), np.concatenate([*embedded.values()])
    )
    found = agreement.parity(asked.ranking(asked.queries, passages, pool), theirs, asked.qrels, cosines)
    size = sum(part.stat().st_size for part in (file, file.with_suffix(".bin")) if part.is_file())
    print(f"{file}, {size / 1e6:.0f} MB, against torch: {found}")
    known = _known(output) | {FILES[engine]: asdict(found) | {"line": str(found)}}
    (output / _PARITY).write_text(json.dumps(known, indent=1))


def _warn_of_cuts(asked: Asked, output: Path) -> None:
    lengths = output / "sentence_bert_config.json"
    limit = json.loads(lengths.read_text()).get("max_seq_length") if lengths.is_file() else None
    cut = int((asked.tokens["queries"].lengths[asked.rows] > limit).sum()) if limit else 0
    if cut:
        print(
            f"{cut} of {len(asked.rows)} queries are longer than {limit} tokens, the limit of passages: this folder"
        )
        print("cuts them there, the run and the lines below did not")


def _known(output: Path) -> dict[str, dict]:
    """What the files of other engines cost, by name."""
    file = output / _PARITY
    return json.loads(file.read_text()) if file.is_file() else {}


def _write_readme(model: Path, output: Path, name: str | None) -> None:
    card = (model / "README.md").read_text() if (model / "README.md").is_file() else ""
    sections = [_section(file, found["line"]) for file, found in _known(output).items()]
    if sections:
        card += (
            "\n## On CPUs\n\nBy other engines; what they cost is on test queries, against torch.\n"
            + "".join(sections)
        )
    (output / "README.md").unlink(missing_ok=True)
    (output / "README.md").write_text(card.replace(FOLDER, name) if name else card)


def _section(file: str, line: str) -> str:
    backend, _, name = file.partition("/")
    chosen = f', model_kwargs={{"file_name": "{name}"}}' * ("quantized" in name)
    return f"""
`{file}` (`pip install "sentence-transformers[{backend}]"`): {line}

```python
model = SentenceTransformer("{FOLDER}", backend="{backend}"{chosen})
```
"""


def _push(folder: Path, name: str) -> str:
    """Upload; returns the address. A repository that is not there yet is made a private one."""
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        address = str(api.create_repo(name, private=True, exist_ok=True))
        api.upload_folder(repo_id=name, folder_path=folder, ignore_patterns=["*.partial"])
    except Exception as error:  # the hub's errors share no base class
        first = str(error).strip().partition("\n")[0][:200]
        raise InputError(
            f"push={name}: the hub does not take it ({type(error).__name__}: {first}); log in with `hf auth login`; "
            f"{folder} is complete"
        ) from error
    return address


if __name__ == "__main__":
    main()
