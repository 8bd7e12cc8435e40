"""Language models as teachers against plain transformers, one unpadded pair at a time; their average."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import tiny_config, tiny_tokenizer, with_weights
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    BertForMaskedLM,
    BertForSequenceClassification,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma2Model,
    GemmaConfig,
    GemmaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
    T5Tokenizer,
)

from dense_retrieval.config import CONF
from dense_retrieval.groups.labels import label
from dense_retrieval.memo import Memo
from dense_retrieval.records import CandidateList, InputError
from dense_retrieval.teacher.decoder import DecoderTeacher
from dense_retrieval.teacher.ensemble import average, normalise, percentile_range, unit_scale
from dense_retrieval.teacher.lightweight import LightweightTeacher, compress
from dense_retrieval.teacher.score import score_candidates
from dense_retrieval.teacher.seq2seq import Seq2SeqTeacher

QUERIES = ["star light", "ocean of a planet", "bird", "bird", "star light"]
PASSAGES = ["the cell is a star", "ocean", "a bird in the light", "Rock & gas {query}\n tree", "sea " * 40]
SIZES = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "initializer_range": 0.3,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
RANK, MONO = "rankt5_base", "monot5_base"
QWEN, GEMMA, LIGHT = "qwen3_reranker_0_6b", "bge_reranker_gemma", "bge_reranker_lightweight"


def settings(name: str, *keys: str) -> dict:
    """Of ``conf/teacher/NAME.yaml``."""
    found = yaml.safe_load((Path(CONF) / "teacher" / f"{name}.yaml").read_text())
    return {key: found[key] for key in ("template", "token", "other_token", *keys) if key in found}


def byte_tokenizer(side: str = "right") -> PreTrainedTokenizerFast:
    """One token a byte, so that nothing of a prompt can go unnoticed; puts <bos> before what it can."""
    special = ["<pad>", "<bos>", "<|im_start|>", "<|im_end|>"]
    words = ["yes", "no", "Yes"]
    tokens = special + words + sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", tokens.index("<bos>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        additional_special_tokens=special[2:],
        padding_side=side,
    )


def t5_tokenizer() -> T5Tokenizer:
    pieces = ["▁true", "▁false", "▁", *"abcdefghijklmnopqrstuvwxyzQDR:&"]
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((piece, -2.0) for piece in pieces)]
    vocabulary += [(f"<extra_id_{i}>", 0.0) for i in reversed(range(100))]
    return T5Tokenizer(vocab=vocabulary)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, str]:
    """Random models as transformers saves them."""
    torch.manual_seed(0)
    t5 = T5ForConditionalGeneration(
        T5Config(
            vocab_size=len(t5_tokenizer()), d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2,
            initializer_factor=1.0, decoder_start_token_id=0,
        )
    )  # fmt: skip
    sizes = SIZES | {"vocab_size": len(byte_tokenizer())}
    found = {
        RANK: (t5, t5_tokenizer()),
        QWEN: (Qwen3ForCausalLM(Qwen3Config(**sizes)), byte_tokenizer("left")),
        GEMMA: (GemmaForCausalLM(GemmaConfig(**sizes)), byte_tokenizer("right")),
        "gemma2": (
            Gemma2ForCausalLM(Gemma2Config(**sizes, final_logit_softcapping=2.0, sliding_window=8)),
            byte_tokenizer("right"),
        ),
    }
    made = {}
    for name, (model, tokenizer) in found.items():
        made[name] = str(tmp_path_factory.mktemp(name))
        model.save_pretrained(made[name])
        tokenizer.save_pretrained(made[name])
    return made | {MONO: made[RANK]}


@torch.no_grad()
def plain_score(folder: str, prompt: str, token: str, other_token: str | None = None) -> float:
    """The published computation, of one pair."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if "extra_id" in str(tokenizer.get_vocab()):
        model = AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
        inputs = tokenizer(prompt, return_tensors="pt")
        logits = model(**inputs, decoder_input_ids=torch.tensor([[0]])).logits[0, 0]
    else:
        model = AutoModelForCausalLM.from_pretrained(folder).eval()
        inputs = tokenizer(prompt, add_special_tokens=False, return_tensors="pt")
        logits = model(**inputs).logits[0, -1]
    wanted = logits[tokenizer.convert_tokens_to_ids([token, other_token] if other_token else [token])]
    return (wanted.log_softmax(0) if other_token else wanted)[0].item()


def filled(template: str, query: str, passage: str) -> str:
    before, after = template.split("{passage}")
    return before.replace("{query}", query) + passage + after


def teacher_of(name: str, folders: dict[str, str], **changes):
    kind = Seq2SeqTeacher if name in (RANK, MONO) else DecoderTeacher
    own = settings(GEMMA if name == "gemma2" else name)
    return kind.load(folders[name], **({"max_length": 4096} | own | changes))


@pytest.mark.parametrize("name", [RANK, MONO, QWEN, GEMMA, "gemma2"])
def test_scores_equal_plain_transformers(name, folders):
    """... whatever is in a batch with a pair."""
    own = settings(GEMMA if name == "gemma2" else name)
    teacher = teacher_of(name, folders)
    prompts = [filled(own["template"], *pair) for pair in zip(QUERIES, PASSAGES, strict=True)]
    expected = [plain_score(folders[name], p, own["token"], own.get("other_token")) for p in prompts]
    assert np.ptp(expected) > 1e-3
    for max_tokens in (1, 700, 10**6):
        scores = teacher.score(QUERIES, PASSAGES, max_tokens)
        assert scores.shape == (5,) and scores.dtype == np.float32
        np.testing.assert_allclose(scores, expected, atol=1e-5)


@pytest.mark.parametrize("name", [RANK, QWEN, GEMMA])
def test_either_side_of_padding(name, folders):
    teacher = teacher_of(name, folders)
    prompts = teacher.tokenize(QUERIES, PASSAGES)
    width = max(map(len, prompts))
    logits = []
    for side in ("left", "right"):
        ids = torch.zeros(len(prompts), width, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            place = slice(width - len(prompt), None) if side == "left" else slice(len(prompt))
            ids[row, place], mask[row, place] = torch.from_numpy(prompt), 1
        with torch.no_grad():
            logits.append(teacher({"input_ids": ids, "attention_mask": mask})[:, 0].numpy())
    np.testing.assert_allclose(*logits, atol=1e-5)


@pytest.mark.parametrize("name", [RANK, MONO, QWEN, GEMMA])
def test_only_the_passage_is_cut(name, folders):
    own = settings(name)
    whole = len(teacher_of(name, folders).tokenize(["star light"], [""])[0])
    teacher = teacher_of(name, folders, max_length=whole + 20)
    long = "seas rocks " * 30
    (prompt,) = teacher.tokenize(["star light"], [long])
    assert len(prompt) == whole + 20
    # T5's pieces are letters and word starts, the decoders' bytes: the same text of 20 tokens.
    (expected,) = teacher_of(name, folders).tokenize(["star light"], [long[:20]])
    short = long[: 20 - (len(expected) - len(prompt))]
    text = filled(own["template"], "star light", short)
    np.testing.assert_allclose(
        teacher.score(["star light"], [long]),
        plain_score(folders[name], text, own["token"], own.get("other_token")),
        atol=1e-5,
    )


def test_published_prompts():
    """The strings of the models' cards."""
    rank, mono = settings(RANK), settings(MONO)
    assert filled(rank["template"], "q", "p") == "Query: q Document: p"
    assert filled(mono["template"], "q", "p") == "Query: q Document: p Relevant:"
    assert (rank["token"], mono["token"], mono["other_token"]) == ("<extra_id_10>", "▁true", "▁false")
    qwen = filled(settings(QWEN)["template"], "q", "p")
    assert qwen.startswith("<|im_start|>system\nJudge whether the Document meets the requirements based on")
    assert '"yes" or "no".<|im_end|>\n<|im_start|>user\n<Instruct>: Given a web search query,' in qwen
    assert "answer the query\n<Query>: q\n<Document>: p<|im_end|>\n<|im_start|>assistant\n<think>\n\n" in qwen
    assert qwen.endswith("<think>\n\n</think>\n\n")
    assert settings("qwen3_reranker_4b") == settings(QWEN) and settings("rankt5_3b") == rank
    assert filled(settings(GEMMA)["template"], "q", "p").startswith("<bos>A: q\nB: p\nGiven a query A and a")


def test_first_token_without_a_start_token_of_its_own(folders, tmp_path):
    """A T5 whose files do not name the decoder's first token starts with padding."""
    model = T5ForConditionalGeneration.from_pretrained(folders[RANK])
    model.generation_config.decoder_start_token_id = None
    teacher = Seq2SeqTeacher(model, t5_tokenizer(), **settings(RANK))
    expected = teacher_of(RANK, folders).score(QUERIES, PASSAGES)
    np.testing.assert_allclose(teacher.score(QUERIES, PASSAGES), expected, atol=1e-5)


@pytest.mark.parametrize("name", [RANK, QWEN, LIGHT])
def test_under_bfloat16_autocast(name, folders, lightweight_folder):
    if name == LIGHT:
        own = {"cutoff_layer": 5, "compress_layers": [3]}
        teacher = LightweightTeacher.load(str(lightweight_folder), **settings(LIGHT), **own)
    else:
        teacher = teacher_of(name, folders)
    exact = teacher.score(QUERIES, PASSAGES)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = teacher.score(QUERIES, PASSAGES)
    assert rounded.dtype == np.float32 and (rounded != exact).any()
    assert (torch.from_numpy(rounded).bfloat16().float().numpy() != rounded).any()  # no ties by rounding
    np.testing.assert_allclose(rounded, exact, atol=0.1)


@pytest.mark.parametrize("name", [RANK, QWEN])
def test_teachers_are_frozen(name, folders):
    teacher = teacher_of(name, folders)
    assert not any(module.training for module in teacher.modules())
    assert not any(p.requires_grad for p in teacher.parameters())
    assert teacher.model.get_output_embeddings().weight.shape[0] == len(settings(name)) - 1


def test_a_teacher_that_returns_nan(folders, tmp_path):
    teacher = teacher_of(MONO, folders)
    torch.nn.init.constant_(teacher.model.get_output_embeddings().weight, float("inf"))
    candidates = CandidateList(np.array([[0, 1]]), np.zeros((1, 2), np.float32))
    with pytest.raises(InputError, match="2 of 2 pairs as nan"), Memo(tmp_path / "memo") as memo:
        score_candidates(lambda: teacher, candidates, QUERIES, PASSAGES, memo)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        (RANK, {"token": "▁absent"}, r"teacher\.path=.* no token '▁absent'; set teacher\.token"),
        (MONO, {"other_token": "▁absent"}, r"no token '▁absent'; set teacher\.other_token"),
        (QWEN, {"token": "ja"}, r"teacher\.path=.* no token 'ja'; set teacher\.token"),
        (QWEN, {"template": "{query}"}, r"teacher\.template='\{query\}' needs one"),
        (GEMMA, {"template": "{passage} {query}"}, r"teacher\.template=.* after it one"),
        (RANK, {"max_length": 12}, r"teacher\.max_length=12 .* query 'ocean of a planet'; raise it"),
    ],
)
def test_wrong_settings(name, changes, message, folders):
    with pytest.raises(InputError, match=message) as error:
        teacher_of(name, folders, **changes).score(["ocean of a planet"], ["star"])
    assert "\n" not in str(error.value)


def test_code_that_comes_with_the_weights(folders, tmp_path, monkeypatch):
    """It is run where asked for, and refused in one line where not."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = tmp_path / "own_code"
    Qwen3ForCausalLM.from_pretrained(folders[QWEN]).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    (folder / "own.py").write_text(
        "from transformers import Qwen3Config, Qwen3ForCausalLM\n"
        "class OwnConfig(Qwen3Config):\n    model_type = 'own'\n"
        "class OwnForCausalLM(Qwen3ForCausalLM):\n    config_class = OwnConfig\n"
    )
    config = json.loads((folder / "config.json").read_text()) | {"model_type": "own"}
    config["auto_map"] = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnForCausalLM"}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"own_code .*set teacher\.trust_remote_code=true") as error:
        DecoderTeacher.load(str(folder), **settings(QWEN))
    assert "\n" not in str(error.value)
    teacher = DecoderTeacher.load(str(folder), **settings(QWEN), max_length=4096, trust_remote_code=True)
    expected = teacher_of(QWEN, folders).score(QUERIES, PASSAGES)
    np.testing.assert_allclose(teacher.score(QUERIES, PASSAGES), expected, atol=1e-6)


def test_wrong_kinds_of_model(folders, tmp_path):
    classifier, masked, unnamed = tmp_path / "classifier", tmp_path / "masked", tmp_path / "unnamed"
    BertForSequenceClassification(tiny_config(num_labels=1)).save_pretrained(classifier)
    BertForMaskedLM(tiny_config()).save_pretrained(masked)
    for folder in (classifier, masked):
        tiny_tokenizer().save_pretrained(folder)
    torn = with_weights(Path(folders[QWEN]), tmp_path / "torn", lambda w: w.pop("lm_head.weight"))
    shutil.copytree(classifier, unnamed)
    config = json.loads((unnamed / "config.json").read_text()) | {"architectures": None}
    (unnamed / "config.json").write_text(json.dumps(config))
    for kind, folder, reason in [
        (Seq2SeqTeacher, unnamed, "cannot be loaded by AutoModelForSeq2SeqLM"),
        (Seq2SeqTeacher, classifier, "is a BertForSequenceClassification"),
        (Seq2SeqTeacher, folders[QWEN], "is a Qwen3ForCausalLM"),
        (DecoderTeacher, folders[RANK], "is a T5ForConditionalGeneration"),
        (DecoderTeacher, classifier, "is a BertForSequenceClassification"),
        (DecoderTeacher, masked, "is a BertForMaskedLM"),
        (DecoderTeacher, torn, "lacks the weights lm_head.weight"),
    ]:
        with pytest.raises(
            InputError, match=rf"teacher\.path={folder} {reason}.*choose (the|another) teacher="
        ) as error:
            kind.load(str(folder), **settings(RANK))
        assert "\n" not in str(error.value)


# bge-reranker-v2.5-gemma2-lightweight


@pytest.fixture(scope="module")
def lightweight_folder(tmp_path_factory) -> Path:
    """Six layers with a head after each from the second on, saved under the published names."""
    folder = tmp_path_factory.mktemp("lightweight")
    torch.manual_seed(0)
    sizes = SIZES | {"num_hidden_layers": 6, "vocab_size": len(byte_tokenizer())}
    config = Gemma2Config(**sizes, final_logit_softcapping=3.0, attn_logit_softcapping=0.5)
    weights = {f"model.{name}": w for name, w in Gemma2Model(config).state_dict().items()}
    weights |= {f"lm_head.{i}.linear_head.weight": torch.randn(1, 16) for i in range(5)}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    raw = {k: v for k, v in config.to_dict().items() if k not in ("layer_types", "rope_parameters")}
    raw |= {"rope_theta": 10000.0, "architectures": ["CostWiseGemmaForCausalLM"], "torch_dtype": "float32"}
    raw |= {"model_type": "cost_wise_gemma", "layer_wise": True, "start_layer": 2, "layer_sep": 1}
    raw |= {"auto_map": {"AutoModelForCausalLM": "gemma_model.CostWiseGemmaForCausalLM"}}
    byte_tokenizer().save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(raw))
    return folder


@torch.no_grad()
def plain_lightweight(folder: Path, query: str, passage: str, cutoff: int, at: int, ratio: int) -> float:
    """One pair through the first layers, its passage averaged, then through the others."""
    weights = load_file(folder / "model.safetensors")
    sizes = SIZES | {"num_hidden_layers": 6, "vocab_size": len(byte_tokenizer())}
    model = Gemma2Model(Gemma2Config(**sizes, attn_logit_softcapping=None)).eval()
    model.load_state_dict(
        {n.removeprefix("model."): w for n, w in weights.items() if not n.startswith("lm_head")}
    )
    tokenizer, norm, layers = byte_tokenizer(), model.norm, model.layers
    parts = [f"<bos>A: {query}\n", f"B: {passage}", settings(LIGHT)["template"].split("{passage}")[1]]
    ids = [tokenizer(part, add_special_tokens=False).input_ids for part in parts]
    model.norm, model.layers = torch.nn.Identity(), layers[:at]
    hidden = model(input_ids=torch.tensor([[i for part in ids for i in part]])).last_hidden_state
    before, inside, after = hidden.split([len(part) for part in ids], dim=1)
    inside = torch.stack([chunk.mean(1) for chunk in inside.split(ratio, dim=1)], dim=1)
    model.norm, model.layers = norm, layers[at:cutoff]
    last = model(inputs_embeds=torch.cat([before, inside, after], 1)).last_hidden_state[0, -1]
    logit = weights["lm_head.0.linear_head.weight"][0] @ last
    return (3 * (logit / 3).tanh()).item()


@pytest.mark.parametrize(("cutoff", "at", "ratio"), [(5, 3, 2), (6, 4, 3), (4, 2, 1)])
def test_lightweight_equals_plain_transformers(cutoff, at, ratio, lightweight_folder):
    own = {"cutoff_layer": cutoff, "compress_layers": [at, 40], "compress_ratio": ratio, "max_length": 999}
    teacher = LightweightTeacher.load(str(lightweight_folder), **settings(LIGHT), **own)
    assert len(teacher.gemma.layers) == cutoff
    assert not any(p.requires_grad for p in teacher.parameters()) and not teacher.gemma.training
    pairs = zip(QUERIES, PASSAGES, strict=True)
    expected = [plain_lightweight(lightweight_folder, q, p, cutoff, at, ratio) for q, p in pairs]
    assert np.ptp(expected) > 1e-3
    for max_tokens in (1, 300, 10**6):
        np.testing.assert_allclose(teacher.score(QUERIES, PASSAGES, max_tokens), expected, atol=1e-5)
    teacher.max_length = 120
    (prompt,), _ = teacher.tokenize(["bird"], [PASSAGES[4]])
    assert len(prompt) == 120 and byte_tokenizer().decode(prompt).endswith("an answer to query A.")


def test_compression_by_hand():
    """Query 1, 2; passage 10, 20, 60; prompt 7; and a passage of one token, with two of padding."""
    hidden = torch.tensor([[1.0, 2, 10, 20, 60, 7], [1, 2, 10, 7, 99, 99]])[..., None]
    mask = torch.tensor([[1] * 6, [1] * 4 + [0] * 2])
    out, new_mask = compress(hidden, mask, torch.tensor([2, 2]), tail_length=1, ratio=2)
    assert new_mask.tolist() == [[1] * 5, [1] * 4 + [0]]
    assert out[0, :, 0].tolist() == [1, 2, 15, 60, 7] and out[1, :4, 0].tolist() == [1, 2, 10, 7]


def test_wrong_lightweight_settings(folders, lightweight_folder):
    for folder, changes, message in [
        (folders[QWEN], {}, "is a qwen3, not a layer-wise cost_wise_gemma"),
        (lightweight_folder, {"cutoff_layer": 1}, r"teacher\.cutoff_layer=1: .* layers 2 to 6"),
        (lightweight_folder, {"cutoff_layer": 3, "compress_ratio": 0}, r"teacher\.compress_ratio=0"),
        (lightweight_folder, {"cutoff_layer": 3, "template": "{query} {passage}"}, "line break"),
        (
            lightweight_folder,
            {"cutoff_layer": 3, "max_length": 9},
            r"teacher\.max_length=9 .* 'ocean'; raise",
        ),
    ]:
        with pytest.raises(InputError, match=message) as error:
            LightweightTeacher.load(str(folder), **(settings(LIGHT) | changes)).score(["ocean"], ["a"])
        assert "\n" not in str(error.value)


# Averages


def scored(scores: list[list[float]]) -> CandidateList:
    """Lists over the same passages; nan stands for padding."""
    values = np.array(scores, dtype=np.float32)
    passages = np.where(np.isnan(values), -1, np.arange(values.size).reshape(values.shape))
    return CandidateList(passages, np.where(np.isnan(values), -np.inf, values).astype(np.float32))


def test_average_by_hand():
    """Two types, each scaled by its own 1st and 99th percentile; weights 3 and 1 as 0.75 and 0.25."""
    nan = float("nan")
    first = scored([[0, 100], [50, nan], [-5, -4]])
    second = scored([[7, 3], [5, nan], [2, 2]])
    types = ["claim", "claim", "title"]
    # Of 0, 50, 100 the percentiles are 1 and 99; of 3, 5, 7: 3.04 and 6.96; of -5, -4: -4.99, -4.01.
    np.testing.assert_allclose(normalise(first, types), [[0, 1], [0.5, -np.inf], [0, 1]], atol=1e-6)
    both = average([first, second], types, weights=[3, 1])
    np.testing.assert_allclose(both.scores, [[0.25, 0.75], [0.5, -np.inf], [0, 0.75]], atol=1e-6)
    np.testing.assert_array_equal(both.passages, first.passages)
    assert both.scores.dtype == np.float32
    even = average([first, second], types).scores
    np.testing.assert_allclose(even, [[0.5, 0.5], [0.5, -np.inf], [0, 0.5]], atol=1e-6)
    np.testing.assert_array_equal(average([first], types, [7]).scores, normalise(first, types))


def test_normalised_as_groups_are():
    rng = np.random.default_rng(0)
    found = scored(rng.normal(size=(40, 5)).tolist())
    source = found.ranked().passages[:, 0]
    types = ["claim", "title"] * 20
    built = label(found, source, types, list_size=5, min_top_percentile=0.0)
    np.testing.assert_array_equal(normalise(found, types), built.normalised)
    alike = np.array([2.0, 2.0])
    np.testing.assert_array_equal(unit_scale(alike, *percentile_range(alike)), [0, 0])


def test_wrong_averages():
    one, two = scored([[1, 2], [3, 4]]), scored([[4, 3], [2, 1]])
    other = CandidateList(two.passages[::-1], two.scores)
    types = ["claim", "claim"]
    broken = CandidateList(one.passages, np.array([[1, np.nan], [np.inf, 0]], np.float32))
    for lists, weights, message in [
        ([one, other], None, "teachers 1 and 2 have scored different candidates"),
        ([one, scored([[1], [2]])], None, "different candidates"),
        ([one, two], [1.0], r"weights=\[1.0\] of 2"),
        ([one, two], [1.0, 0.0], "one finite weight above 0"),
        ([one, two], [1.0, float("nan")], "one finite weight above 0"),
        ([], None, "weights"),
        (
            [one, broken],
            None,
            "2 teacher scores are not finite, the first one nan of query row 0 with passage",
        ),
    ]:
        with pytest.raises(InputError, match=message):
            average(lists, types, weights)
    with pytest.raises(InputError, match="1 query types for 2 queries"):
        average([one, two], ["claim"])
