"""What a mixer is as a function of sequences: shapes, splits, states, causality, padding, packing, rows."""

from __future__ import annotations

import torch
from torch import Tensor

from instar.checks.subject import PROBE, Subject
from instar.checks.trace import apart, finite, in_pieces, observe, same, same_trace
from instar.errors import ContractError, InstarError
from instar.state import clone, index_select, leaves

LONG = 150
"""Crosses chunks of 16, 32, 64 and 128 tokens."""
WHOLE = 256
"""A whole number of them: where nothing is padded, nothing is copied."""
DRAWS = 16
"""Rows in which a change may show: a method that chooses among tokens may leave out the changed one."""


def ragged(batch: int, tokens: int) -> Tensor:
    """A mask with left, right and inner padding, both ends, and a row without any, in turn."""
    t = torch.arange(tokens)
    third = max(1, tokens // 3)
    inner = (t < third) | (t >= 2 * third)
    kinds = [t >= third, t < tokens - third, inner & (t % 4 != 1), inner & (t > 0) & (t < tokens - 1), t >= 0]
    return torch.stack([kinds[b % len(kinds)] for b in range(batch)])


def starts(batch: int, tokens: int) -> Tensor:
    """Sequence starts that differ from row to row: at the first token, in the middle, at neighbours, and none."""
    reset = torch.zeros(batch, tokens, dtype=torch.bool)
    half = tokens // 2
    for b in range(batch):
        reset[b, [[0, half], [half, half + 1], [tokens // 3, tokens - 1], []][b % 4]] = True
    return reset


def check_shapes(subject: Subject) -> None:
    """`forward` returns (output, state); the output has the input's shape and type for T = 0, 1 and more."""
    mixer = subject.build()
    lengths = (subject.tokens(7), 1, 0)
    for name, way in (("forward", mixer), ("reference", mixer.reference)):
        for T in lengths:
            x = subject.x(2, T)
            returned = way(x)
            if not isinstance(returned, tuple) or len(returned) != 2:
                raise ContractError(f"{name} must return (output, state); it returned {type(returned).__name__}.")
            y, state = returned
            if y.shape != x.shape or y.dtype != x.dtype:
                raise ContractError(f"{name}: x is {_kind(x)}, the output {_kind(y)}; both must be alike.")
            for leaf in leaves(state):
                if leaf.dim() == 0 or leaf.shape[0] != 2:
                    raise ContractError(f"{name}: a state tensor is {_kind(leaf)}; the batch axis (here 2) must come first.")
    if subject.streaming:
        x, state = subject.x(2, PROBE), subject.warm(mixer, 2)
        because = "A call with T = 0 must return the state as it was."
        same(
            mixer(x, mixer(x[:, :0], state)[1])[0],
            mixer(x, state)[0],
            subject.tolerance,
            "after a call without tokens the output",
            because,
        )


def check_inputs(subject: Subject) -> None:
    """Inputs are left as they are, and their memory layout does not matter, also where chunks are whole."""
    mixer = subject.build()
    for T in (subject.tokens(20), subject.tokens(WHOLE)):
        x, mask, reset = subject.x(2, T), ragged(2, T), starts(2, T)
        kept = [t.clone() for t in (x, mask, reset)]
        strided = x.transpose(0, 2).contiguous().transpose(0, 2)
        flags = {"mask": mask, "reset": reset}
        for given, other in (({}, {}), (flags, {name: flag.mT.contiguous().mT for name, flag in flags.items()})):
            want = mixer(x, **given)[0]
            for name, now, before in zip(("x", "mask", "reset"), (x, mask, reset), kept, strict=True):
                if not torch.equal(now, before):
                    raise ContractError(f"forward changed its argument {name} in place; work on a copy.")
            because = "Use reshape where view assumes a layout."
            same(mixer(strided, **other)[0], want, subject.tolerance, f"the output for a transposed view of {T} tokens", because)


def check_split(subject: Subject) -> None:
    """One call, any pieces, and token by token: equal outputs, final states and gradients, from a state that is not empty."""
    mixer = subject.build()
    because = "What the later piece needs is not all in the state."
    for T, cuts, flags in (
        (subject.tokens(23), range(1, 23), False),
        (subject.tokens(LONG), (1, 64, 65, 130), False),
        (subject.tokens(40), (3, 17, 18, 33), True),
    ):
        x, state = subject.x(2, T), subject.warm(mixer, 2)
        mask, reset = (ragged(4, T)[2:], starts(2, T)) if flags else (None, None)
        whole = observe(subject, mixer, mixer, x, state, mask=mask, reset=reset)
        pieces = observe(subject, mixer, in_pieces(mixer, cuts), x, state, mask=mask, reset=reset)
        where = "token by token" if len(cuts) == T - 1 else f"cut before {', '.join(map(str, cuts))}"
        what = f"{T} tokens {where}{' with padding and packing' if flags else ''}, against one call"
        same_trace(subject, pieces, whole, what, because)
        for i, (a, b) in enumerate(zip(leaves(pieces.state), leaves(whole.state), strict=True)):
            if a.shape == b.shape and a.is_floating_point() and not flags:  # storage behind a mask is the method's own affair
                same(a, b, subject.tolerance, f"{what}: leaf {i} of the final state", because)


def check_value(subject: Subject) -> None:
    """A state is a value: continuing from it twice, or after others continued from it, gives what it gave before."""
    for training in (False, True):
        mixer = subject.build()
        a, b = subject.x(2, PROBE), subject.x(2, 3)
        with torch.set_grad_enabled(training):
            held = subject.warm(mixer, 2)
            copied = clone(held)
            decode = in_pieces(mixer, range(1, PROBE))
            first, middle = decode(a, held)[0], mixer(a[:, :2], held)[1]
            later = mixer(a[:, 2:], middle)[0]
            mixer(b, held)  # a cache that appends in place without looking now holds b where the handle `middle` holds a
            older = mixer(a[:, 2:], middle)[0]
            again, copy = decode(a, held)[0], decode(a, copied)[0]
            swapped = decode(a.flip(0), index_select(held, torch.tensor([1, 0])))[0].flip(0)
        mode = "with gradients" if training else "without gradients"
        because = "A call changed the tensors of the state that it was given; return new ones."
        for name, got, want in (
            ("the second continuation from one state", again, first),
            ("the continuation from an older state", older, later),
            ("the continuation from a state, against one from its copy", first, copy),
        ):
            same(got, want, subject.tolerance, f"{mode}: {name}", because)
        because = "The batch must be the first axis of every tensor of the state, and rows must not share entries."
        same(swapped, first, subject.tolerance, f"{mode}: rows taken from the state by index_select", because)


def check_causality(subject: Subject) -> None:
    """Changing a token changes no output before it (beyond the declared lookahead), in values and in gradients."""
    mixer, T = subject.build(), subject.tokens(LONG)
    ahead = int(subject.card.capability("lookahead"))
    x, state = subject.x(2, T), subject.warm(mixer, 2)
    want = mixer(x, state)[0].detach()
    for t in sorted({min(t, T - 1) for t in (1, 7, 64, 100, T - 1)}):
        changed = x.clone()
        changed[:, t:] = 3.0 * torch.randn_like(changed[:, t:])
        seen = slice(0, max(0, t - ahead))
        because = f"Outputs may depend on tokens up to their own{f' and {ahead} beyond' if ahead else ''}: the future leaks."
        what = f"the output before token {t}, when the tokens from there on change,"
        same(mixer(changed, state)[0].detach()[:, seen], want[:, seen], subject.tolerance, what, because)
    x.requires_grad_()
    t = T // 2
    gradient = torch.autograd.grad(mixer(x, state)[0][:, t].square().sum(), x)[0][:, t + 1 + ahead :]
    what = f"the gradient of the output of token {t} with respect to later tokens"
    same(gradient, torch.zeros_like(gradient), subject.tolerance, what, "The future leaks.")


def check_mixing(subject: Subject) -> None:
    """The mixer moves information: other tokens in the first half show in the second half's outputs, and so does a state."""
    mixer, T = subject.build(), subject.tokens(8)
    half = T // 2  # of tokens, since a layer that draws which tokens it reads may pass over any one
    x = subject.x(DRAWS, T)
    changed = torch.cat([subject.x(DRAWS, half), x[:, half:]], dim=1)
    with torch.no_grad():
        if torch.equal(mixer(x)[0][:, half:], mixer(changed)[0][:, half:]):
            raise ContractError("Changing the first half changes no output of the second; nothing moves between positions.")
        if subject.streaming and torch.equal(mixer(x)[0], mixer(x, subject.warm(mixer, DRAWS))[0]):
            raise ContractError("The output is the same with and without a state; forward ignores the state it is given.")


def check_future(subject: Subject) -> None:
    """A bidirectional mixer reads both sides; otherwise its tag should be `causal`."""
    mixer, T = subject.build(), subject.tokens(8)
    half = T // 2
    x = subject.x(DRAWS, T)
    changed = torch.cat([x[:, :half], subject.x(DRAWS, T - half)], dim=1)
    with torch.no_grad():
        if torch.equal(mixer(x)[0][:, :half], mixer(changed)[0][:, :half]):
            raise ContractError("Tagged bidirectional, but the second half reaches no output of the first; tag it causal.")


def check_padding(subject: Subject) -> None:
    """Left, right and inner padding, whatever stands in it, changes no real output, no state and no gradient."""
    mixer = subject.build()
    for T in (subject.tokens(17), subject.tokens(LONG)):
        mask = ragged(4, T)
        x = subject.x(4, T).masked_fill(~mask.unsqueeze(-1), 1e4)
        state = subject.warm(mixer, 4)
        finite(mixer(x, state, mask=mask)[0].detach(), "an output", "Outputs at padding must be finite.")
        padded = observe(subject, mixer, mixer, x, state, mask=mask)
        alone = observe(subject, mixer, apart(mixer), x, state, mask=mask)
        kinds = "left, right, inner and mixed padding in rows 0, 1, 2, 3"
        what = f"{T} tokens with {kinds}, against the real tokens alone"
        same_trace(subject, padded, alone, what, "Masked tokens must leave the state as it is and reach no real output.")


def check_reset(subject: Subject) -> None:
    """Packed rows equal their sequences run apart, from a carried state, with padding between them."""
    mixer = subject.build()
    for T, padded in ((subject.tokens(17), False), (subject.tokens(LONG), False), (subject.tokens(24), True)):
        x, state, reset = subject.x(4, T), subject.warm(mixer, 4), starts(4, T)
        mask = ragged(5, T)[1:] if padded else None
        packed = observe(subject, mixer, mixer, x, state, mask=mask, reset=reset)
        alone = observe(subject, mixer, apart(mixer), x, state, mask=mask, reset=reset)
        what = f"rows of {T} tokens packed from several sequences{' with padding' if padded else ''}, against each alone"
        same_trace(subject, packed, alone, what, "A reset must drop the state before its token, masked or not, and nothing else.")


def check_rows(subject: Subject) -> None:
    """In eval mode batch rows know nothing of each other, and their order does not matter."""
    mixer, T = subject.build().eval(), subject.tokens(20)
    x, state = subject.x(5, T), subject.warm(mixer, 5)
    batch = observe(subject, mixer, mixer, x, state)
    alone = observe(subject, mixer, apart(mixer), x, state)
    because = "Rows of a batch must not influence each other: look for statistics or shapes taken over the batch."
    same_trace(subject, batch, alone, "a batch of 5, against each row alone", because)
    order = torch.tensor([3, 0, 4, 1, 2])
    moved = mixer(x[order], index_select(state, order))[0].detach()
    same(moved, batch.output[order], subject.tolerance, "the output of a batch in another order", because)


def check_refuses_state(subject: Subject) -> None:
    """Without the tag `streaming`, continuing from a state is refused rather than answered wrongly."""
    mixer = subject.build()
    x = subject.x(1, 4)
    state = mixer(x)[1]
    if state is None:
        return
    try:
        mixer(x, state)
    except InstarError:
        return
    raise ContractError("Not tagged 'streaming', yet forward accepts a state. Raise an InstarError, or tag it.")


def check_max_len(subject: Subject) -> None:
    """`max_len=n` tokens are accepted, one more raises an InstarError."""
    mixer, longest = subject.build(), int(subject.card.capability("max_len"))
    with torch.no_grad():
        mixer(subject.x(1, longest))
        try:
            mixer(subject.x(1, longest + 1))
        except InstarError:
            return
    raise ContractError(f"{longest + 1} tokens were accepted although the card says max_len={longest}.")


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"
