"""A program as a Python file that runs alone, laid out as formatters of Python lay it out."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Sequence

from instar.lab.programs import runtime
from instar.lab.programs.network import GRAIN
from instar.lab.programs.program import ONES, POSITIONS, TOKENS, Branches, Head, Program, Step, Table, Value

_WIDE = 88
_SINGLE = {TOKENS: "token", POSITIONS: "position", ONES: "one"}

_HEAD = '''"""A program that a transformer learnt.

python FILE TOKEN …, or run(tokens) from Python, gives {what}.
{order}The label with the largest sum of WEIGHTS wins, the first of
equal ones. Weights are whole, 1/{grain} of a nat each.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence

'''

_MAIN = """if __name__ == "__main__":
    try:
        print(*run(sys.argv[1:]))
    except ValueError as error:
        sys.exit(str(error))
"""


def python(program: Program) -> str:
    """The text of the file: `run(tokens)` gives what `program.run` gives, and raises ValueError for what it cannot read.

    It imports the standard library only. Every token and label stands in it as a literal, whatever characters it holds.
    """
    causal = any(isinstance(step, Head) for step in program.steps) and program.causal
    head = _HEAD.format(
        what="one label for all tokens" if program.pooled else "a label for each token",
        order="Each reads only itself and what stands before it. " if causal else "",
        grain=GRAIN,
    )
    parts = [*map(_source, _functions(program)), *map(_step, program.steps), _run(program)]
    return f"{head}{_constants(program)}\n\n" + "\n\n\n".join([*parts, _MAIN])


def _functions(program: Program) -> list[Callable[..., object]]:
    """Those of the runtime that the program calls."""
    heads = [step for step in program.steps if isinstance(step, Head)]
    called: list[Callable[..., object]] = [runtime.check_tokens]
    if any(not head.counts for head in heads):
        called += [runtime.select_closest, runtime.aggregate]
    if any(head.counts for head in heads):
        called.append(runtime.aggregate_sum)
    if len(heads) < len(program.steps):
        called.append(runtime.look_up)
    return [*called, runtime.add_up]


def _source(function: Callable[..., object]) -> str:
    return inspect.getsource(function).rstrip()


def quoted(text: str) -> str:
    """A literal of a text, in the quotes that need the fewest escapes, double ones where there is no difference."""
    quote = '"' if text.count('"') <= text.count("'") else "'"
    return quote + "".join(f"\\{c}" if c == quote else c if c in "\"'" else repr(c)[1:-1] for c in text) + quote


def literal(value: Value | tuple[Value, ...]) -> str:
    """A literal of a value, or of a tuple of them."""
    if isinstance(value, tuple):
        return f"({', '.join(map(literal, value))}{',' if len(value) == 1 else ''})"
    return quoted(value) if isinstance(value, str) else str(value)


def _several(before: str, items: Sequence[str], after: str, indent: int = 0) -> str:
    """`before` items `after` in one line, or, where that is too wide, each item in a line of its own."""
    margin = " " * indent
    line = f"{margin}{before}{', '.join(items)}{after}"
    if len(line) <= _WIDE:
        return line
    inner = "".join(f"{margin}    {item},\n" for item in items)
    return f"{margin}{before}\n{inner}{margin}{after}"


def _row(key: str, numbers: Sequence[int], indent: int) -> str:
    """A line of a dictionary of tuples."""
    return _several(f"{key}: (", [str(n) for n in numbers], ",)," if len(numbers) == 1 else "),", indent)


def _constants(program: Program) -> str:
    lines = [_tuple("LABELS", program.labels), f"LONGEST = {program.length}"]
    if program.embedding:
        lines += ["TOKENS = {", *(_row(quoted(t), values, 4) for t, values in program.embedding.items()), "}"]
    else:
        lines.append(_tuple("TOKENS", program.tokens))
    if program.weights:
        lines.append("WEIGHTS = {")
        for name, values in program.weights.items():
            lines += [f"    {quoted(name)}: {{", *(_row(literal(v), row, 8) for v, row in values.items()), "    },"]
        lines.append("}")
    else:
        lines.append("WEIGHTS = {}")
    if program.numeric:
        lines += ["PER_UNIT = {", *(_row(quoted(name), row, 4) for name, row in program.numeric.items()), "}"]
    else:
        lines.append("PER_UNIT = {}")
    return "\n".join(lines) + "\n"


def _tuple(name: str, texts: Sequence[str]) -> str:
    return _several(f"{name} = (", [quoted(text) for text in texts], ",)" if len(texts) == 1 else ")")


def _arguments(names: Sequence[str]) -> list[str]:
    return [_SINGLE.get(name, name) for name in names]


def _step(step: Step) -> str:
    if isinstance(step, Head):
        return _predicate(step)
    arguments = _arguments(step.reads)
    body = _table(step, arguments) if isinstance(step, Table) else _nested(step.branches, arguments, 4)
    return "\n".join([_several(f"def lookup_{step.name}(", arguments, "):"), *body])


def _predicate(head: Head) -> str:
    query, key = _arguments([head.query, head.key])
    if query == key:
        query, key = f"q_{query}", f"k_{key}"
    groups: dict[Value, list[Value]] = {}
    for value, wanted in head.match.items():
        if wanted is not None:
            groups.setdefault(wanted, []).append(value)
    lines = [f"def match_{head.name}({query}, {key}):"]
    for wanted, asked in groups.items():
        lines += [_member(query, asked, 4), f"        return {key} == {literal(wanted)}"]
    return "\n".join([*lines, "    return False"])


def _member(name: str, values: Sequence[Value] | Sequence[Value | tuple[Value, ...]], indent: int) -> str:
    if len(values) == 1:
        return f"{' ' * indent}if {name} == {literal(values[0])}:"
    return _several(f"if {name} in {{", [literal(value) for value in values], "}:", indent)


def _table(table: Table, arguments: Sequence[str]) -> list[str]:
    """Inputs by what they give; the most frequent output is what remains."""
    groups: dict[int, list[Value | tuple[Value, ...]]] = {}
    for key, output in table.outputs.items():
        groups.setdefault(output, []).append(key if len(key) > 1 else key[0])
    name, lines = arguments[0], []
    if len(arguments) > 1 and groups:
        name = "key"
        lines.append(f"    key = ({', '.join(arguments)})")
    for output, keys in groups.items():
        lines += [_member(name, keys, 4), f"        return {output}"]
    return [*lines, f"    return {table.default}"]


def _nested(branches: Branches, arguments: Sequence[str], indent: int) -> list[str]:
    margin = " " * indent
    if isinstance(branches, int):
        return [f"{margin}return {branches}"]
    lines = []
    for (_, inner), (end, _) in itertools.pairwise(branches):
        lines += [f"{margin}if {arguments[0]} < {end}:", *_nested(inner, arguments[1:], indent + 4)]
    return [*lines, *_nested(branches[-1][1], arguments[1:], indent)]


def _call(name: str, function: str, arguments: Sequence[str]) -> str:
    return _several(f"{name} = {function}(", arguments, ")", 4)


def _run(program: Program) -> str:
    """The steps in their order, then the sums."""
    lines = ["def run(tokens: Sequence[str]) -> list[str]:"]
    lines.append(f'    """{"One label for all tokens" if program.pooled else "The label of each token"}."""')
    if program.unknown is not None:
        lines.append(f"    tokens = [t if t in TOKENS else {quoted(program.unknown)} for t in tokens]")
    lines.append("    check_tokens(tokens, TOKENS, LONGEST)")
    needed = {*program.weights, *program.numeric, *(name for step in program.steps for name in step.reads)}
    for name in program.given:
        if name in needed and name != TOKENS:
            lines.append(f"    {name} = {_given(name)}")
    causal = ["True"] if program.causal else []
    for step in program.steps:
        if isinstance(step, Head) and step.counts:
            lines.append(_call(step.name, "aggregate_sum", [*step.reads, f"match_{step.name}", *causal]))
        elif isinstance(step, Head):
            lines.append(_call("places", "select_closest", [step.query, step.key, f"match_{step.name}", *causal]))
            lines.append(f"    {step.name} = aggregate(places, {step.value})")
        else:
            lines.append(_call(step.name, "look_up", [f"lookup_{step.name}", *step.reads]))
    for name, variables in (("variables", program.weights), ("numbers", program.numeric)):
        lines.append(_several(f"{name} = {{", [f"{quoted(one)}: {one}" for one in variables], "}", 4))
    lines.append("    scores = add_up(variables, WEIGHTS, numbers, PER_UNIT, len(tokens), len(LABELS))")
    if program.pooled:
        lines.append("    scores = [[sum(column) for column in zip(*scores)]]")
    return "\n".join([*lines, "    return [LABELS[row.index(max(row))] for row in scores]"])


def _given(name: str) -> str:
    """How a variable comes from the tokens."""
    if name == POSITIONS:
        return "list(range(len(tokens)))"
    if name == ONES:
        return "[1] * len(tokens)"
    return f"[TOKENS[token][{name.removeprefix('token_')}] for token in tokens]"
