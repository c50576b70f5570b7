"""Texts that the model itself writes, put before a prompt so that an edit holds in more contexts than the bare one."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from instar.bench.seeds import stream
from instar.editing.rows import tokens
from instar.editing.running import call

STARTS = ("The", "Therefore", "Because", "I", "You")
_LENGTH, _TOP = 10, 5


@torch.no_grad()
def sample(model: nn.Module, tokenizer: Any, count: int, seed: int) -> list[str]:
    """`count` texts of about 10 tokens, each of which ends with ". ": top-5 sampling from the starts in turn.

    A function of model, count and seed alone; the global generator is left as it is.
    """
    draw = stream(seed, "prefixes")
    device = next(model.parameters()).device
    found = []
    for number in range(count):
        ids = tokens(tokenizer, STARTS[number % len(STARTS)])[0]
        for _ in range(_LENGTH):
            row = torch.tensor([ids], device=device)
            best, which = call(model, row, torch.ones_like(row))[0, -1].float().cpu().topk(_TOP)
            ids.append(int(which[torch.multinomial(best.softmax(0), 1, generator=draw)]))
        text = " ".join(tokenizer.decode(ids, skip_special_tokens=True).split())
        found.append(f"{text.rstrip('.')}. ")
    return found
