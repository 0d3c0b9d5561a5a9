"""What a function's run will do, found out once: constants, last uses, and which cache updates may happen in place.

A state is read, a slice of it replaced, the result written back. Taken literally that copies a whole cache at each layer. It
need not: `slice_update` may change its input itself where nothing can see the difference, that is where

- no value that shares the input's memory is used any more, and
- if that memory is a state's, the next thing that happens to the state is a write.

Values that share memory have one root: a view has the root of what it views, a value read from a state that of the state.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pocketphi.targets.coreml.constants import KINDS, build
from pocketphi.targets.coreml.kernels import KERNELS, VIEWS
from pocketphi.targets.coreml.mlpackage import Function, Operation
from pocketphi.targets.coreml.raw import Raw, ValueType
from pocketphi.targets.coreml.values import Name
from pocketphi.targets.coreml.weights import Stored

STATES = frozenset({"read_state", "write_state"})
CONTROL = {"while_loop": 2, "cond": 2}
"""Operators that run blocks, and how many each has."""
LISTS = frozenset({("concat", "values"), ("stack", "values"), ("einsum", "values"), ("while_loop", "loop_vars")})
"""Parameters that take several values, even where one is given."""


@dataclass
class Step:
    """One operation to run. frees: values used for the last time here; own: the value written shares no caller's memory.

    blocks: what it runs itself, once or often; outer: the values that these read and that were made before the operation.
    """

    op: Operation
    kernel: Callable[..., Any] | None
    names: dict[str, str | list[str]]
    fixed: dict[str, Any]
    frees: list[str] = field(default_factory=list)
    in_place: bool = False
    own: bool = False
    blocks: list[Nested] = field(default_factory=list)
    outer: list[str] = field(default_factory=list)


@dataclass
class Nested:
    """A block that an operation runs. inputs: their names and types; outputs: names of values."""

    inputs: Mapping[str, ValueType]
    outputs: tuple[str, ...]
    steps: list[Step]
    constants: dict[str, Any]


@dataclass
class Plan:
    """copies: outputs and kept values that share memory with a state or an input, which a caller must not hold."""

    function: Function
    steps: list[Step]
    constants: dict[str, Any]
    copies: set[str]


def unsupported(function: Function) -> list[str]:
    """The operators of a function that cannot be run, each as often as it occurs."""
    known = KERNELS.keys() | KINDS | STATES | CONTROL.keys()
    return [
        op.kind + (" with blocks" if op.blocks else "")
        for op in function.every_operation()
        if op.kind not in known or len(op.blocks) != CONTROL.get(op.kind, 0)
    ]


def make_plan(function: Function, half: bool, keep: Collection[str] = ()) -> Plan:
    """keep: values that must still be there after the run. Raises ValueError naming an operation that cannot be run."""
    scope = _Scope(function, half, function.operations)
    steps = scope.steps
    last = _last_uses(steps, function, keep)
    for name, index in last.items():
        if index < len(steps):
            steps[index].frees.append(name)
    return Plan(function, steps, scope.constants, _share(steps, function, last, keep))


class _Scope:
    """The steps of a function, or of a block in it (`around` is the scope of that then), and what they may read.

    constants: by name; outside: those of them that were made around a block, but for names that are its inputs
    """

    def __init__(
        self,
        function: Function,
        half: bool,
        operations: Sequence[Operation],
        around: _Scope | None = None,
        inputs: Collection[str] = (),
    ) -> None:
        own = {out: op.giving(out) for op in operations if op.constant for out, _ in op.outputs}
        self.function, self.half, self.inside = function, half, around is not None
        self.operations: dict[str, Operation] = {**around.operations, **own} if around else own
        self.outside = {n: v for n, v in around.constants.items() if n not in inputs} if around else {}
        self.constants: dict[str, Any] = {
            **self.outside,
            **{n: build(op, self.operations, half) for n, op in own.items()},
        }
        self.steps = [self._step(op) for op in operations if not op.constant]

    def _step(self, op: Operation) -> Step:
        names: dict[str, str | list[str]] = {}
        fixed: dict[str, Any] = {}
        for parameter, values in op.inputs.items():
            if (op.kind, parameter) in LISTS:
                names[parameter] = [self._named(f"{op.name}.{parameter}.{i}", v) for i, v in enumerate(values)]
            elif len(values) != 1:
                raise ValueError(f"{op.name} ({op.kind}): {len(values)} values for {parameter}")
            elif not isinstance(values[0], Name):
                fixed[parameter] = Stored(values[0]) if isinstance(values[0], Raw) else values[0]
            elif values[0] in self.constants:
                fixed[parameter] = self.constants[values[0]]
            else:
                names[parameter] = values[0]
        used = {n for value in names.values() for n in (value if isinstance(value, list) else [value])}
        states = used & self.function.states.keys()
        if self.inside and (op.kind in STATES or states):
            raise ValueError(f"{op.name} ({op.kind}) uses a state inside of a block, which is not understood")
        if op.kind in CONTROL:
            return self._control(op, names, fixed)
        if op.kind in STATES:
            _check_state_op(op, names, self.function)
            return Step(op, None, names, fixed)
        if states:
            raise ValueError(f"{op.name} ({op.kind}) takes a state for a tensor")
        kernel = KERNELS[op.kind]
        known = inspect.signature(kernel).parameters
        unknown = [p for p in op.inputs if p not in known]
        missing = [p for p, q in known.items() if q.default is q.empty and p not in op.inputs]
        if unknown or missing:
            what = f"has a parameter {unknown[0]!r}" if unknown else f"lacks the parameter {missing[0]!r}"
            raise ValueError(f"{op.name} ({op.kind}) {what}, which is not understood")
        return Step(op, kernel, names, fixed)

    def _named(self, name: str, value: Any) -> str:
        """A name for a value in a list; a constant that stands there gets one."""
        if isinstance(value, Name):
            return str(value)
        self.constants[name] = Stored(value) if isinstance(value, Raw) else value
        return name

    def _control(self, op: Operation, names: dict[str, str | list[str]], fixed: dict[str, Any]) -> Step:
        """An operation with blocks: `while_loop` (its condition and its body), or `cond` (for true and for false)."""
        given = len(names.get("loop_vars", ())) if op.kind == "while_loop" else 0
        taken = {"loop_vars"} if op.kind == "while_loop" else {"pred"}
        results = [1, given] if op.kind == "while_loop" else [len(op.outputs)] * 2
        if op.inputs.keys() != taken or any(
            (len(block.inputs), len(block.outputs)) != (given, count) for block, count in zip(op.blocks, results)
        ):
            raise ValueError(f"{op.name} ({op.kind}): its blocks and values do not fit each other")
        blocks: list[Nested] = []
        outer: set[str] = set()
        for block in op.blocks:
            scope = _Scope(self.function, self.half, block.operations, self, block.inputs)
            held = {name: value for name, value in scope.constants.items() if name not in scope.outside}
            made = {out for step in scope.steps for out, _ in step.op.outputs} | block.inputs.keys() | held.keys()
            outer |= {name for step in scope.steps for name in reads(step)}.union(block.outputs) - made
            blocks.append(Nested(block.inputs, block.outputs, scope.steps, held))
        if self.function.states.keys() & outer:
            raise ValueError(f"{op.name} ({op.kind}) uses a state inside of a block, which is not understood")
        return Step(op, None, names, fixed, blocks=blocks, outer=sorted(outer))


def _check_state_op(op: Operation, names: Mapping[str, str | list[str]], function: Function) -> None:
    expected = {"input", "data"} if op.kind == "write_state" else {"input"}
    if (
        op.inputs.keys() != expected
        or names.get("input") not in function.states
        or names.get("data") in function.states
    ):
        raise ValueError(f"{op.name} ({op.kind}) needs a state as its input{', and data' * (len(expected) - 1)}")
    if op.kind == "read_state" and len(op.outputs) != 1:
        raise ValueError(f"{op.name} ({op.kind}) declares {len(op.outputs)} results")


def reads(step: Step) -> list[str]:
    """The names of values that a step reads."""
    named = [n for value in step.names.values() for n in (value if isinstance(value, list) else [value])]
    return named + step.outer


def _last_uses(steps: list[Step], function: Function, keep: Collection[str]) -> dict[str, int]:
    """Value → the index of the step that uses it last (makes it, if none does); past the end for outputs and kept values."""
    last: dict[str, int] = {}
    for index, step in enumerate(steps):
        last.update((out, index) for out, _ in step.op.outputs)
        last.update((name, index) for name in reads(step) if name not in function.states)
    last.update((name, len(steps)) for name in (*function.outputs, *keep))
    return last


def _share(steps: list[Step], function: Function, last: Mapping[str, int], keep: Collection[str]) -> set[str]:
    """Find roots, mark the updates that may happen in place; returns the values that a caller must get as copies."""
    roots = dict.fromkeys(function.inputs, -1)  # -1: memory that is not ours to change
    state_roots = {name: -2 - i for i, name in enumerate(function.states)}
    for index, step in enumerate(steps):
        if step.op.kind == "read_state":
            roots[step.op.outputs[0][0]] = state_roots[str(step.names["input"])]
            continue
        if step.op.kind == "write_state":
            root = roots.get(str(step.names.get("data")), -1)
            state = str(step.names["input"])
            others = {r for name, r in state_roots.items() if name != state}
            step.own = root != -1 and root not in others
            state_roots[state] = root if step.own else -2 - len(function.states) - index
            continue
        source = step.names.get("x")
        root = index
        if step.op.kind in VIEWS:  # of a constant too, whose memory serves the next run
            root = roots.get(source, -1) if isinstance(source, str) else -1
        if step.op.kind == "slice_update":
            step.in_place = root != -1 and _unseen(steps, index, root, roots, state_roots, last)
            root = root if step.in_place else index
        if step.op.kind == "concat":  # of one value torch gives a copy, but nothing promises that
            root = index
        roots.update((out, root) for out, _ in step.op.outputs)
    shared = {-1, *state_roots.values()}
    return {name for name in (*function.outputs, *keep) if roots.get(name, -1) in shared}


def _unseen(
    steps: list[Step],
    index: int,
    root: int,
    roots: Mapping[str, int],
    state_roots: Mapping[str, int],
    last: Mapping[str, int],
) -> bool:
    """Whether nobody can see that memory changes at this step."""
    if any(r == root and last[name] > index for name, r in roots.items() if name in last):
        return False
    if root in [roots.get(n) for p, n in steps[index].names.items() if p != "x" and isinstance(n, str)]:
        return False  # the update is itself a part of what it updates
    for state, state_root in state_roots.items():
        if state_root == root:
            touched = (s.op.kind for s in steps[index + 1 :] if s.op.kind in STATES and s.names["input"] == state)
            if next(touched, "") != "write_state":
                return False
    return True
