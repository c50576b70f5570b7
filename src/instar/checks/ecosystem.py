"""Whether torch's own tools work on a mixer: compilation, copies, checkpoints, inference mode."""

from __future__ import annotations

import copy
import re
from typing import Any

import torch
from torch import Tensor

from instar.checks.sequence import ragged, starts
from instar.checks.subject import Subject
from instar.checks.trace import in_pieces, observe, same, same_trace
from instar.errors import ContractError
from instar.state import State


def check_compile(subject: Subject) -> None:
    """One graph without breaks, equal to eager in values and gradients, with and without a state, padding and packing."""
    mixer, T = subject.build(), subject.tokens(9)
    x, warm = subject.x(2, T), subject.warm(mixer, 2)
    for name, state, mask, reset in (
        ("a plain call", None, None, None),
        ("a call with state, padding and packing", warm, ragged(4, T)[2:], starts(2, T)),
    ):
        torch._dynamo.reset()
        compiled = torch.compile(mixer.forward, backend="aot_eager", fullgraph=True, dynamic=False)

        def way(x: Tensor, state: State, compiled: Any = compiled, **flags: Tensor | None) -> tuple[Tensor, State]:
            return (compiled if x.shape[1] == T else mixer)(x, state, **flags)  # later tokens run eagerly: one compilation

        want = observe(subject, mixer, mixer, x, state, mask=mask, reset=reset)
        try:
            got = observe(subject, mixer, way, x, state, mask=mask, reset=reset)
        except torch._dynamo.exc.TorchDynamoException as error:
            raise ContractError(
                f"{name} is not one graph under torch.compile(fullgraph=True): {_reason(error)} "
                "Python decisions on tensor values are to be left out under torch.compiler.is_compiling()."
            ) from error
        except RuntimeError as error:
            raise ContractError(
                f"{name} compiles, but its graph fails when it runs: {str(error).splitlines()[0]} For a 'view', the backward "
                "of an activation met a transposed gradient, whose memory order torch mistakes: apply it before splitting heads."
            ) from error
        finally:
            torch._dynamo.reset()
        same_trace(subject, got, want, f"{name}, against eager", "Compilation changed the result.")


def _reason(error: Exception) -> str:
    """What Dynamo says, in one line: its first sentence, its explanation, and the last place in the traced code."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    chosen = lines[:1] + [line for line in lines if line.startswith("Explanation:")][:1]
    place = [re.sub(r'^File ".*[/\\\\]', 'File "', line) for line in lines if line.startswith('File "')][-1:]
    return " ".join(line[:300] for line in chosen + place) or type(error).__name__


def check_copies(subject: Subject) -> None:
    """A deep copy, and a fresh instance that loads the state_dict, give the same output and share no parameter."""
    mixer, x = subject.build().eval(), subject.x(2, subject.tokens(20))
    want = mixer(x)[0].detach()
    twin = copy.deepcopy(mixer)
    fresh = subject.build(seed=subject.seed + 1).eval()
    fresh.load_state_dict(mixer.state_dict())
    because = "What decides the output must be a parameter or a persistent buffer."
    same(twin(x)[0].detach(), want, subject.tolerance, "the output of a deep copy", because)
    same(fresh(x)[0].detach(), want, subject.tolerance, "the output of a fresh instance with this state_dict", because)
    with torch.no_grad():
        for parameter in (*twin.parameters(), *fresh.parameters()):
            parameter.zero_()
    same(mixer(x)[0].detach(), want, subject.tolerance, "the output after the copies were set to zero", because)


def check_inference(subject: Subject) -> None:
    """Decoding under torch.inference_mode, token by token, with padding too, gives what it gives with gradients."""
    mixer, T = subject.build(), subject.tokens(20)
    x = subject.x(2, T)
    decode = in_pieces(mixer, range(1, T) if subject.streaming else ())
    for mask in (None, ragged(2, T)):
        want = decode(x, mask=mask)[0].detach()
        with torch.inference_mode():
            got = decode(x, mask=mask)[0].clone()
        real = torch.ones(2, T, 1) if mask is None else mask.unsqueeze(-1)
        what = f"the output of decoding under torch.inference_mode{'' if mask is None else ' with padding'}"
        same(got * real, want * real, subject.tolerance, what, "The path without gradients computes something else.")
