"""The decoder with every mixer of the catalogue: streaming, padding, packed rows, generation, and its files."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import torch
from torch import Tensor

from instar import catalogue, state
from instar.errors import CheckpointError, ShapeError, UnknownNameError
from instar.models.decoder import Decoder

MIXERS = [
    slug for slug, card in catalogue.methods().items() if card.interface == "Mixer" and not card.capability("bidirectional")
]
V = 50


def make(mixer: str, **changes: object) -> Decoder:
    torch.manual_seed(0)
    model = Decoder(V, 16, 2, mixer, heads=2, **changes).double().eval()  # type: ignore[arg-type]
    for parameter in model.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return model


def tokens(*shape: int) -> Tensor:
    return torch.randint(V, shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("mixer", MIXERS)
@torch.no_grad()
def test_whole_is_any_split(mixer: str) -> None:
    model, x = make(mixer), tokens(3, 23)
    whole, _ = model(x)
    first, carried = model(x[:, :9])
    second, carried = model(x[:, 9:10], carried)
    third, _ = model(x[:, 10:], carried)
    torch.testing.assert_close(torch.cat([first, second, third], 1), whole)


@pytest.mark.parametrize("mixer", MIXERS)
@torch.no_grad()
def test_left_padding_changes_nothing(mixer: str) -> None:
    model, x = make(mixer), tokens(1, 11)
    padded = torch.cat([torch.full((1, 5), 7), x], 1)
    mask = torch.arange(16) >= 5
    alone, end = model(x)
    beside, padded_end = model(padded, mask=mask[None])
    torch.testing.assert_close(beside[:, 5:], alone)
    more = tokens(1, 4)
    torch.testing.assert_close(model(more, padded_end)[0], model(more, end)[0])


@pytest.mark.parametrize("mixer", MIXERS)
@torch.no_grad()
def test_packed_rows_are_separate_sequences(mixer: str) -> None:
    model, a, b = make(mixer), tokens(1, 7), tokens(1, 12).flip(1)
    reset = torch.zeros(1, 19, dtype=torch.bool)
    reset[0, 7] = True
    together, _ = model(torch.cat([a, b], 1), reset=reset)
    torch.testing.assert_close(together, torch.cat([model(a)[0], model(b)[0]], 1))


@pytest.mark.parametrize("mixer", MIXERS)
def test_padded_batches_generate_what_single_prompts_do(mixer: str) -> None:
    model = make(mixer)
    prompts = [tokens(1, n) for n in (3, 8, 5)]
    single = [model.generate(p, max_new_tokens=6) for p in prompts]
    padded = torch.cat([torch.nn.functional.pad(p, (8 - p.shape[1], 0)) for p in prompts])
    mask = torch.stack([torch.arange(8) >= 8 - p.shape[1] for p in prompts])
    assert torch.equal(model.generate(padded, max_new_tokens=6, mask=mask), torch.cat(single))


def test_a_mixer_that_reads_later_tokens_is_refused() -> None:
    with pytest.raises(ShapeError, match="linformer is bidirectional"):
        make("linformer")


def test_generation_is_repeatable_and_stops() -> None:
    model, x = make("gru"), tokens(2, 4)
    draws = [
        model.generate(x, max_new_tokens=20, temperature=1.0, top_k=5, generator=torch.Generator().manual_seed(s))
        for s in (3, 3, 4)
    ]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    greedy = model.generate(x, max_new_tokens=8)
    stop = int(greedy[0, 2])
    stopped = model.generate(x[:1], max_new_tokens=8, stop=stop)
    first = greedy[0].tolist().index(stop)
    assert stopped[0].tolist() == greedy[0, : first + 1].tolist()
    assert model.generate(x, max_new_tokens=0).shape == (2, 0)
    for bad in ({"temperature": -1.0}, {"top_k": 0}, {"mask": torch.zeros(2, 4, dtype=torch.bool)}):
        with pytest.raises(ShapeError):
            model.generate(x, max_new_tokens=2, **bad)


@torch.no_grad()
def test_beams_are_reordered_by_index_select() -> None:
    model, x = make("softmax"), tokens(3, 6)
    _, end = model(x)
    order = torch.tensor([2, 0, 0])
    again = model(tokens(3, 1), state.index_select(end, order))[0]
    torch.testing.assert_close(again, model(tokens(3, 1), model(x[order])[1])[0])


@pytest.mark.parametrize("mixer", ["gla:no_gate", "aaren", "softmax:multi_query"])
def test_saved_is_loaded(mixer: str, tmp_path: Path) -> None:
    model, x = make(mixer), tokens(2, 9)
    model.save_pretrained(tmp_path)
    loaded = Decoder.from_pretrained(tmp_path)
    assert torch.equal(loaded(x)[0], model(x)[0])


def damaged(folder: Path, kind: str) -> None:
    config, weights = folder / "config.json", folder / "model.safetensors"
    table = json.loads(config.read_text())
    match kind:
        case "cut off":
            weights.write_bytes(weights.read_bytes()[:200])
        case "pickle":
            weights.write_bytes(pickle.dumps({"embedding.weight": 1}))
        case "no weights":
            weights.unlink()
        case "no config":
            config.unlink()
        case "half a config":
            config.write_text(config.read_text()[:20])
        case "unknown key":
            config.write_text(json.dumps({**table, "trust_remote_code": True}))
        case "wrong type":
            config.write_text(json.dumps({**table, "width": "16"}))
        case "huge":
            config.write_text(json.dumps({**table, "width": 10**9, "heads": 1}))
        case "other width":
            config.write_text(json.dumps({**table, "width": 32}))
        case "other depth":
            config.write_text(json.dumps({**table, "depth": 3}))
        case "other mixer":
            config.write_text(json.dumps({**table, "mixer": "gla"}))
        case "no such mixer":
            config.write_text(json.dumps({**table, "mixer": "grus"}))
        case "no object":
            config.write_text("[1]")


@pytest.mark.parametrize(
    "kind",
    [
        *("cut off", "pickle", "no weights", "no config", "half a config", "unknown key", "wrong type", "huge"),
        *("other width", "other depth", "other mixer", "no such mixer", "no object"),
    ],
)
def test_a_damaged_checkpoint_is_a_clear_error(kind: str, tmp_path: Path) -> None:
    make("gru").save_pretrained(tmp_path)
    damaged(tmp_path, kind)
    with pytest.raises(CheckpointError) as caught:
        Decoder.from_pretrained(tmp_path)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("wrong", [{"expand_v": 2.0**33}, {"gate_rank": 2**40}], ids=str)
def test_a_mixer_larger_than_its_tensors_is_never_built(wrong: dict[str, float], tmp_path: Path) -> None:
    make("gla").save_pretrained(tmp_path)
    table = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**table, "mixer_arguments": wrong}))
    with pytest.raises(CheckpointError, match="instead of"):  # told by its sizes, not by an allocation that fails
        Decoder.from_pretrained(tmp_path)


def test_bad_arguments() -> None:
    with pytest.raises(UnknownNameError, match="softmax"):
        Decoder(V, mixer="softmux")
    with pytest.raises(ShapeError):
        Decoder(0)
    with pytest.raises(ShapeError, match="integer tokens"):
        Decoder(V, 16, 1, heads=2)(torch.zeros(1, 3))
    with pytest.raises(CheckpointError, match="callable"):
        Decoder(V, 16, 1, catalogue.get("gru"), heads=1).save_pretrained("nowhere")


@torch.no_grad()
def test_positions_come_from_the_host_only_where_the_card_says() -> None:
    for slug in MIXERS:
        hosted = make(slug).amplitude is not None
        assert hosted == (catalogue.method(slug).capability("positions") == "host")


def test_checkpointing_is_a_switch_of_the_decoder_alone() -> None:
    model, x = make("gla").train(), tokens(2, 40)

    def step() -> tuple[int, list[Tensor]]:
        kept: dict[int, int] = {}

        def keep(tensor: Tensor) -> Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = model(x)[0].square().sum()
        return sum(kept.values()), list(torch.autograd.grad(loss, list(model.parameters())))

    most, wanted = step()
    model.gradient_checkpointing = True
    least, got = step()
    assert least < most / 2
    torch.testing.assert_close(got, wanted)


def test_generating_leaves_each_module_in_its_mode() -> None:
    model = Decoder(16, 8, 2, "softmax", heads=2).train()
    model.blocks[0].eval()  # frozen by its owner
    modes = [module.training for module in model.modules()]
    model.generate(torch.zeros(1, 3, dtype=torch.int64), max_new_tokens=2)
    assert [module.training for module in model.modules()] == modes
