"""What every program calls. A generated file holds these functions as they stand here, so they import nothing of ours."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence


def select_closest(
    queries: Sequence,
    keys: Sequence,
    match: Callable[..., bool],
    causal: bool = False,
) -> list[int]:
    """For each query the place of the nearest key that matches it.

    Of two at one distance the earlier is taken, itself only if no other matches, and
    the first place if none does.
    """
    chosen = []
    for i, query in enumerate(queries):
        seen = range(i + 1 if causal else len(keys))
        found = [j for j in seen if match(query, keys[j])]
        others = [j for j in found if j != i]
        if others:
            chosen.append(min(others, key=lambda j: (abs(j - i), j)))
        else:
            chosen.append(i if found else 0)
    return chosen


def aggregate(places: Sequence[int], values: Sequence) -> list:
    """The values at the chosen places."""
    return [values[place] for place in places]


def aggregate_sum(
    queries: Sequence,
    keys: Sequence,
    values: Sequence[int],
    match: Callable[..., bool],
    causal: bool = False,
) -> list[int]:
    """For each query the sum of the values whose keys match it."""
    sums = []
    for i, query in enumerate(queries):
        seen = range(i + 1 if causal else len(keys))
        sums.append(sum(values[j] for j in seen if match(query, keys[j])))
    return sums


def look_up(table: Callable[..., int], *reads: Sequence) -> list[int]:
    """What a table gives for the values of its variables, at each token."""
    return [table(*read) for read in zip(*reads, strict=True)]


def add_up(
    variables: Mapping[str, Sequence],
    weights: Mapping[str, Mapping],
    numbers: Mapping[str, Sequence[int]],
    per_unit: Mapping[str, Sequence[int]],
    tokens: int,
    labels: int,
) -> list[list[int]]:
    """At each token, for each label, the sum of what all variables add."""
    scores = []
    for i in range(tokens):
        row = [0] * labels
        for name, values in variables.items():
            row = [a + b for a, b in zip(row, weights[name][values[i]], strict=True)]
        for name, values in numbers.items():
            row = [a + b * values[i] for a, b in zip(row, per_unit[name], strict=True)]
        scores.append(row)
    return scores


def check_tokens(tokens: Sequence[str], known: Sequence[str], longest: int) -> None:
    """Raise ValueError for what the program was not made for."""
    if not 1 <= len(tokens) <= longest:
        raise ValueError(f"expected 1 to {longest} tokens, received {len(tokens)}")
    for place, token in enumerate(tokens):
        if token not in known:
            shown = ", ".join(repr(one) for one in list(known)[:20])
            more = ", …" if len(known) > 20 else ""
            said = f"token {token!r} at place {place} is not known; known: {shown}"
            raise ValueError(said + more)
