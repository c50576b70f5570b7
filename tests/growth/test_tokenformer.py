"""The TokenFormer decoder: the block of the paper, streams, files, the transformers door, and its growth."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from instar import files
from instar.errors import CheckpointError, ShapeError, TransformError
from instar.growth import TokenFormer, freeze_old, grow, merge, shrink, weakest
from instar.growth.tokenformer import TokenFormerGrowth
from instar.growth.tokenformer_decoder import KINDS
from instar.models import checkpoint
from instar.receipt import fingerprint

V = 31


def made(dtype: torch.dtype = torch.float64, **given: Any) -> TokenFormer:
    torch.manual_seed(0)
    model = TokenFormer(V, 32, 2, **{"heads": 2, "n": 24, "feed": 40, **given}).to(dtype).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def tokens(*shape: int) -> Tensor:
    return torch.randint(V, shape or (2, 19), generator=torch.Generator().manual_seed(1))


def written_out(model: TokenFormer, ids: Tensor) -> Tensor:
    """The block of the paper, line by line."""

    def n(x: Tensor) -> Tensor:
        return (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()

    def turned(x: Tensor) -> Tensor:
        """[B, H, T, K]: the first K / 4 coordinates by their positions, in pairs half of them apart."""
        R = x.shape[-1] // 4
        angle = torch.arange(x.shape[2]).double()[:, None] * 10000.0 ** (-torch.arange(R // 2).double() * 2 / R)
        a, b, rest = x[..., : R // 2], x[..., R // 2 : R], x[..., R:]
        return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin(), rest], -1)

    x = model.embedding.weight[ids]
    for block in model.blocks:
        mixer: Any = block.mixer
        q, k, v = (p.reference(n(x)).unflatten(-1, (2, 16)).transpose(1, 2) for p in (mixer.q_proj, mixer.k_proj, mixer.v_proj))
        scores = turned(q) @ turned(k).transpose(-1, -2) / 4.0
        scores = scores.masked_fill(torch.ones_like(scores, dtype=torch.bool).triu(1), -torch.inf)
        h = x + mixer.o_proj.reference((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))
        x = h + block.feed.reference(n(h))  # type: ignore[operator,union-attr]
    return F.layer_norm(x, (32,), model.norm.weight, model.norm.bias, 1e-5) @ model.embedding.weight.T  # type: ignore[arg-type]


@torch.no_grad()
def test_the_decoder_is_the_block_of_the_paper() -> None:
    model, ids = made(), tokens()
    assert torch.allclose(model(ids)[0], written_out(model, ids), rtol=1e-10, atol=1e-12)


@torch.no_grad()
def test_a_cache_and_padding_change_nothing() -> None:
    model, ids = made(), tokens()
    whole, _ = model(ids)
    state, found = None, []
    for t in range(ids.shape[1]):
        logits, state = model(ids[:, t : t + 1], state)
        found.append(logits)
    assert torch.allclose(torch.cat(found, 1), whole, atol=1e-11)
    padded = torch.cat([torch.zeros(2, 3, dtype=torch.int64), ids], 1)
    mask = torch.cat([torch.zeros(2, 3, dtype=torch.bool), torch.ones_like(ids, dtype=torch.bool)], 1)
    assert torch.allclose(model(padded, mask=mask)[0][:, 3:], whole, atol=1e-11)


def test_sizes_and_start_are_those_of_the_paper() -> None:
    torch.manual_seed(0)
    model = TokenFormer(V, 64, 4, heads=4)
    per_layer = sum(p.numel() for p in model.blocks[0].parameters())
    assert per_layer == 2 * 64 * (3 * 64 + 64 + 4 * 64)
    parts = dict(model.pattentions())
    assert [parts[f"blocks.0.{kind}"].n for kind in KINDS] == [64, 64, 64, 64, 256]
    keys = torch.cat([part.key.detach().flatten() for part in parts.values()])
    values = torch.cat([part.value.detach().flatten() for part in parts.values()])
    assert float(keys.std()) == pytest.approx(0.02, rel=0.02)
    assert float(values.std()) == pytest.approx(2 / (4 * 64**0.5), rel=0.02)
    assert model.head is None
    assert {name for name, p in model.named_parameters() if p.dim() == 1} == {"norm.weight", "norm.bias"}  # norms have none


@pytest.mark.parametrize("tied", [True, False])
def test_growth_in_a_chain_is_exact_with_a_filled_cache_and_while_generating(tied: bool) -> None:
    model = made(torch.float32, tied=tied)
    ids = tokens()
    with torch.no_grad():
        before, _ = model(ids)
        _, cache = model(ids[:, :11])
        rest, _ = model(ids[:, 11:], cache)
    said = model.generate(ids, max_new_tokens=6)
    for number, plan in enumerate(({"n": "2x"}, {"feed": 81, "blocks.1.query": 49}, {"n": "3x"})):
        grow(model, plan=plan, seed=number)
        with torch.no_grad():
            assert float((model(ids)[0] - before).abs().max()) == 0.0
            assert float((model(ids[:, 11:], cache)[0] - rest).abs().max()) == 0.0
        assert torch.equal(model.generate(ids, max_new_tokens=6), said)
    assert dict(model.pattentions())["blocks.1.query"].counts == [24, 24, 1, 98]


def test_special_names_go_before_general_ones() -> None:
    model = made()
    grow(model, plan={"n": "2x", "feed": 50, "blocks.0.feed": "4x"})
    counts = {name: part.n for name, part in model.pattentions()}
    assert counts["blocks.0.feed"] == 160
    assert counts["blocks.1.feed"] == 50
    assert counts["blocks.1.output"] == 48


def test_zero_keys_are_refused_where_they_count() -> None:
    model = made(mode="softmax")
    before = fingerprint(model)
    with pytest.raises(TransformError, match="keys = 'normal'"):
        grow(model, plan={"n": "2x"})
    assert fingerprint(model) == before
    grow(model, plan={"n": "2x"}, method=TokenFormerGrowth(keys="normal", tau="grow"))
    assert float(dict(model.pattentions())["blocks.0.query"].tau2) == 48


def test_new_rows_count_their_own_steps_and_old_rows_keep_theirs() -> None:
    model = made()
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3, foreach=True)
    step(model, optimiser, 3)
    old = dict(model.named_parameters())
    kept = {name: optimiser.state[p]["exp_avg"].clone() for name, p in old.items()}
    grow(model, optimiser, {"n": "2x"})
    assert all(torch.equal(optimiser.state[p]["exp_avg"], kept[name]) for name, p in old.items())
    step(model, optimiser, 2)
    counts = {name: float(optimiser.state[p]["step"]) for name, p in model.named_parameters()}
    assert {count for name, count in counts.items() if name in old} == {5.0}
    assert {count for name, count in counts.items() if name not in old} == {2.0}


def test_an_optimiser_that_knows_names_knows_those_of_the_grown_model() -> None:
    model = made()
    optimiser = torch.optim.AdamW(model.named_parameters(), lr=1e-3)
    before = list(optimiser.param_groups[0]["param_names"])

    def named() -> bool:
        group, names = optimiser.param_groups[0], dict(model.named_parameters())
        return all(names[name] is p for name, p in zip(group["param_names"], group["params"], strict=True))

    grown = grow(model, optimiser, {"n": "2x"})
    assert named()
    torch.optim.AdamW(model.named_parameters(), lr=1e-3).load_state_dict(optimiser.state_dict())
    shrink(model, {"blocks.0.feed": range(40)}, optimizer=optimiser).undo()
    assert named()
    grown.undo()
    assert optimiser.param_groups[0]["param_names"] == before


def step(model: TokenFormer, optimiser: torch.optim.Optimizer, steps: int) -> None:
    ids = tokens()
    for _ in range(steps):
        optimiser.zero_grad()
        F.cross_entropy(model(ids[:, :-1])[0].flatten(0, 1), ids[:, 1:].flatten()).backward()
        optimiser.step()


def test_what_is_frozen_keeps_its_bits_under_weight_decay_and_momentum() -> None:
    model = made()
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    step(model, optimiser, 2)
    with pytest.raises(TransformError, match="never grew"):
        freeze_old(model)
    grow(model, optimiser, {"feed": "2x"})
    receipt = freeze_old(model)
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    step(model, optimiser, 3)
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, start[name])}
    assert moved == {f"blocks.{i}.feed.{part}.1" for i in (0, 1) for part in ("keys", "values")}
    assert receipt.facts.method == "freeze_old"


def test_after_freezing_new_pairs_join_the_newest_that_are_trained() -> None:
    model = made()
    grow(model, None, {"feed": "2x"})
    freeze_old(model)
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    grow(model, optimiser, {"feed": "2x"})
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    step(model, optimiser, 2)
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, start[name])}
    assert moved == {f"blocks.{i}.feed.{part}.{n}" for i in (0, 1) for part in ("keys", "values") for n in (1, 2)}
    before = fingerprint(model)
    with pytest.raises(TransformError, match="trains nothing of blocks"):
        grow(model, optimiser, {"query": "2x"})
    assert fingerprint(model) == before
    step(model, optimiser, 1)


def test_shrinking_keeps_the_optimiser_and_comes_back() -> None:
    model = made()
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3)
    grow(model, optimiser, {"n": "2x"})
    step(model, optimiser, 2)
    before = fingerprint(model)
    gone = weakest(model, {"n": 30, "feed": 80})
    assert {len(idx) for name, idx in gone.items()} == {18}
    assert not any(name.endswith("feed") for name in gone)
    moments = optimiser.state[model.blocks[0].mixer.q_proj.keys[0]]["exp_avg"].clone()  # type: ignore[union-attr,index]
    shrunk = shrink(model, gone, optimizer=optimiser)
    assert {part.n for _, part in model.pattentions()} == {30, 80}
    left = model.blocks[0].mixer.q_proj.keys[0]  # type: ignore[union-attr,index]
    stays = [i for i in range(24) if i not in gone["blocks.0.query"].tolist()]
    assert torch.equal(optimiser.state[left]["exp_avg"], moments[stays])
    shrunk.undo()
    assert fingerprint(model) == before
    step(model, optimiser, 1)
    with pytest.raises(TransformError, match="from 1"):
        weakest(model, {"n": 100})
    with pytest.raises(TransformError, match="layers are"):
        shrink(model, {"blocks.7.feed": [0]})


def test_pairs_in_one_piece_go_on_learning_as_the_pieces_do() -> None:
    """With an optimiser that counts no steps nothing is lost but rounding; with Adam the moments stay, row by row."""
    parts, whole = made(), made()
    for model in (parts, whole):
        optimiser = torch.optim.SGD(model.parameters(), lr=1e-2, momentum=0.9)
        step(model, optimiser, 2)
        grow(model, optimiser, {"n": "2x"})
        step(model, optimiser, 2)
        if model is whole:
            before = fingerprint(model)
            merge(model, optimizer=optimiser).undo()
            assert fingerprint(model) == before
            merge(model, optimizer=optimiser)
            assert dict(model.pattentions())["blocks.0.query"].counts == [48]
        step(model, optimiser, 3)
    for (_, a), (_, b) in zip(parts.pattentions(), whole.pattentions(), strict=True):
        assert torch.allclose(a.key, b.key, rtol=1e-9, atol=1e-12)
        assert torch.allclose(a.value, b.value, rtol=1e-9, atol=1e-12)
    model = made()
    optimiser = torch.optim.AdamW(model.parameters(), foreach=True)
    step(model, optimiser, 3)
    grow(model, optimiser, {"feed": "2x"})
    merge(model, optimizer=optimiser)
    state = optimiser.state[model.blocks[0].feed.keys[0]]  # type: ignore[index,union-attr]
    assert state["exp_avg"].shape == (80, 32)
    assert not bool(state["exp_avg"][40:].any())
    assert float(state["step"]) == 3
    step(model, optimiser, 1)
    with pytest.raises(TransformError, match="nothing to merge"):
        merge(model)
    grow(model, plan={"feed": "2x"})
    freeze_old(model)
    with pytest.raises(ShapeError, match="frozen"):
        merge(model)
    assert dict(model.pattentions())["blocks.0.feed"].counts == [80, 80]


def test_files_say_pairs_and_tau_of_each_layer(tmp_path: Path) -> None:
    model = made(torch.float32, tied=False)
    grow(model, plan={"feed": "2x"}, method=TokenFormerGrowth(tau="anneal"))
    model.anneal(0.25)
    model.save_pretrained(tmp_path)
    said = json.loads((tmp_path / "config.json").read_text())
    assert said["layers"][1]["feed"] == [40, 40]
    assert said["tau2"][0]["feed"] == 50.0
    loaded = TokenFormer.from_pretrained(tmp_path)
    assert fingerprint(loaded) == fingerprint(model)
    assert torch.equal(loaded(tokens())[0], model(tokens())[0])


@pytest.mark.parametrize("reached", [0.5, 1.0])
def test_the_warm_up_of_a_growth_is_no_other_growths(reached: float) -> None:
    model = made(torch.float64)
    annealing = TokenFormerGrowth(tau="anneal")
    grow(model, plan={"n": "2x"}, method=annealing)
    model.anneal(reached)
    before = model(tokens())[0]
    grow(model, plan={"feed": "2x"}, method=annealing)
    model.anneal(0.0)
    assert torch.equal(model(tokens())[0], before)
    at = {name: float(part.tau2) for name, part in model.pattentions()}
    model.anneal(1.0)
    assert {name for name, part in model.pattentions() if float(part.tau2) != at[name]} == {"blocks.0.feed", "blocks.1.feed"}
    after = model(tokens())[0]
    model.anneal(0.1)  # of a stage that grows nothing
    assert torch.equal(model(tokens())[0], after)


def test_whoever_is_killed_between_the_files_leaves_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = made(torch.float32)
    model.save_pretrained(tmp_path)
    grow(model, plan={"n": "2x"})

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(files, "write_json", killed)
    with pytest.raises(KeyboardInterrupt):
        model.save_pretrained(tmp_path)
    assert fingerprint(TokenFormer.from_pretrained(tmp_path)) == fingerprint(model)


@pytest.mark.parametrize("older", [True, False])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"layers": [{"query": [10**9]}]}, "expects query"),
        ({"depth": 3}, "each of 3 blocks"),
        ({"width": 64}, "embedding.weight"),
        ({"mode": "l3"}, "mode"),
        ({"heads": 3}, "multiple of heads"),
        ({"extra": 1}, "extra"),
        ({"format": "instar-decoder-1"}, "format"),
        ({"tau2": [dict.fromkeys(KINDS, 7.0)] * 2}, "τ²"),
        ({"layers": [{kind: [10**9] for kind in KINDS}] * 2}, "pairs"),
    ],
)
def test_a_folder_that_does_not_fit_is_refused(change: dict[str, Any], words: str, older: bool, tmp_path: Path) -> None:
    """In older ones the weights do not say the config."""
    model = made(torch.float32)
    model.save_pretrained(tmp_path)
    changed = json.dumps({**json.loads((tmp_path / "config.json").read_text()), **change})
    (tmp_path / "config.json").write_text(changed)
    checkpoint.write(tmp_path / "model.safetensors", model.state_dict(), None if older else {"config": changed})
    with pytest.raises(CheckpointError, match=words):
        TokenFormer.from_pretrained(tmp_path)


def test_sizes_that_make_no_sense() -> None:
    for given in ({"width": 0}, {"heads": 3}, {"n": -1}, {"layers": [{}]}):
        with pytest.raises(ShapeError):
            TokenFormer(**{"vocabulary": V, "width": 32, "depth": 2, "heads": 2, **given})  # type: ignore[arg-type]


def test_transformers_generates_with_it_and_it_grows_there(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    from instar.doors import hf_tokenformer

    hf_tokenformer.register()
    decoder = made(torch.float32)
    model = hf_tokenformer.TokenFormerForCausalLM.from_decoder(decoder, eos_token_id=None, pad_token_id=0)
    ids = tokens()
    expected = decoder.generate(ids, max_new_tokens=5)
    settings = {"max_new_tokens": 5, "do_sample": False, "attention_mask": torch.ones_like(ids)}
    assert torch.equal(model.generate(ids, **settings)[:, ids.shape[1] :], expected)
    grow(model.decoder, plan={"n": "2x"})
    assert torch.equal(model.generate(ids, **settings)[:, ids.shape[1] :], expected)
    model.save_pretrained(tmp_path / "hub")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "hub")
    assert torch.equal(again.eval()(ids).logits, model(ids).logits)
    assert dict(again.decoder.pattentions())["blocks.0.feed"].counts == [40, 40]
