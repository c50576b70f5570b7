"""Our decoder in transformers: generation, padding, the cache, training, files and what is refused."""

from __future__ import annotations

import copy
import dataclasses
import importlib
import itertools
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from instar import catalogue, state
from instar.errors import CheckpointError, MissingExtraError, ModelError, ShapeError, UnknownNameError
from instar.models import checkpoint
from instar.models.decoder import Decoder

transformers = pytest.importorskip("transformers")

from instar.doors.hf_causal_lm import InstarConfig, InstarForCausalLM, register  # noqa: E402
from instar.doors.hf_state_cache import StateCache  # noqa: E402

MIXERS = [slug for slug, card in catalogue.methods().items() if card.interface == "Mixer" and card.capability("causal")]
SEVERAL = ["softmax", "gla", "aaren", "gru", "linear_attention"]
V = 20


def near(one: Tensor, two: Tensor) -> bool:
    """To rounding: transformers lays weights that it reads elsewhere, where products round otherwise on some processors."""
    return torch.allclose(one, two, rtol=0, atol=1e-10)


def make(mixer: str, vocabulary: int = V, **settings: Any) -> Any:
    torch.manual_seed(0)
    config = InstarConfig(vocab_size=vocabulary, hidden_size=16, num_attention_heads=2, mixer=mixer, **settings)
    model = InstarForCausalLM(config).double().eval()
    for parameter in model.parameters():
        parameter.data.add_(0.2 * torch.randn_like(parameter))
    return model


def tokens(*shape: int, most: int = V) -> Tensor:
    return torch.randint(most, shape, generator=torch.Generator().manual_seed(1))


def padded(rows: list[Tensor]) -> dict[str, Tensor]:
    width = max(row.shape[1] for row in rows) + 1  # one column is padding in every row
    mask = torch.stack([torch.arange(width) >= width - row.shape[1] for row in rows])
    return {
        "input_ids": torch.cat([F.pad(row, (width - row.shape[1], 0), value=3) for row in rows]),
        "attention_mask": mask.long(),
    }


def test_it_starts_as_the_decoder_does() -> None:
    torch.manual_seed(3)
    ours = Decoder(V, 16, 2, "gla:fixed_decay", heads=2)
    torch.manual_seed(3)
    theirs = InstarForCausalLM(InstarConfig(vocab_size=V, hidden_size=16, num_attention_heads=2, mixer="gla:fixed_decay"))
    for name, tensor in ours.state_dict().items():
        assert torch.equal(theirs.decoder.state_dict()[name], tensor), name


@pytest.mark.parametrize("mixer", MIXERS)
def test_greedy_generation_is_ours_and_padding_changes_nothing(mixer: str) -> None:
    model = make(mixer)
    rows = [tokens(1, n) for n in (3, 7, 5)]
    alone = [model.generate(row, max_new_tokens=6, do_sample=False)[:, row.shape[1] :] for row in rows]
    for row, found in zip(rows, alone, strict=True):
        assert torch.equal(found, model.decoder.generate(row, max_new_tokens=6))
        assert torch.equal(model.generate(row, max_new_tokens=6, do_sample=False, use_cache=False)[:, row.shape[1] :], found)
    batch = padded(rows)
    together = model.generate(**batch, max_new_tokens=6, do_sample=False)
    assert torch.equal(together[:, batch["input_ids"].shape[1] :], torch.cat(alone))


@pytest.mark.parametrize("mixer", SEVERAL)
def test_sampling_is_repeatable(mixer: str) -> None:
    model, x = make(mixer), tokens(2, 4)
    found = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        found.append(model.generate(x, max_new_tokens=12, do_sample=True, top_k=10))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
    torch.manual_seed(1)
    assert torch.equal(model.generate(x, max_new_tokens=12, do_sample=True, top_k=10, use_cache=False), found[0])


@torch.no_grad()
def beams(model: Any, prompt: Tensor, width: int, steps: int) -> tuple[Tensor, Tensor]:
    """Beam search that reads every text again at every step: the beams, the best first, and their log-likelihoods."""
    texts, scores = prompt, torch.zeros(1, dtype=torch.float64)
    for _ in range(steps):
        further = model.decoder(texts)[0][:, -1].log_softmax(-1)
        scores, best = (scores[:, None] + further).flatten().sort(descending=True, stable=True)
        scores, best = scores[:width], best[:width]
        texts = torch.cat([texts[best // further.shape[1]], best[:, None] % further.shape[1]], 1)
    return texts, scores


@pytest.mark.parametrize("mixer", SEVERAL)
def test_beam_search_is_that_which_keeps_nothing(mixer: str) -> None:
    model = make(mixer)
    rows = [tokens(1, n) for n in (4, 6)]
    settings = {"num_beams": 3, "num_return_sequences": 3, "do_sample": False, "max_new_tokens": 5, "length_penalty": 0.0}
    batch = padded(rows)
    found = model.generate(**batch, **settings, output_scores=True, return_dict_in_generate=True)
    for i, row in enumerate(rows):
        texts, scores = beams(model, row, 3, 5)
        assert torch.equal(found.sequences[3 * i : 3 * i + 3, -5:], texts[:, -5:])
        torch.testing.assert_close(found.sequences_scores[3 * i : 3 * i + 3].double(), scores, rtol=0, atol=1e-4)  # float32 there


@torch.no_grad()
def test_a_wide_beam_finds_the_likeliest_of_all_texts() -> None:
    model, prompt = make("gla", vocabulary=5), tokens(1, 3, most=5)
    texts = torch.tensor(list(itertools.product(range(5), repeat=3)))
    whole = torch.cat([prompt.expand(len(texts), -1), texts], 1)
    said = model(whole).logits.log_softmax(-1)[:, 2:-1].gather(-1, texts[..., None]).sum((1, 2))
    found = model.generate(prompt, num_beams=25, do_sample=False, max_new_tokens=3)
    assert torch.equal(found[0, 3:], texts[said.argmax()])


@pytest.mark.parametrize("mixer", SEVERAL)
@torch.no_grad()
def test_a_cache_goes_on_from_where_it_was(mixer: str) -> None:
    model, x = make(mixer), tokens(2, 9)
    want = model(x).logits
    first = model(x[:, :4], use_cache=True)
    kept = copy.deepcopy(first.cache)
    assert isinstance(first.cache, StateCache)
    assert (len(first.cache), first.cache.get_seq_length()) == (2, 4)
    second = model(x[:, 4:], cache=first.cache, attention_mask=torch.ones(2, 9))
    torch.testing.assert_close(torch.cat([first.logits, second.logits], 1), want)
    kept.reorder_cache(torch.tensor([1, 1]))
    kept.batch_repeat_interleave(2)
    kept.batch_select_indices(torch.tensor([True, False, False, True]))
    torch.testing.assert_close(model(x[1:, 4:].expand(2, -1), cache=kept).logits, want[1:, 4:].expand(2, -1, -1))
    begun = model.generate(x[:, :5], max_new_tokens=3, do_sample=False, return_dict_in_generate=True)
    gone_on = model.generate(begun.sequences, cache=begun.cache, max_new_tokens=3, do_sample=False)
    assert torch.equal(gone_on, model.generate(x[:, :5], max_new_tokens=6, do_sample=False))


@torch.no_grad()
def test_the_length_of_a_cache_counts_real_tokens() -> None:
    model = make("gla")
    found = model(**padded([tokens(1, 3), tokens(1, 7)]), use_cache=True).cache
    assert found.layers[1].position.tolist() == [3, 7]
    assert found.get_seq_length() == 7
    found.reset()
    assert found.get_seq_length() == 0
    assert found.read() is None
    with pytest.raises(ModelError, match="cannot be cropped"):
        found.crop(1)
    with pytest.raises(ModelError, match="not keys and values"):
        found.update(torch.zeros(1), torch.zeros(1), 0)


def test_logits_of_few_places() -> None:
    model, x = make("gru"), tokens(2, 6)
    want = model(x).logits
    assert torch.equal(model(x, logits_to_keep=2).logits, want[:, -2:])
    assert torch.equal(model(x, logits_to_keep=torch.tensor([1, 4])).logits, want[:, [1, 4]])
    assert torch.equal(model(x, return_dict=False)[0], want)


@pytest.mark.parametrize("mixer", SEVERAL)
def test_the_loss_of_padded_rows_is_that_of_the_rows_alone(mixer: str) -> None:
    model = make(mixer)
    rows = [tokens(1, n) for n in (3, 7)]
    batch = padded(rows)
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    labels[1, -1] = -100
    wanted = [
        F.cross_entropy(model(row).logits[0, : n - 1], row[0, 1:n], reduction="sum") for row, n in zip(rows, (3, 6), strict=True)
    ]
    torch.testing.assert_close(model(**batch, labels=labels).loss.double(), sum(wanted) / 7, rtol=0, atol=1e-5)
    total = model(**batch, labels=labels, num_items_in_batch=torch.tensor(14)).loss
    torch.testing.assert_close(total.double(), sum(wanted) / 14, rtol=0, atol=1e-5)


@pytest.mark.parametrize("mixer", ["gla", "softmax"])
def test_trainer_lowers_the_loss(mixer: str, tmp_path: Path) -> None:
    model = make(mixer).float()
    rows = [{"input_ids": row.tolist(), "labels": row.tolist()} for row in tokens(8, 12)]
    settings = transformers.TrainingArguments(
        **{"output_dir": str(tmp_path), "per_device_train_batch_size": 8, "max_steps": 3, "learning_rate": 1e-2},
        **{"lr_scheduler_type": "constant", "report_to": "none", "use_cpu": True, "disable_tqdm": True, "save_strategy": "no"},
    )
    trainer = transformers.Trainer(
        model, settings, train_dataset=rows, eval_dataset=rows, data_collator=transformers.default_data_collator
    )
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < before - 0.01
    trainer.save_model(str(tmp_path / "end"))
    again = InstarForCausalLM.from_pretrained(tmp_path / "end")
    assert near(again(tokens(1, 5)).logits, model(tokens(1, 5)).logits)


@pytest.mark.parametrize("mixer", MIXERS)
def test_checkpoints_keep_less_and_give_the_same_gradients(mixer: str) -> None:
    model = make(mixer, num_hidden_layers=3).train()
    batch = padded([tokens(1, n) for n in (40, 64)])

    def step() -> tuple[int, Tensor, list[Tensor]]:
        model.zero_grad()
        kept: list[Tensor] = []
        torch.manual_seed(0)
        with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
            loss = model(**batch, labels=batch["input_ids"]).loss
        memory = sum({x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in kept}.values())
        loss.backward()
        return memory, loss.detach(), [p.grad.clone() for p in model.parameters() if p.grad is not None]

    most, *wanted = step()
    model.gradient_checkpointing_enable()
    least, *got = step()
    assert least < most / 2
    torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("mixer", [*SEVERAL, "gla:fixed_decay"])
@pytest.mark.parametrize("tied", [True, False])
def test_saved_is_loaded(mixer: str, tied: bool, tmp_path: Path) -> None:
    model, x = make(mixer, tie_word_embeddings=tied, eos_token_id=2), tokens(2, 5, most=V - 1)
    model.save_pretrained(tmp_path)
    names = checkpoint.read(tmp_path / "model.safetensors")[0]
    assert ("decoder.head.weight" in names) != tied
    register()
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert isinstance(again, InstarForCausalLM)
    assert again.dtype == torch.float64
    assert near(again(x).logits, model(x).logits)
    assert again.config.eos_token_id == 2
    again.decoder.embedding.weight.data[V - 1] += 1  # a token that is not in x: its row is read by a tied head alone
    assert near(again(x).logits, model(x).logits) != tied


@pytest.mark.parametrize("mixer", MIXERS)
def test_every_mixer_is_loaded_without_memory_first(mixer: str, tmp_path: Path) -> None:
    model, x = make(mixer), tokens(2, 9)
    model.save_pretrained(tmp_path)
    assert near(InstarForCausalLM.from_pretrained(tmp_path)(x).logits, model(x).logits)


def test_weights_that_a_file_does_not_hold_start_as_the_mixer_says(tmp_path: Path) -> None:
    make("gla").save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    held, said = checkpoint.read(path)
    lost = ["decoder.norm.weight", "decoder.blocks.0.mixer.gk_proj.1.bias", "decoder.blocks.1.feed.up.weight"]
    checkpoint.write(path, {name: tensor for name, tensor in held.items() if name not in lost}, said)
    found = InstarForCausalLM.from_pretrained(tmp_path).state_dict()
    assert bool((found[lost[0]] == 1).all())
    assert bool((found[lost[1]] == 0).all())
    assert 0.01 < float(found[lost[2]].std()) < 0.03


def test_to_our_folder_and_back(tmp_path: Path) -> None:
    model, x = make("gla:no_gate"), tokens(2, 5)
    model.decoder.save_pretrained(tmp_path)
    ours = Decoder.from_pretrained(tmp_path)
    again = InstarForCausalLM.from_decoder(ours, eos_token_id=1)
    assert again.decoder is ours
    assert not again.training
    assert near(again(x).logits, model(x).logits)
    again.save_pretrained(tmp_path / "theirs")
    assert near(InstarForCausalLM.from_pretrained(tmp_path / "theirs")(x).logits, model(x).logits)
    with pytest.raises(CheckpointError, match="callable"):
        InstarForCausalLM.from_decoder(Decoder(V, 16, 1, catalogue.get("gru"), heads=1))
    again.decoder.config = None  # as after a swap of its mixers
    with pytest.raises(CheckpointError, match="replaced"):
        again.save_pretrained(tmp_path)


@pytest.mark.parametrize("tied", [True, False])
def test_more_tokens(tied: bool, tmp_path: Path) -> None:
    model, x = make("gru", tie_word_embeddings=tied), tokens(1, 4)
    want = model(x).logits
    model.resize_token_embeddings(V + 3, mean_resizing=False)
    assert model(x).logits.shape[-1] == V + 3
    torch.testing.assert_close(model(x).logits[..., :V], want)
    assert float(model.get_input_embeddings().weight[V:].detach().abs().max()) < 0.2
    model.save_pretrained(tmp_path)
    assert near(InstarForCausalLM.from_pretrained(tmp_path)(x).logits, model(x).logits)
    assert model.decoder.config["vocabulary"] == V + 3


def test_without_transformers_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.delitem(sys.modules, "instar.doors.hf_causal_lm_config")
    with pytest.raises(MissingExtraError, match=r"instar\[models\]"):
        importlib.import_module("instar.doors.hf_causal_lm_config")


def test_a_mixer_that_looks_ahead_is_refused() -> None:
    card = catalogue.method("gla")
    ahead = dataclasses.replace(card, slug="ahead", tags=["bidirectional"])
    with catalogue.holding(ahead, catalogue.load(card)), pytest.raises(ModelError, match=r"'ahead' is not causal.*gla"):
        InstarForCausalLM(InstarConfig(mixer="ahead"))
    soon = dataclasses.replace(card, slug="soon", tags=["causal", "lookahead=2"])
    with catalogue.holding(soon, catalogue.load(card)), pytest.raises(ModelError, match="not causal"):
        InstarForCausalLM(InstarConfig(mixer="soon"))
    with pytest.raises(ModelError, match="no mixer"):
        InstarForCausalLM(InstarConfig(mixer="lora"))
    with pytest.raises(UnknownNameError, match="gla"):
        InstarForCausalLM(InstarConfig(mixer="glaa"))


@torch.no_grad()
def test_what_is_not_known_is_refused() -> None:
    model, x = make("gla"), tokens(2, 5)
    cache = model(x, use_cache=True).cache
    for bad, error, said in (
        ({"input_ids": None}, ModelError, "no inputs_embeds"),
        ({"cache": transformers.DynamicCache()}, ModelError, "received DynamicCache"),
        ({"output_attentions": True}, ModelError, "no attention weights"),
        ({"output_hidden_states": True}, ModelError, "no hidden states"),
        ({"position_ids": x}, ModelError, "position_ids"),
        ({"attention_mask": torch.ones(2, 3)}, ShapeError, r"\[2, 5\]"),
        ({"attention_mask": torch.ones(2, 1, 5, 5)}, ShapeError, r"\(2, 1, 5, 5\)"),
        ({"attention_mask": torch.ones(2, 8), "cache": cache}, ShapeError, r"\[3, 3\] real tokens.*\[5, 5\]"),
        ({"input_ids": x[:1], "cache": cache}, ShapeError, "2 rows and there are 1"),
        ({"labels": x, "logits_to_keep": 1}, ShapeError, "leave logits_to_keep out"),
    ):
        with pytest.raises(error, match=said):
            model(**{"input_ids": x, **bad})
    with pytest.raises(ValueError, match="stateful"):
        model.generate(x[:1], assistant_model=make("gru"), max_new_tokens=2, do_sample=False)
    assert state.nbytes(cache.read()) > 0
