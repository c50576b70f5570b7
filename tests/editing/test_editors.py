"""Whole edits on small models of real architectures: what is written, what is undone, and what holds between methods."""

from __future__ import annotations

import functools
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))
from tiny_editing import ARCHITECTURES, FACTS, MORE_FACTS, TOKENIZER, tiny, world

from instar.checks import find
from instar.checks.editor import check_modes
from instar.checks.receipt import check_receipts
from instar.editing import deltas, prefixes, statistics, targets
from instar.editing.above import Above
from instar.editing.ft import FineTune
from instar.editing.ft_l import ConstrainedFineTune
from instar.editing.layout import _PUBLISHED, Layout, Parts, layout
from instar.editing.memit import MEMIT
from instar.editing.pmet import PMET
from instar.editing.rome import ROME
from instar.editing.rows import pack, row
from instar.errors import ContractError, EditError, ModelError, ShapeError
from instar.interfaces import Fact
from instar.receipt import fingerprint

TEXTS = [f"{f.prompt} {f.target}. {f.prompt} {f.old}. Nothing else is said of {f.subject}." for f in MORE_FACTS] * 20
FEW: dict[str, Any] = {"steps": 5, "texts": TEXTS}


def at_subject(model: nn.Module, fact: Fact, layer: int, part: Any) -> Tensor:
    """What a part puts out at the subject of the bare prompt."""
    where = layout(model)
    above = Above(model, where, pack([row(TOKENIZER, fact.prompt, fact.subject, fact.target)], torch.device("cpu")), 0)
    with torch.no_grad():
        return above.run(read={"x": (where.layers[layer].module(part), "out")})[1]["x"][0]


@pytest.mark.parametrize("kind", ARCHITECTURES)
@pytest.mark.parametrize("method", [PMET, MEMIT, ROME])
def test_the_layer_puts_out_what_was_searched_for(method: Any, kind: str) -> None:
    """One fact, one layer, without prefixes: nothing is averaged, and a small λ leaves nothing to other keys."""
    model = tiny(kind)
    fact = FACTS[0]
    small = {} if method is ROME else {"penalty": 1e-6}
    editor = method(layers=[2], prefixes=0, **small, **FEW)
    found = targets.find(model, layout(model), TOKENIZER, [fact], [], 2, editor.objective)
    part = editor.objective.parts[-1]
    editor.edit(model, TOKENIZER, [fact])
    wanted = (found.before[part] + found.shift[part])[0]
    torch.testing.assert_close(at_subject(model, fact, 2, part), wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))


def weights(editor: Any, kind: str, facts: Any = FACTS[:1]) -> dict[str, Tensor]:
    model = tiny(kind)
    return deltas.of(editor.edit(model, TOKENIZER, facts))


@pytest.mark.parametrize("kind", ["gpt2", "gptj", "llama"])
def test_with_one_fact_and_one_layer_the_methods_meet(kind: str) -> None:
    same = {"layers": [1], "lr": 0.3, "clamp": 2.0, "kl": 0.1, "prefixes": 0, **FEW}
    only = {"penalty": 1e-7, "optimised": "ffn"}
    rome = weights(ROME(**same), kind)
    pmet = weights(PMET(**same, **only), kind)
    linear = weights(PMET(**same, **only, spread="linear"), kind)
    (name,) = rome
    torch.testing.assert_close(pmet[name], linear[name])
    # PMET's easing may stop its search earlier; up to there they share everything.
    scale = float((rome[name] * pmet[name]).sum() / rome[name].square().sum())
    torch.testing.assert_close(pmet[name], scale * rome[name], rtol=2e-2, atol=2e-2 * float(rome[name].abs().max()))
    memit = weights(MEMIT(**same, penalty=1e-7), kind)
    assert int(torch.linalg.matrix_rank(memit[name], rtol=1e-3)) == int(torch.linalg.matrix_rank(rome[name], rtol=1e-3)) == 1


def test_memit_of_one_fact_and_layer_is_the_rank_one_update_along_c_inverse_k() -> None:
    """In a sequential block the shift of the block's output is that of its FFN's."""
    model = tiny("llama")
    where = layout(model)
    editor = MEMIT(layers=[1], prefixes=0, penalty=1e-9, **FEW)
    found = targets.find(model, where, TOKENIZER, FACTS[:1], [], 1, editor.objective)
    above = Above(model, where, pack([row(TOKENIZER, FACTS[0].prompt, FACTS[0].subject)], torch.device("cpu")), 0)
    with torch.no_grad():
        key = above.run(read={"k": (where.layers[1].ffn.module, "in")})[1]["k"][0].double()
    C = statistics.gather(model, TOKENIZER, [where.layers[1]], texts=TEXTS)[1, "ffn"]
    u = torch.linalg.solve(C, key)
    expected = torch.outer(found.shift["block"][0].double(), u) / (u @ key)
    (change,) = deltas.of(editor.edit(model, TOKENIZER, FACTS[:1])).values()
    torch.testing.assert_close(change.double(), expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


def test_several_layers_share_what_is_missing() -> None:
    model = tiny("llama")
    receipt = MEMIT(layers=[0, 1, 2], **FEW).edit(model, TOKENIZER, MORE_FACTS)
    assert [c.name for c in receipt.changes] == [f"model.layers.{i}.mlp.down_proj.weight" for i in range(3)]
    last = weights(PMET(layers=[0, 1], spread="last", **FEW), "llama")
    assert list(last) == ["model.layers.1.mlp.down_proj.weight"]


def test_attention_is_written_where_it_is_asked_for() -> None:
    receipt = PMET(layers=[1], write="attention+ffn", **FEW).edit(model := tiny("gpt2"), TOKENIZER, FACTS)
    assert sorted(c.name for c in receipt.changes) == [f"transformer.h.1.{part}.c_proj.weight" for part in ("attn", "mlp")]
    receipt.undo()
    assert fingerprint(model) == fingerprint(tiny("gpt2"))
    with pytest.raises(ShapeError, match="must be optimised"):
        PMET(optimised="ffn", write="attention")


def test_fine_tuning_is_adam_on_the_matrix() -> None:
    model, plain = tiny("gpt2"), tiny("gpt2")
    losses: list[float] = []
    receipt = FineTune(layers=[1], lr=1e-3, steps=6).edit(model, TOKENIZER, FACTS, monitor=lambda s, loss: losses.append(loss))
    weight = plain.transformer.h[1].mlp.c_proj.weight  # type: ignore[union-attr, index]
    optimiser = torch.optim.Adam([weight], lr=1e-3)
    rows = [row(TOKENIZER, f.prompt, f.subject, f.target) for f in FACTS]
    for _ in range(6):
        each = [plain(input_ids=torch.tensor([r.ids])).logits[0].log_softmax(-1)[r.at, r.target].mean() for r in rows]
        loss = -torch.stack(each).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    found = dict(model.named_parameters())["transformer.h.1.mlp.c_proj.weight"]
    torch.testing.assert_close(found, weight, rtol=1e-4, atol=2e-5)
    assert losses[-1] < losses[0]
    assert [c.name for c in receipt.changes] == ["transformer.h.1.mlp.c_proj.weight"]


def test_a_bound_holds_for_every_number() -> None:
    (change,) = weights(ConstrainedFineTune(layers=[1], bound=1e-3, lr=1e-2), "llama").values()
    assert float(change.abs().max()) <= 1e-3 + 1e-7
    assert float(change.abs().max()) > 9e-4


@pytest.mark.parametrize("method", [PMET, ROME, ConstrainedFineTune])
def test_the_contract_of_receipts(method: Any) -> None:
    fast = {} if method is ConstrainedFineTune else {"texts": TEXTS, "prefixes": 1}
    failed = [
        o
        for o in check_receipts(lambda: tiny("gpt2"), lambda m: method(steps=2, **fast).edit(m, TOKENIZER, FACTS[:1]))
        if o.status == "failed"
    ]
    assert failed == []


class MindsMode(FineTune):
    """Edits a model in training mode otherwise."""

    def carry_out(self, model: nn.Module, *given: Any) -> None:
        self.lr *= 2 if model.training else 1
        super().carry_out(model, *given)


def test_the_contract_of_editors_asks_for_the_same_edit_in_every_mode() -> None:
    check_modes(find(FineTune))
    with pytest.raises(ContractError, match="in training mode the edit makes other weights"):
        check_modes(find(MindsMode))


def test_a_receipt_says_how_and_what() -> None:
    said = MEMIT(layers=[1], **FEW).edit(tiny("gpt2"), TOKENIZER, FACTS[:1]).facts.settings
    assert json.loads(json.dumps(said)) == said
    assert said["edited_layers"] == [1]
    assert said["facts"] == [{"prompt": FACTS[0].prompt, "subject": FACTS[0].subject, "target": FACTS[0].target}]
    assert said["arguments"]["steps"] == 5
    assert len(said["arguments"]["texts"]) == 64


def test_statistics_that_were_gathered_once_serve_edits_in_sequence() -> None:
    model = tiny("gpt2")
    editor = MEMIT(layers=[1], steps=3)
    editor.fit_statistics(model, TOKENIZER, TEXTS)
    held = editor.moments
    first = editor.edit(model, TOKENIZER, FACTS[:1])
    second = editor.edit(model, TOKENIZER, FACTS[1:])
    assert editor.moments is held
    second.undo()
    first.undo()
    assert fingerprint(model) == fingerprint(tiny("gpt2"))


@pytest.mark.parametrize("method", [MEMIT, ROME])
def test_statistics_are_brought_to_where_the_model_is(method: Any) -> None:
    """What was kept on disk is read to the CPU, wherever the model is."""

    class Elsewhere:
        def __init__(self, held: Tensor) -> None:
            self.held = held

        def to(self, device: torch.device) -> Tensor:
            assert device == next(model.parameters()).device
            return self.held

    model, editor = tiny("gpt2"), method(layers=[1], steps=2, prefixes=1)
    editor.fit_statistics(model, TOKENIZER, TEXTS)
    editor.moments = {key: Elsewhere(held) for key, held in editor.moments.items()}
    assert len(editor.edit(model, TOKENIZER, FACTS[:1]).changes) == 1


def test_deltas_on_disk(tmp_path: Path) -> None:
    model = tiny("llama")
    base, edited = fingerprint(model), tiny("llama")
    receipt = PMET(layers=[1, 2], **FEW).edit(edited, TOKENIZER, FACTS)
    deltas.save(tmp_path / "edit.safetensors", deltas.of(receipt))
    held = deltas.load(tmp_path / "edit.safetensors")
    added = deltas.add(model, held)
    for mine, other in zip(model.parameters(), edited.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-6)
    deltas.add(model, held, -1.0)
    for mine, other in zip(model.parameters(), tiny("llama").parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-6)
    assert added.facts.base == base
    for bad, words in (
        ({"nothing.weight": torch.zeros(2)}, "of another model"),
        ({name: torch.zeros(3) for name in held}, "of another model"),
        ({name: torch.full_like(value, torch.inf) for name, value in held.items()}, "not be finite"),
    ):
        before = fingerprint(model)
        with pytest.raises(EditError, match=words):
            deltas.add(model, bad)
        assert fingerprint(model) == before


class OneBlock(nn.Module):
    """A model that no convention describes: no config, a tuple from each block, logits as they are."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.words = nn.Embedding(vocabulary, 16)
        self.steps = nn.ModuleList(Step() for _ in range(3))
        self.out = nn.Linear(16, vocabulary)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        x = self.words(input_ids)
        for step in self.steps:
            x = step(x)[0]
        return self.out(x)


class Step(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix, self.wide, self.narrow = nn.Linear(16, 16), nn.Linear(16, 48), nn.Linear(48, 16)

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        past = x.cumsum(1) / torch.arange(1, x.shape[1] + 1)[:, None]
        x = x + self.mix(past)
        return x + self.narrow(torch.relu(self.wide(x))), None


@pytest.mark.parametrize("method", [PMET, MEMIT, ROME, FineTune])
def test_any_module_with_three_callables(method: Any) -> None:
    torch.manual_seed(0)
    model = OneBlock(len(TOKENIZER))
    base = fingerprint(model)
    parts = Parts(3, lambda m, i: m.steps[i], lambda m, i: m.steps[i].mix, lambda m, i: m.steps[i].narrow)
    more = {} if method is FineTune else {"texts": TEXTS}
    receipt = method(layers=[1], parts=parts, **more).edit(model, TOKENIZER, FACTS)
    assert [c.name for c in receipt.changes] == ["steps.1.narrow.weight"]
    receipt.undo()
    assert fingerprint(model) == base
    with pytest.raises(ModelError, match="no list of blocks"):
        method(layers=[1]).edit(model, TOKENIZER, FACTS)
    wrong = Parts(3, lambda m, i: m.steps[i], lambda m, i: m.steps[i], lambda m, i: m.steps[i].narrow)
    with pytest.raises(ModelError, match="expected a Linear or Conv1D"):
        method(layers=[1], parts=wrong).edit(model, TOKENIZER, FACTS)


@pytest.mark.parametrize("method", [PMET, FineTune])
def test_modules_keep_a_forward_of_their_own(method: Any) -> None:
    """As hooks of accelerate put it on blocks and on activations."""
    model = tiny("gpt2")
    block, activation = model.get_submodule("transformer.h.0"), model.get_submodule("transformer.h.0.mlp.act")
    own = {module: functools.partial(type(module).forward, module) for module in (block, activation)}
    for module, forward in own.items():
        module.forward = forward  # type: ignore[method-assign]
    more = {} if method is FineTune else {"texts": TEXTS}
    method(layers=[1], steps=2, **more).edit(model, TOKENIZER, FACTS[:1])
    assert all(vars(module).get("forward") is forward for module, forward in own.items())
    assert "forward" not in vars(model.get_submodule("transformer.h.1.mlp.act"))


def test_bfloat16_weights_keep_their_type() -> None:
    model = tiny("llama", dtype=torch.bfloat16)
    receipt = MEMIT(layers=[1], **FEW).edit(model, TOKENIZER, FACTS)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert len(receipt.changes) == 1


@pytest.mark.parametrize(
    ("kind", "depth", "layers"),
    [
        *(("gptj", 28, range(3, 9)), ("gpt_neox", 44, range(6, 11)), ("llama", 32, range(4, 9)), ("gpt2", 48, range(13, 18))),
        *(("gpt2", 12, range(4)), ("llama", 30, range(4, 9)), ("", 28, range(3, 8))),
    ],
)
def test_auto_takes_the_layers_that_were_published(kind: str, depth: int, layers: range) -> None:
    assert Layout([layout(tiny("gpt2")).layers[0]] * depth, None).usual(kind) == list(layers)


def test_auto_knows_the_kind_of_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(_PUBLISHED, ("gptj", 4), (2, 3))
    receipt = PMET(**FEW).edit(tiny("gptj"), TOKENIZER, FACTS[:1])
    assert receipt.facts.settings["edited_layers"] == [2, 3]


@pytest.mark.parametrize("layers", [[], [4], [-1], [1, 1], ["1"]])
def test_layers_that_are_not_there(layers: Any) -> None:
    with pytest.raises(EditError, match="layers expects different numbers from 0 to 3"):
        MEMIT(layers=layers).edit(tiny("gpt2"), TOKENIZER, FACTS)


@pytest.mark.parametrize(
    "arguments", [{"lr": 0.0}, {"steps": 0}, {"clamp": -1.0}, {"kl": -1.0}], ids=lambda arguments: next(iter(arguments))
)
def test_settings_that_mean_nothing(arguments: dict[str, float]) -> None:
    with pytest.raises(ShapeError, match="Expected lr > 0"):
        PMET(**arguments)  # type: ignore[arg-type]


def test_prefixes_are_a_function_of_model_and_seed() -> None:
    model = tiny("gpt2")
    first, again, other = (prefixes.sample(model, TOKENIZER, 6, seed) for seed in (0, 0, 1))
    assert first == again != other
    assert all(text.endswith(". ") for text in first)
    assert first[0].startswith("The")
    assert prefixes.sample(model, TOKENIZER, 2, 0) == first[:2]
    assert world().kind == "gpt2"
