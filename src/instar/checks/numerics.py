"""Whether the numbers can be trusted: oracle, gradients, repeatability, extremes, half precision."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor

from instar.checks.sequence import LONG, ragged, starts
from instar.checks.subject import Subject
from instar.checks.trace import finite, in_pieces, observe, same, same_trace
from instar.errors import ContractError
from instar.state import State, leaves, tree_map

_HALF = 0.1
"""Of the mean output: what half precision may change in most of them."""


def check_reference(subject: Subject) -> None:
    """`forward` equals `reference`: outputs, final state, all gradients, with padding and packing too."""
    mixer = subject.build()
    because = "Decide which of the two is the paper's; the reference is the oracle."
    for T, size, flags in (
        (subject.tokens(12), 1.0, False),
        (subject.tokens(LONG), 1.0, False),
        (subject.tokens(LONG), 10.0, False),
        (subject.tokens(40), 1.0, True),
    ):
        x, state = size * subject.x(4, T), subject.warm(mixer, 4)
        mask, reset = (ragged(4, T), starts(4, T)) if flags else (None, None)
        fast = observe(subject, mixer, mixer, x, state, mask=mask, reset=reset)
        slow = observe(subject, mixer, mixer.reference, x, state, mask=mask, reset=reset)
        kind = f"{T} tokens of size {size:g}{' with padding and packing' if flags else ''}"
        what = f"forward on {kind}, against reference"
        same_trace(subject, fast, slow, what, because)


def check_precision(subject: Subject) -> None:
    """In float32, weak and strong inputs: `forward` stays near what `reference` computes in float64."""
    mixer = subject.build(torch.float32)
    exact = copy.deepcopy(mixer).double()
    for size in (1.0, 10.0):
        x = size * subject.x(2, subject.tokens(LONG), torch.float32)
        got, want = mixer(x)[0].detach(), exact.reference(x.double())[0].detach()
        what = f"the float32 output for inputs of size {size:g}, against the float64 reference,"
        same(got, want, 2e-3, what, "Look for differences of large numbers, and exponents that should be bounded.")


def check_gradients(subject: Subject) -> None:
    """Autograd agrees with central differences, along one of three random directions of each input, parameter, state tensor."""
    mixer, T = subject.build(), subject.tokens(7)
    x, state = subject.x(2, T), subject.warm(mixer, 2)
    weights = [subject.x(2, T), subject.x(2, 2)]
    tail = subject.x(2, 2)
    x.requires_grad_()
    state = tree_map(lambda leaf: leaf.requires_grad_() if leaf.is_floating_point() else leaf, state)

    def loss() -> Tensor:
        y, after = mixer(x, state)
        total = (y * weights[0]).sum()
        return total + (mixer(tail, after)[0] * weights[1]).sum() if subject.streaming else total

    wanted = {"x": x, **{f"parameter {n}": p for n, p in mixer.named_parameters()}}
    wanted |= {f"initial state leaf {i}": leaf for i, leaf in enumerate(leaves(state)) if leaf.requires_grad and leaf.numel()}
    taken = torch.autograd.grad(loss(), list(wanted.values()), allow_unused=True)
    step, allowed = (1e-6, 1e-6) if subject.dtype == torch.float64 else (1e-3, 2e-2)
    for (name, tensor), gradient in zip(wanted.items(), taken, strict=True):
        # A kink may lie between the points; a wrong gradient is wrong along all directions.
        for fine in (False, False, True):
            direction = torch.randn_like(tensor)
            found = 0.0 if gradient is None else float((gradient * direction).sum())
            measured = _slope(loss, tensor, direction, step, fine and subject.dtype == torch.float64)
            agrees = abs(found - measured) <= allowed * max(1.0, abs(measured))
            if agrees:
                break
        if not agrees:
            raise ContractError(
                f"Along a random direction of {name} autograd says {found:.6g}, central differences {measured:.6g}. "
                "Look for detach, no_grad, in-place writes, a custom backward, or float32 inside."
            )


def _slope(loss: Callable[[], Tensor], tensor: Tensor, direction: Tensor, step: float, fine: bool) -> float:
    """Central difference of the loss along a direction, `fine` of the fourth order; the tensor is put back to the bit."""
    kept = tensor.detach().clone()
    h = 10 * step if fine else step  # a longer step rounds less, and four points make up for its curvature
    values = []
    for times in (1, -1, 2, -2, 0) if fine else (1, -1, 0):
        tensor.data.copy_(kept + times * h * direction if times else kept)
        values.append(float(loss().detach()))  # the path with gradients is the one under test
    if fine:
        return (8 * (values[0] - values[1]) - (values[2] - values[3])) / (12 * h)
    return (values[0] - values[1]) / (2 * h)


def check_deterministic(subject: Subject) -> None:
    """A call again gives the same bits, in eval mode the numbers of training mode; the global generator is left as it was."""
    mixer = subject.build()
    for tokens in (subject.tokens(20), 1):
        state = subject.warm(mixer, 2)
        x = subject.x(2, tokens)  # last, so that the generator stands where no call has put it
        found = {}
        for mode in ("training", "eval"):
            mixer.train(mode == "training")
            generator = torch.get_rng_state()
            found[mode] = mixer(x, state)[0].detach()
            if not torch.equal(found[mode], mixer(x, state)[0]):
                raise ContractError(f"Two equal calls in {mode} mode differ. Random numbers need the tag 'stochastic'.")
            _left_alone(generator, mode)
        if not subject.card.capability("batch_statistics"):
            because = "What only training does needs the tag 'stochastic' or 'batch_statistics'."
            same(found["eval"], found["training"], subject.tolerance, "the output in eval mode, against training mode,", because)


def check_seeded(subject: Subject) -> None:
    """A stochastic mixer: fixed in eval mode; in training mode the generator's state decides, and it does decide."""
    mixer = subject.build().eval()
    state = subject.warm(mixer, 2)
    x = subject.x(2, subject.tokens(20))
    generator = torch.get_rng_state()
    if not torch.equal(mixer(x, state)[0], mixer(x, state)[0]):
        raise ContractError("Two equal calls in eval mode differ; draw random numbers in training mode only.")
    _left_alone(generator, "eval")
    mixer.train()
    outputs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        outputs.append(mixer(x, state)[0])
    if not torch.equal(outputs[0], outputs[1]):
        raise ContractError("Equal states of torch's generator gave two outputs; draw from torch's generator alone.")
    if torch.equal(outputs[0], outputs[2]):
        raise ContractError("Tagged 'stochastic', but the generator changes nothing in training mode; drop the tag.")


def _left_alone(before: Tensor, mode: str) -> None:
    if not torch.equal(before, torch.get_rng_state()):
        raise ContractError(
            f"A call in {mode} mode draws from torch's global generator, or seeds it: all that is drawn after it changes."
        )


def check_extremes(subject: Subject) -> None:
    """float32 values and gradients stay finite for huge inputs, long sequences and rows without a real token."""
    mixer, T = subject.build(torch.float32), subject.tokens(LONG)
    nothing = torch.zeros(2, T, dtype=torch.bool)
    long = subject.x(1, subject.tokens(2048), torch.float32)
    for name, x, mask in (
        ("inputs of size 1000", 1e3 * subject.x(2, T, torch.float32), None),
        ("inputs of size 1e-30", 1e-30 * subject.x(2, T, torch.float32), None),
        ("inputs of zero", torch.zeros(2, T, subject.width), None),
        (f"{long.shape[1]} tokens", long, None),
        (f"{long.shape[1]} equal tokens of size 30", 30 * long[:, :1].sign().expand_as(long), None),
        ("rows without a real token", subject.x(2, T, torch.float32), nothing),
    ):
        trace = observe(subject, mixer, mixer, x, mask=mask)
        because = "Look for exp, log, division or square roots without a bound."
        finite(trace.output, f"for {name} the output", because)
        finite(trace.after, f"after {name} a later output", because)
        for what, gradient in trace.gradients.items():
            finite(gradient, f"for {name} the gradient with respect to {what}", because)


def check_autocast(subject: Subject) -> None:
    """Under bfloat16 autocast, in one call and in pieces: finite, and near float32, with finite gradients."""
    mixer, T = subject.build(torch.float32), subject.tokens(40)
    x = subject.x(2, T, torch.float32)
    ways: dict[str, list[int]] = {"in one call": []} | ({"in pieces": [T // 2, T // 2 + 1]} if subject.streaming else {})
    for name, cuts in ways.items():

        def half(*args: Tensor, cuts: list[int] = cuts, **flags: Tensor | None) -> tuple[Tensor, State]:
            with torch.autocast("cpu", torch.bfloat16):
                return in_pieces(mixer, cuts)(*args, **flags)

        trace = observe(subject, mixer, half, x)
        want = in_pieces(mixer, cuts)(x)[0].detach()
        because = "A sum or an exponent that needs float32 runs in bfloat16."
        same(trace.output.float(), want, 0.1, f"the output in bfloat16 {name}, against float32,", because)
        for what, gradient in trace.gradients.items():
            finite(gradient, f"{name} the gradient with respect to {what}", because)


def check_half(subject: Subject) -> None:
    """Cast to half precision, in one call and in pieces: outputs of that type, most near float32's; finite, as gradients are."""
    mixer, T = subject.build(torch.float32).eval(), subject.tokens(40)
    x = subject.x(2, T, torch.float32)
    because = "States, masks and constants follow the module's type; sums and exponents are taken in float32."
    for dtype in (torch.bfloat16, torch.float16):
        cast, name = copy.deepcopy(mixer).to(dtype), str(dtype).removeprefix("torch.")
        for way, cuts in (("one call", ()), ("pieces", (T // 2, T // 2 + 1) if subject.streaming else ())):
            given = x.to(dtype).requires_grad_()
            got, want = in_pieces(cast, cuts)(given)[0], in_pieces(mixer, cuts)(x)[0].detach()
            if got.dtype != dtype:
                raise ContractError(f"Cast to {name}, the output in {way} is {got.dtype}. {because}")
            finite(got.detach(), f"cast to {name} an output in {way}", because)
            # Half of them: what is chosen or fires by a threshold may differ here and there.
            apart = float((got.detach().float() - want).abs().median())
            if apart > _HALF * float(want.abs().mean()):
                raise ContractError(f"Cast to {name}, outputs in {way} are typically {apart:.2g} from float32's. {because}")
            wanted = {"x": given, **{f"parameter {n}": p for n, p in cast.named_parameters()}}
            for what, found in zip(
                wanted, torch.autograd.grad(got.float().sum(), [*wanted.values()], allow_unused=True), strict=True
            ):
                if found is not None:
                    finite(found, f"cast to {name} the gradient in {way} with respect to {what}", because)
