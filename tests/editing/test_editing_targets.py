"""The search for target states, and what is read from a model, on small models of real architectures."""

from __future__ import annotations

import random
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))
from tiny_editing import ARCHITECTURES, FACTS, MORE_FACTS, TOKENIZER, tiny

from instar.editing import statistics, targets
from instar.editing.above import Above
from instar.editing.gelu import fused
from instar.editing.grouped import together
from instar.editing.layout import Part, Parts, layout
from instar.editing.past import Past
from instar.editing.rows import Row, pack, row
from instar.editing.shifted import Shifted
from instar.editing.targets import Objective
from instar.editing.writing import Subjects
from instar.errors import EditError, ModelError

PREFIXES = ["It is so. ", "Because it was said before, it holds. "]
QUICK = Objective(["attention", "ffn"], lr=0.3, steps=6, clamp=0.75, kl=0.5, decay=0.5, easing=True)


def find(model: nn.Module, facts: Any, objective: Objective = QUICK, **more: Any) -> targets.Targets:
    return targets.find(model, layout(model), TOKENIZER, facts, PREFIXES, 1, objective, **more)


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_running_from_a_block_up_is_running_the_whole_model(kind: str) -> None:
    model = tiny(kind)
    where = layout(model)
    rows = pack([row(TOKENIZER, f.prompt, f.subject, f.target, p) for f in FACTS for p in ("", *PREFIXES)], torch.device("cpu"))
    with torch.no_grad():
        whole = model(input_ids=rows.ids, attention_mask=rows.mask).logits
        each = torch.arange(len(rows))[:, None]
        for first in (0, 2, 3):
            above = Above(model, where, rows, first)
            logits, found = above.run(read={"h": (where.layers[2].block, "out")})
            torch.testing.assert_close(logits, whole[each, rows.at], rtol=1e-4, atol=1e-4)
            places = torch.tensor([4, 1, 7])
            some, _ = above.take(places).run()
            narrow = rows.take(places)
            torch.testing.assert_close(some, whole[places[:, None], narrow.at], rtol=1e-4, atol=1e-4)
            _, short = above.run(read={"h": (where.layers[2].block, "out")}, until=where.layers[2])
            torch.testing.assert_close(short["h"], found["h"])
    assert not any("forward" in vars(module) for module in model.modules())


@pytest.mark.parametrize("layer", [0, 1, 3])
@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_what_a_shift_does_not_reach_need_not_run_again(kind: str, layer: int) -> None:
    """Logits, their gradients and what the parts put out are those of whole rows, for all rows and for some."""
    model = tiny(kind, dtype=torch.float64)
    where = layout(model)
    rows = pack([row(TOKENIZER, f.prompt, f.subject, f.target, p) for f in FACTS for p in ("", *PREFIXES)], torch.device("cpu"))
    past = Past.of(model, where, rows, batch=4)
    assert past is not None
    shifted, above = Shifted(model, where, rows, where.layers[layer], past, batch=4), Above(model, where, rows, layer, batch=4)
    places = torch.tensor([4, 1, 7])
    parts: list[Part]
    for some, whole in (
        (shifted, above),
        (shifted.take(places), above.take(places)),
        (shifted.take(places[:1]), above.take(places[:1])),
    ):
        for parts in (["block"], ["attention", "ffn"]):
            modules = {part: where.layers[layer].module(part) for part in parts}
            shift = {part: torch.full((len(whole.rows), 32), 0.1, dtype=torch.float64, requires_grad=True) for part in parts}
            change = {modules[part]: whole.at_subject(value) for part, value in shift.items()}
            real = whole.rows.target >= 0
            found = [one[real] for one in (some.run(shift), whole.run(change=change)[0])]
            gradients = [torch.autograd.grad(one.square().sum(), list(shift.values())) for one in found]
            torch.testing.assert_close(found[0], found[1], rtol=1e-8, atol=1e-8)
            torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-8, atol=1e-8)
            outputs = whole.run(read={part: (module, "out") for part, module in modules.items()})[1]
            torch.testing.assert_close(some.outputs(parts), {part: outputs[part] for part in parts}, rtol=1e-8, atol=1e-8)


def test_a_model_without_keys_and_values_runs_whole_rows() -> None:
    """It finds the same."""

    class Plain(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
            logits: Tensor = self.inner(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).logits
            return logits

    model = tiny("gpt2", dtype=torch.float64)
    parts = Parts(
        4,
        lambda model, i: model.inner.transformer.h[i],  # type: ignore[union-attr, index, return-value]
        lambda model, i: model.inner.transformer.h[i].attn.c_proj,  # type: ignore[union-attr, index, return-value]
        lambda model, i: model.inner.transformer.h[i].mlp.c_proj,  # type: ignore[union-attr, index, return-value]
    )
    plain = Plain(model)
    whole = targets.find(plain, layout(plain, parts), TOKENIZER, MORE_FACTS, PREFIXES, 1, QUICK)
    cut = find(model, MORE_FACTS)
    for part in QUICK.parts:
        torch.testing.assert_close(whole.shift[part], cut.shift[part], rtol=1e-4, atol=1e-5)
    assert whole.steps.tolist() == cut.steps.tolist()


def test_groups_hold_what_fits_and_pad_little() -> None:
    rng = random.Random(0)
    tails = sorted(rng.randint(1, 12) for _ in range(60))
    made = [[Row([1] * (3 + tail), 3, [3], [1])] * 4 for tail in tails]
    for most in (1, 100, 300, 10**6):
        sizes = together(made, most)
        assert sum(sizes) == 4 * len(made)
        assert all(size and size % 4 == 0 for size in sizes)
        start = 0
        for size in sizes:
            inside = tails[start // 4 : (start + size) // 4]
            assert size == 4 or size * inside[-1] <= most
            before = inside.index(inside[-1])
            assert 4 * (4 * before) * inside[max(0, before - 1)] < most or before == 0
            start += size


def test_a_gelu_written_out_is_the_fused_one() -> None:
    model = tiny("gpt2", dtype=torch.float64)
    ids = torch.arange(12).view(2, 6)
    act = model.transformer.h[0].mlp.act  # type: ignore[union-attr, index]
    with torch.no_grad():
        before = model(input_ids=ids).logits
        with fused(model):
            assert "forward" in vars(act)
            torch.testing.assert_close(model(input_ids=ids).logits, before, rtol=1e-10, atol=1e-10)
        assert "forward" not in vars(act)


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_many_facts_at_once_are_one_at_a_time(kind: str) -> None:
    model = tiny(kind, dtype=torch.float64)
    together, alone = find(model, MORE_FACTS), [find(model, [fact]) for fact in MORE_FACTS]
    for part in QUICK.parts:
        for name in ("before", "shift"):
            one = torch.cat([getattr(found, name)[part] for found in alone])
            torch.testing.assert_close(getattr(together, name)[part], one, rtol=1e-4, atol=1e-5)
    assert together.steps.tolist() == [int(found.steps) for found in alone]
    torch.testing.assert_close(find(model, MORE_FACTS, batch=2).shift["ffn"], together.shift["ffn"], rtol=1e-4, atol=1e-5)


def test_shifts_follow_the_objective_written_out() -> None:
    """One fact, torch's own Adam, and the whole model with hooks at each step."""
    model, fact, aim = tiny("gpt2", dtype=torch.float64), MORE_FACTS[4], replace(QUICK, easing=False, steps=5)
    found = find(model, [fact], aim)
    block = model.transformer.h[1]  # type: ignore[union-attr, index]
    modules = {"attention": block.attn.c_proj, "ffn": block.mlp.c_proj}  # type: ignore[union-attr]
    made = [row(TOKENIZER, fact.prompt, fact.subject, fact.target, prefix) for prefix in ("", *PREFIXES)]
    made.append(row(TOKENIZER, f"{fact.subject} is a", fact.subject))
    delta = {part: torch.zeros(32, requires_grad=True, dtype=torch.float64) for part in modules}
    start: dict[str, Tensor] = {}

    def logits(one: Any, shifted: bool) -> Tensor:
        handles = []
        for part, module in modules.items():

            def hook(module: nn.Module, args: Any, output: Tensor, part: str = part) -> Tensor:
                start.setdefault(part, output[0, one.subject].detach().float())
                moved = torch.zeros_like(output)
                moved[0, one.subject] = delta[part].float().double() if shifted else 0
                return output + moved

            handles.append(module.register_forward_hook(hook))
        try:
            said: Tensor = model(input_ids=torch.tensor([one.ids])).logits[0]
            return said.float().log_softmax(-1)
        finally:
            for handle in handles:
                handle.remove()

    logits(made[0], False)
    reference = logits(made[-1], False)[made[-1].subject].detach()
    optimiser = torch.optim.Adam(list(delta.values()), lr=aim.lr)
    for step in range(aim.steps):
        nll = torch.stack([-logits(one, True)[one.at, one.target].mean() for one in made[:-1]]).mean()
        after = logits(made[-1], True)[made[-1].subject]
        kl = (reference.exp() * (reference - after)).sum()
        decay = sum(delta[part].norm() / start[part].norm() ** 2 for part in delta)
        loss = nll + aim.kl * kl + aim.decay * decay
        if step + 1 == aim.steps:
            break
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        with torch.no_grad():
            for part, value in delta.items():
                value *= min(1.0, float(aim.clamp * start[part].norm() / value.norm()))
    for part, value in delta.items():
        torch.testing.assert_close(found.shift[part][0].double(), value.detach(), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(float(found.nll), float(nll.detach()), rtol=1e-4, atol=1e-5)


def test_shifts_stay_inside_their_ball_and_lower_the_loss() -> None:
    model = tiny("llama")
    losses: list[float] = []
    aim = Objective(["ffn"], lr=0.5, steps=12, clamp=0.5, kl=0.0, decay=0.0)
    found = find(model, MORE_FACTS, aim, monitor=lambda step, loss: losses.append(loss))
    lengths = found.shift["ffn"].norm(dim=1) / found.before["ffn"].norm(dim=1)
    assert float(lengths.max()) <= 0.5 + 1e-5
    assert losses[-1] < losses[0]


def test_where_only_kl_counts_nothing_moves() -> None:
    """It is 0 at the start. (Adam would make steps of full size of the rounding errors in its gradient.)"""
    found = find(tiny("gpt2"), FACTS, replace(QUICK, nll=0.0, kl=1.0, enough=1e-6, easing=False))
    assert int(found.steps.max()) == 0
    assert not found.shift["ffn"].any()


def test_a_monitor_stops_the_search() -> None:
    seen: list[int] = []
    found = find(tiny("gpt2"), FACTS, monitor=lambda step, loss: bool(seen.append(step)) or step == 2)
    assert seen == [1, 2]
    assert int(found.steps.max()) == 1


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_keys_do_not_depend_on_padding_or_batch(kind: str) -> None:
    model = tiny(kind)
    where = layout(model)
    keys = []
    for side in ("left", "right"):
        TOKENIZER.padding_side = side
        subjects = Subjects(model, where, TOKENIZER, MORE_FACTS, PREFIXES, 0)
        keys += [subjects.read([where.layers[2].ffn], where.layers[3], [], batch=size)[0][0] for size in (1, 512)]
    alone = [
        Subjects(model, where, TOKENIZER, [f], PREFIXES, 0).read([where.layers[2].ffn], where.layers[3], [])[0][0]
        for f in MORE_FACTS
    ]
    for other in (*keys[1:], torch.cat(alone, 1)):
        torch.testing.assert_close(other, keys[0], rtol=1e-5, atol=1e-5)


def test_second_moment_is_that_of_all_tokens() -> None:
    model = tiny("llama")
    where = layout(model)
    texts = ["The Eiffel Tower stands in Paris. " * 20, "", "Marie Curie was born in Warsaw. " * 3]
    found = statistics.gather(model, TOKENIZER, where.layers[1:3], ("ffn", "attention"), texts=texts, tokens=150)
    total, count, width = torch.zeros(64, 64, dtype=torch.float64), 0, 128
    for text in texts:
        ids = TOKENIZER(text)["input_ids"] if text else []
        for start in range(0, len(ids), width):
            window = ids[start : start + min(width, 150 - count)]
            if not window:
                continue
            count += len(window)
            kept: list[Tensor] = []
            handle = where.layers[2].ffn.module.register_forward_pre_hook(lambda module, args, kept=kept: kept.append(args[0]))
            with torch.no_grad():
                model(input_ids=torch.tensor([window]))
            handle.remove()
            total += kept[0][0].double().T @ kept[0][0].double()
    expected = total / count
    expected.diagonal().add_(statistics.RIDGE * float(expected.diagonal().mean()))
    assert count == 150
    torch.testing.assert_close(found[2, "ffn"], expected, rtol=1e-5, atol=1e-8)
    assert found[1, "attention"].shape == (32, 32)


def test_statistics_read_an_iterator_only_as_far_as_needed_and_refuse_too_little() -> None:
    model = tiny("gpt2")
    where = layout(model)

    def endless() -> Any:
        while True:
            yield "The Eiffel Tower stands in Paris."

    seen: list[tuple[int, int]] = []
    statistics.gather(model, TOKENIZER, where.layers[:1], texts=endless(), progress=lambda done, all_: seen.append((done, all_)))
    assert seen[-1] == (512, 512)
    with pytest.raises(EditError, match="Give more texts"):
        statistics.gather(model, TOKENIZER, where.layers[:1], texts=["Paris"])


def test_weights_that_are_not_finite_are_noticed() -> None:
    model = tiny("llama")
    next(iter(model.model.layers[3].mlp.parameters())).data[0, 0] = torch.nan  # type: ignore[union-attr, index]
    with pytest.raises(ModelError, match="not finite"):
        find(model, FACTS)
    with pytest.raises(ModelError, match="not finite"):
        statistics.gather(model, TOKENIZER, layout(model).layers[3:], texts=["Paris is old. " * 300])
