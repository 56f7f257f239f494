"""Compiled programs read for calls that leave XLA: where they stand, and which may run at once.

On CPUs a call of LAPACK, or a Fourier transform, occupies one of XLA's threads while it waits for
others. Two that may run at once can wait for each other for ever, so a program should have none.
"""

import itertools
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax

_LEAVES_XLA = re.compile(r"lapack|blas|ducc|fft", re.IGNORECASE)
_COMPUTATION = re.compile(r"^(ENTRY )?%([\w.-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%([\w.-]+) = .*? ([a-z][a-z0-9-]*)\((.*)$")
_TARGET = re.compile(r'custom_call_target="([^"]*)"')
_ONE = re.compile(
    r"(?:calls|to_apply|body|condition|true_computation|false_computation)=%([\w.-]+)"
)
_SEVERAL = re.compile(r"(?:branch_computations|called_computations|calls)=\{([^}]*)\}")
_BEFORE = re.compile(r"control-predecessors=\{([^}]*)\}")
_NAME = re.compile(r"%([\w.-]+)")


class Instruction(NamedTuple):
    """One line: what it waits for, the computations it runs, and where it goes outside XLA."""

    name: str
    needs: frozenset[str]
    runs: tuple[str, ...]
    target: str | None


class Pair(NamedTuple):
    """Two instructions of one computation, neither of which waits for the other."""

    computation: str
    first: str
    second: str


def compiled_text(function: Any, *args: Any) -> str:
    """The optimised HLO of a function of arrays."""
    return jax.jit(function).lower(*args).compile().as_text()


def custom_calls(text: str) -> list[str]:
    """The targets of all custom calls, and "fft" for each Fourier transform."""
    _, computations = _parsed(text)
    return [
        instruction.target
        for instructions in computations.values()
        for instruction in instructions
        if instruction.target is not None
    ]


def lapack_calls_at_once(text: str) -> list[Pair]:
    """Pairs of instructions that leave XLA, or run what does, and may do so at the same time."""
    entry, computations = _parsed(text)
    reached = list(_reached(entry, computations))
    leaves: dict[str, bool] = {}

    def leaves_xla(instruction: Instruction) -> bool:
        if instruction.target is not None and _LEAVES_XLA.search(instruction.target):
            return True
        return any(computation_leaves(name) for name in instruction.runs)

    def computation_leaves(name: str) -> bool:
        if name not in leaves:
            leaves[name] = any(map(leaves_xla, computations[name]))
        return leaves[name]

    found = []
    for name in reached:
        outside = [each for each in computations[name] if leaves_xla(each)]
        before = _ancestors(computations[name])
        for first, second in itertools.combinations(outside, 2):
            if first.name not in before[second.name] and second.name not in before[first.name]:
                found.append(Pair(name, first.name, second.name))
    return found


def _parsed(text: str) -> tuple[str, dict[str, list[Instruction]]]:
    """The entry's name, and the instructions of each computation."""
    computations: dict[str, list[Instruction]] = {}
    entry, current = "", None
    for line in text.splitlines():
        if header := _COMPUTATION.match(line):
            current = computations.setdefault(header[2], [])
            entry = header[2] if header[1] else entry
        elif line.startswith("}"):
            current = None
        elif current is not None and (match := _INSTRUCTION.match(line)):
            current.append(_instruction(*match.groups()))
    assert entry, "no ENTRY computation: this is not the text of a compiled program"
    return entry, computations


def _instruction(name: str, opcode: str, rest: str) -> Instruction:
    depth, end = 1, 0
    while depth:  # the parenthesis after the operands
        depth += {"(": 1, ")": -1}.get(rest[end], 0)
        end += 1
    operands, attributes = rest[:end], rest[end:]
    several = [name for group in _SEVERAL.findall(attributes) for name in _NAME.findall(group)]
    before = [name for group in _BEFORE.findall(attributes) for name in _NAME.findall(group)]
    target = None
    if opcode == "fft":
        target = "fft"
    elif opcode == "custom-call" and (match := _TARGET.search(attributes)):
        target = match[1]
    return Instruction(
        name,
        frozenset(_NAME.findall(operands) + before),
        (*_ONE.findall(attributes), *several),
        target,
    )


def _reached(entry: str, computations: dict[str, list[Instruction]]) -> Iterator[str]:
    seen, todo = {entry}, [entry]
    while todo:
        yield (name := todo.pop())
        for instruction in computations[name]:
            new = [each for each in instruction.runs if each not in seen]
            seen.update(new)
            todo.extend(new)


def _ancestors(instructions: list[Instruction]) -> dict[str, set[str]]:
    """Everything that each waits for, at first or second hand; operands stand above their users."""
    found: dict[str, set[str]] = {}
    for instruction in instructions:
        direct = instruction.needs & found.keys()
        found[instruction.name] = set(direct).union(*(found[name] for name in direct))
    return found


def num_compilations(function):
    """The number of compilations of a function of the package so far."""
    compiled = function if hasattr(function, "_cached") else function.__wrapped__
    return compiled._cached._cache_size()
