"""What `instar compress` writes: the packed model, the floats that it stands for, and the way back."""

from __future__ import annotations

import json
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import torch
import transformers
from torch import nn

from instar import release
from instar.compression import saved
from instar.compression.axformer import Axformer
from instar.compression.blockwise import Blockwise
from instar.compression.gguf_blocks import GgufBlocks
from instar.compression.int8 import Int8
from instar.compression.magnitude_pruning import MagnitudePruning
from instar.data import gguf_llama as reading
from instar.data import pretrained
from instar.data.topics import topics
from instar.errors import CheckpointError, DataError, MissingExtraError, ModelError, OutputError, TransformError, UnknownNameError
from instar.gate.predictions import Cases
from instar.interfaces import Transform
from instar.receipt import fingerprint, history
from instar.release import cases, compressing


@pytest.fixture(scope="module")
def words() -> Path:
    try:
        return pretrained.folder("all-MiniLM-L6-v2")
    except MissingExtraError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def encoder(words: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small BERT of random weights, with a pooling file."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(words)
    torch.manual_seed(0)
    config = transformers.BertConfig(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128, vocab_size=len(tokenizer)
    )
    out = tmp_path_factory.mktemp("models") / "encoder"
    transformers.BertModel(config).save_pretrained(out)
    tokenizer.save_pretrained(out)
    (out / "1_Pooling").mkdir()
    (out / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}')
    return out


@pytest.fixture(scope="module")
def tied(words: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small GPT-2, whose linear layers are Conv1D and whose head is the table of its embedding."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(words)
    torch.manual_seed(0)
    config = transformers.GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=len(tokenizer), n_positions=128)
    out = tmp_path_factory.mktemp("models") / "tied"
    transformers.GPT2LMHeadModel(config).to(torch.bfloat16).save_pretrained(out)
    tokenizer.save_pretrained(out)
    return out


@pytest.mark.parametrize(
    ("method", "cosine"),
    [
        (Int8(embeddings=True), 0.999),
        (Blockwise(bits=4, activations="none", block=32), 0.98),
        (Blockwise(bits=8, block=32, activations="all"), 0.99),
    ],
)
def test_both_forms_of_an_encoder(encoder: Path, tmp_path: Path, method: Transform, cosine: float) -> None:
    found = compressing.compress(encoder, [method], tmp_path / "next", gated=False)
    assert found.kept["cosine"] > cosine
    assert found.bytes_after == saved.nbytes(found.small) < found.bytes_before / 3
    small, tokenizer = pretrained.load(found.small)
    plain = transformers.AutoModel.from_pretrained(found.folder).eval()
    given = tokenizer("It is the same model in two forms.", return_tensors="pt")
    with torch.no_grad():
        packed, floats = small(**given).last_hidden_state, plain(**given).last_hidden_state
    assert torch.cosine_similarity(packed.flatten(), floats.flatten(), dim=0) > 0.99
    for name, module in small.named_modules():
        if hasattr(module, "plain"):
            for own, value in module.plain().items():
                assert torch.equal(plain.get_parameter(f"{name}.{own}"), value), name
    assert (found.small / "1_Pooling" / "config.json").is_file()
    assert json.loads((found.small / saved.MANIFEST).read_text())["steps"][0]["method"] == found.receipt.method
    assert found.receipt.base == fingerprint(encoder)
    assert fingerprint(found.folder) == found.receipt.after
    assert len(history(found.folder)) == 1
    release.undo(found.folder)
    assert fingerprint(found.folder) == fingerprint(encoder)
    assert not found.small.exists()


def test_a_tied_head_and_conv1d_in_half_precision(tied: Path, tmp_path: Path) -> None:
    found = compressing.compress(tied, [Int8()], tmp_path / "next", gated=False)
    assert found.kept["same next token"] > 0.9
    assert found.kept["perplexity after"] == pytest.approx(found.kept["perplexity before"], rel=0.02)
    plain, _ = pretrained.load(found.folder, dtype="auto")
    before, _ = pretrained.load(tied, dtype="auto")
    assert plain.dtype == torch.bfloat16
    assert plain.lm_head.weight is plain.transformer.wte.weight
    assert torch.equal(plain.lm_head.weight, before.lm_head.weight)
    changed = {change.name for change in found.receipt.changes}
    parts = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    assert changed == {f"transformer.h.{i}.{part}.weight" for i in (0, 1) for part in parts}
    small, _ = pretrained.load(found.small)
    given = torch.arange(20)[None]
    with torch.no_grad():
        gap = (small(given).logits - plain(given).logits).float().abs().max()
    assert gap < 0.1 * plain(given).logits.float().std()


def test_a_table_of_an_encoder_in_half_precision(encoder: Path, tmp_path: Path) -> None:
    model, tokenizer = pretrained.load(encoder, dtype="bfloat16")
    model.save_pretrained(tmp_path / "source")
    tokenizer.save_pretrained(tmp_path / "source")
    found = compressing.compress(tmp_path / "source", [Int8(embeddings=True)], tmp_path / "next", gated=False)
    small, _ = pretrained.load(found.small)
    ids = torch.arange(9)
    rows = small.embeddings.word_embeddings(ids)
    plain, _ = pretrained.load(found.folder, dtype="auto")
    assert torch.equal(rows, plain.embeddings.word_embeddings(ids))
    assert rows.dtype == torch.bfloat16
    manifest = json.loads((found.small / saved.MANIFEST).read_text())
    manifest["layers"]["embeddings.word_embeddings"]["dtype"] = "int8"
    (found.small / saved.MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(UnknownNameError, match="type of a table's rows"):
        saved.load(found.small)


def test_steps_stand_in_one_manifest_and_one_receipt(encoder: Path, tmp_path: Path) -> None:
    steps = [MagnitudePruning(density=0.6, keep=[".*attention.*"]), Int8(keep=[".*intermediate.*", ".*output.dense"])]
    found = compressing.compress(encoder, steps, tmp_path / "next", gated=False)
    manifest = json.loads((found.small / saved.MANIFEST).read_text())
    assert [step["method"] for step in manifest["steps"]] == ["magnitude_pruning", "int8"]
    assert {spec["kind"] for spec in manifest["layers"].values()} == {"linear", "int8"}
    assert [step["method"] for step in found.receipt.settings["steps"]] == ["magnitude_pruning", "int8"]


def test_a_cut_classifier_and_its_zeros(encoder: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(encoder, num_labels=2)
    with torch.no_grad():
        model.bert.encoder.layer[1].output.dense.weight.normal_()  # noise, which can only hurt
    model.save_pretrained(tmp_path / "source")
    transformers.AutoTokenizer.from_pretrained(encoder).save_pretrained(tmp_path / "source")
    texts = [f"item {i} is a {word}" for i in range(20) for word in ("pear", "saw")]
    with torch.no_grad():  # what the model says without the noise is right
        given = transformers.AutoTokenizer.from_pretrained(encoder)(texts, padding=True, return_tensors="pt")
        model.bert.encoder.layer[1].output.dense.weight.zero_()
        labels = [f"LABEL_{i}" for i in (model.eval()(**given).logits[:, 0] > 0).long().tolist()]
    labels[0], labels[1] = "LABEL_0", "LABEL_1"
    asked = Cases("items", [str(i) for i in range(40)], texts, labels)
    step = Axformer(top_k=0, group_size=32)
    found = compressing.compress(tmp_path / "source", [step], tmp_path / "next", data=asked, cases=asked, gated=False)
    assert found.bytes_after < found.bytes_before
    small, tokenizer = pretrained.load(found.small)
    plain = transformers.AutoModelForSequenceClassification.from_pretrained(found.folder).eval()
    given = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        torch.testing.assert_close(small(**given).logits, plain(**given).logits, atol=1e-5, rtol=1e-5)
    release.undo(found.folder)
    assert fingerprint(found.folder) == fingerprint(tmp_path / "source")
    everything = Axformer(policy="efficiency", epsilon=100.0, top_k=2, group_size=32)
    hard = compressing.compress(tmp_path / "source", [everything], tmp_path / "hard", data=asked, gated=False)
    removed = saved.removed(hard.small)
    assert removed is not None
    assert removed.layers("hard") == [0, 1]
    plain = transformers.AutoModelForSequenceClassification.from_pretrained(hard.folder)
    assert not plain.bert.encoder.layer[1].output.dense.weight.any()
    with pytest.raises(TransformError, match="Let the cut be the last step"):
        compressing.compress(tmp_path / "source", [step, Int8()], tmp_path / "more", data=asked, gated=False)
    wrong = Cases("items", ["0"], ["a"], ["c"])
    with pytest.raises(DataError, match="the model knows LABEL_0, LABEL_1"):
        compressing.compress(tmp_path / "source", [step], tmp_path / "more", data=wrong, gated=False)


def test_a_llama_for_llama_cpp(tied: Path, tmp_path: Path) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(pretrained.folder("SmolLM2-135M-Instruct"))
    config = transformers.LlamaConfig(
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=len(tokenizer),
        tie_word_embeddings=True,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "source")
    tokenizer.save_pretrained(tmp_path / "source")
    found = compressing.compress(tmp_path / "source", [GgufBlocks()], tmp_path / "next", gguf=True, gated=False)
    assert found.gguf == found.small / "model.gguf"
    held, packed = reading.read(found.gguf, heads=4, key_heads=2), saved.load(found.small)
    assert torch.equal(held["model.embed_tokens.weight"], packed.model.embed_tokens.weight)
    release.undo(tmp_path / "next")
    assert not found.gguf.exists()  # it was of the version that went
    with pytest.raises(ModelError, match="type llama; received gpt2"):
        compressing.compress(tied, [GgufBlocks()], tmp_path / "other", gguf=True, gated=False)
    assert not (tmp_path / "other").exists()


def test_the_gate_is_asked_of_the_small_model(encoder: Path, tmp_path: Path) -> None:
    asked = cases.search(topics(), 10, 0, documents=60)
    found = compressing.compress(encoder, [Int8()], tmp_path / "next", cases=asked)
    assert found.gate is not None
    result = json.loads((found.folder / "gate" / "result.json").read_text())
    assert str(found.small) in json.dumps(result)


def test_a_layer_is_freed_when_its_successor_stands(encoder: Path) -> None:
    model, _ = pretrained.load(encoder)
    alive = [weakref.ref(module) for module in model.modules() if isinstance(module, nn.Linear)]
    counts: list[int] = []

    class Watching(Int8):
        def replacement(self, name: str, module: nn.Module, work: object) -> nn.Module:
            counts.append(sum(one() is not None for one in alive))
            return super().replacement(name, module, work)  # type: ignore[arg-type]

    Watching(outliers=0).consume(model)
    assert counts == list(range(len(alive), 0, -1))


MEMORY = """
import sys, threading
from pathlib import Path
from instar.compression.blockwise import Blockwise
from instar.compression.gguf_blocks import GgufBlocks
from instar.compression.int8 import Int8
from instar.release import compressing

def held():
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("RssAnon:"))) * 1024

def compress(source, out):
    steps = [Blockwise(bits=4, block=32, activations="none", keep=[".*dense.*"]), Int8(outliers=0)]
    compressing.compress(source, steps, out, texts=["Some text."], gated=False)

small, large, folder = map(Path, sys.argv[1:])
compress(small, folder / "small")  # what is imported late is no memory of the update
base, most, ended = held(), [0], threading.Event()

def watch():
    while not ended.wait(0.005):
        most[0] = max(most[0], held() - base)

watcher = threading.Thread(target=watch, daemon=True)
watcher.start()
compress(large, folder / "large")
ended.set()
watcher.join()
print(most[0] / (large / "model.safetensors").stat().st_size)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.timeout(180)
def test_memory_is_that_of_a_layer(words: Path, encoder: Path, tmp_path: Path) -> None:
    """Of 155 MB of weights, two steps one after the other; the packed model alone would be half of them."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(words)
    config = transformers.BertConfig(
        hidden_size=256, num_hidden_layers=16, num_attention_heads=4, intermediate_size=8192, vocab_size=len(tokenizer)
    )
    config.dtype = torch.bfloat16
    transformers.AutoModel.from_config(config).save_pretrained(tmp_path / "source")
    tokenizer.save_pretrained(tmp_path / "source")
    call = [sys.executable, "-c", MEMORY, str(encoder), str(tmp_path / "source"), str(tmp_path)]
    found = float(subprocess.run(call, check=True, stdout=subprocess.PIPE, text=True).stdout)
    assert found < 0.8  # 0.5 are copies of the table; with nothing put aside it is 1.9


def test_nothing_is_written_where_something_is_wrong(encoder: Path, tmp_path: Path) -> None:
    out = tmp_path / "next"
    with pytest.raises(TransformError, match="finds no layer"):
        compressing.compress(encoder, [Int8(keep=[".*"])], out, gated=False)
    done = compressing.compress(encoder, [Int8()], tmp_path / "done", gated=False)
    with pytest.raises(ModelError, match=r"quantised already \(by instar\)"):
        compressing.compress(done.small, [Int8()], out, gated=False)
    broken, _ = pretrained.load(encoder)
    broken.encoder.layer[0].output.dense.weight.data[0, 0] = torch.nan
    broken.save_pretrained(tmp_path / "broken")
    transformers.AutoTokenizer.from_pretrained(encoder).save_pretrained(tmp_path / "broken")
    with pytest.raises(ModelError, match="not finite"):
        compressing.compress(tmp_path / "broken", [Int8()], out, gated=False)
    with pytest.raises(OutputError, match="exists already"):
        compressing.compress(encoder, [Int8()], tmp_path / "done", gated=False)
    assert {path.name for path in tmp_path.iterdir()} == {"broken", "done"}
    with pytest.raises(ModelError, match="compressed encoder"):
        pretrained.load(done.small, "causal")
    (done.small / saved.WEIGHTS).write_bytes((done.small / saved.WEIGHTS).read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="truncated"):
        pretrained.load(done.small)
