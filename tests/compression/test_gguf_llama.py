"""A compressed Llama in a GGUF file reads back as the model, with llama.cpp's names, order of rows and tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from instar.compression import gguf_file, quantize_
from instar.compression.gguf_blocks import GgufBlocks
from instar.data import gguf_llama as reading
from instar.errors import ModelError

gguf = pytest.importorskip("gguf")
transformers = pytest.importorskip("transformers")


def llama(**settings: Any) -> Any:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "vocab_size": 300}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**sizes, **heads, **settings})).eval()


def tokenizer(digits: bool = False, kind: str = "bytes") -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    made = Tokenizer(models.BPE())
    steps = [pre_tokenizers.Digits(individual_digits=True)] if digits else []
    cut: Any = pre_tokenizers.ByteLevel(add_prefix_space=False) if kind == "bytes" else pre_tokenizers.Whitespace()
    made.pre_tokenizer = pre_tokenizers.Sequence([*steps, cut]) if steps else cut
    trainer = trainers.BpeTrainer(
        vocab_size=290, special_tokens=["<s>", "</s>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    made.train_from_iterator(["the cat sat on the mat, and that was that"] * 3, trainer)
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>")


@pytest.mark.parametrize("tied", [True, False])
def test_a_file_reads_back_as_the_model(tied: bool, tmp_path: Path) -> None:
    model = llama(tie_word_embeddings=tied)
    quantize_(model, GgufBlocks(type="Q8_0"), lambda module, name: "mlp" not in name)
    path = gguf_file.write(model, tmp_path / "model.gguf", tokenizer=tokenizer())
    found = reading.read(path, heads=4, key_heads=2)
    assert ("lm_head.weight" in found) == (not tied)
    for name, values in found.items():
        module = model.get_submodule(name.removesuffix(".weight"))
        assert torch.equal(values, module.weight.detach())
    plain = llama(tie_word_embeddings=tied)
    plain.load_state_dict(found, strict=False)
    tokens = torch.randint(300, (2, 9))
    with torch.no_grad():
        assert torch.allclose(plain(tokens).logits, model(tokens).logits, atol=1e-5)


def test_rows_of_queries_are_pairs_for_llama_cpp(tmp_path: Path) -> None:
    """Row 2j of a head is row j of the first half, row 2j + 1 row j of the second."""
    model = llama()
    path = gguf_file.write(model, tmp_path / "model.gguf", tokenizer=tokenizer())
    held = {t.name: t.data for t in gguf.GGUFReader(path).tensors}
    query = model.model.layers[1].self_attn.q_proj.weight.detach().view(4, 2, 8, 64)
    stored = torch.from_numpy(held["blk.1.attn_q.weight"].copy()).view(4, 8, 2, 64)
    assert torch.equal(stored[:, :, 0], query[:, 0])
    assert torch.equal(stored[:, :, 1], query[:, 1])


@pytest.mark.parametrize("digits", [False, True])
def test_the_tokenizer_is_in_the_file(digits: bool, tmp_path: Path) -> None:
    words = tokenizer(digits)
    path = gguf_file.write(llama(), tmp_path / "model.gguf", tokenizer=words)
    fields = gguf.GGUFReader(path).fields
    assert fields["tokenizer.ggml.pre"].contents() == ("smollm" if digits else "gpt-2")
    tokens = fields["tokenizer.ggml.tokens"].contents()
    assert tokens[: len(words)] == words.convert_ids_to_tokens(range(len(words)))
    kinds = fields["tokenizer.ggml.token_type"].contents()
    assert kinds[:3] == [gguf.TokenType.CONTROL, gguf.TokenType.CONTROL, gguf.TokenType.NORMAL]
    assert kinds[-1] == gguf.TokenType.UNUSED
    assert fields["llama.rope.freq_base"].contents() == 10000.0
    assert fields["llama.attention.head_count_kv"].contents() == 2
    again = transformers.AutoTokenizer.from_pretrained(tmp_path, gguf_file=path.name)
    assert again("the cat that sat")["input_ids"] == words("the cat that sat")["input_ids"]


def test_what_cannot_be_written_says_so_and_leaves_the_file(tmp_path: Path) -> None:
    target = tmp_path / "model.gguf"
    target.write_bytes(b"before")
    gpt2 = transformers.GPT2LMHeadModel(transformers.GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=300))
    narrowed = llama()
    narrowed.model.layers[0].mlp.gate_proj = torch.nn.Linear(64, 64, bias=False)
    scaled = {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}
    for model, words, message in (
        (gpt2, tokenizer(), "type llama; received gpt2"),
        (llama(attention_bias=True), tokenizer(), "no place for model.layers.0.self_attn.q_proj.bias"),
        (llama(rope_parameters=scaled), tokenizer(), "type linear"),
        (llama(vocab_size=200), tokenizer(), "200 rows"),
        (llama(), tokenizer(kind="words"), "gpt-2 or smollm"),
        (llama(), object(), "fast tokenizers"),
        (narrowed, tokenizer(), "64 rows where the configuration says 96"),
    ):
        with pytest.raises(ModelError, match=message):
            gguf_file.write(model, target, tokenizer=words)
    assert target.read_bytes() == b"before"
    assert [path.name for path in tmp_path.iterdir()] == ["model.gguf"]
