"""Run an ML program on any host, for checking what a package computes.

    package = MLPackage.open(path)
    interpreter = Interpreter(package, mode="fp16")
    states = interpreter.make_states()                      # shared by all functions of the package
    outputs = interpreter.run("decode", {"inputIds": ids}, states)
    interpreter.ranges                                      # with ranges=True: largest magnitude of each operation

mode "fp16": each result that is declared fp16 is computed in float32 and rounded to float16, weights too; "fp32": it is not
rounded. The first is what a device may give, the second what the program says. Integers have their declared widths: a value
outside is an error. A run that raises leaves its states undefined.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from pocketphi.graph.errors import InputError
from pocketphi.graph.threads import one_thread
from pocketphi.targets.coreml.kernels import MOVES, READ_STORED, VIEWS
from pocketphi.targets.coreml.kernels.arguments import affordable
from pocketphi.targets.coreml.mlpackage import Function, MLPackage, told
from pocketphi.targets.coreml.plan import CONTROL, Nested, Plan, Step, make_plan, reads, unsupported
from pocketphi.targets.coreml.ranges import largest
from pocketphi.targets.coreml.raw import FLOATS, ValueType, carrier, for_kernel, int_range
from pocketphi.targets.coreml.stream import Held, Streamer
from pocketphi.targets.coreml.weights import Weight

Mode = Literal["fp16", "fp32"]
States = dict[str, Tensor]
"""State name → its tensor. A run may put another tensor in the place of one: look it up anew."""


class Interpreter:
    """Runs the functions of a package.

    threads: workers for matrix products, 0 for as many as there are cores
    keep_bytes: memory for decoded weights; where all of a package's fit, each is decoded only once
    ranges:     take the largest finite magnitude of each operation whose result is declared fp16.
    """

    def __init__(
        self,
        package: MLPackage,
        mode: Mode = "fp16",
        threads: int = 0,
        keep_bytes: int = 1 << 30,
        ranges: bool = False,
    ) -> None:
        for function in package.functions.values():
            missing = Counter(unsupported(function))
            if missing:
                named = ", ".join(f"{kind} ({count}×)" for kind, count in sorted(missing.items()))
                raise InputError(f"{package.path}: function {function.name} uses operators that cannot be run: {named}")
        self.package = package
        self.mode = mode
        self.ranges: dict[str, float] = {}
        """`function/operation` → largest finite magnitude of its result before rounding, over all runs."""
        self.take_ranges = ranges
        self._streamer = Streamer(threads or os.cpu_count() or 1, keep_bytes, decoded_bytes(package) <= keep_bytes)
        self._plans: dict[tuple[str, tuple[str, ...]], Plan] = {}
        self.rounds_left = MOST_ROUNDS

    def make_states(self, dtype: torch.dtype | None = None) -> States:
        """All states of the package, zeros of their declared types; dtype: another one for those of fp16, such as float32."""
        chosen = {n: dtype if dtype and t.dtype == "fp16" else carrier(t.dtype) for n, t in self.package.states.items()}
        try:
            return {n: torch.zeros(affordable(t.fixed_shape), dtype=chosen[n]) for n, t in self.package.states.items()}
        except (RuntimeError, ValueError) as error:
            sizes = ", ".join(f"{name} {kind}" for name, kind in self.package.states.items())
            raise InputError(f"{self.package.path}: states cannot be made, {sizes[:200]}: {told(error)}") from None

    def run(self, function: str | None, inputs: Mapping[str, Tensor], states: States | None = None) -> dict[str, Any]:
        """Run a function (None: the default one); its states are changed. Returns its outputs by name: tensors.

        A classifier gives its class, a str or an int64 tensor, and a dictionary with the probability of each class.

        Raises InputError for inputs or states that do not fit, and for an operation that cannot be carried out.
        """
        return self.start(function, inputs, states).outputs

    def start(
        self,
        function: str | None,
        inputs: Mapping[str, Tensor],
        states: States | None = None,
        vary: Collection[str] = (),
    ) -> Session:
        """Run a function and keep what is needed to evaluate it again with other values of the inputs in `vary`."""
        found = self.package.function(function)
        return Session(self, found, inputs, {} if states is None else states, tuple(sorted(vary)))

    def plan(self, function: Function, vary: tuple[str, ...] = ()) -> Plan:
        """The function's plan, made at its first use."""
        key = (function.name, vary)
        if key not in self._plans:
            try:
                keep = boundary(make_plan(function, False), vary) if vary else ()
                plan = make_plan(function, self.mode == "fp16", keep)
            except Exception as error:  # as in `execute`
                raise InputError(f"{self.package.path}: function {function.name}: {told(error)}") from error
            self._prepare(plan)
            self._plans[key] = plan
        return self._plans[key]

    def _prepare(self, plan: Plan | Nested) -> None:
        """Put the constants of a plan and of the blocks in it into the form that kernels take."""
        for step in plan.steps:
            raw = step.op.kind in MOVES
            step.fixed = {p: self._constant(v, raw) for p, v in step.fixed.items()}
            for block in step.blocks:
                self._prepare(block)
        plan.constants = {n: Held(v, self._streamer) if isinstance(v, Weight) else v for n, v in plan.constants.items()}

    def _constant(self, value: Any, raw: bool) -> Any:
        """A constant as its kernel wants it; one that is small is decoded now, a large one at each call or from the store."""
        if not isinstance(value, Weight):
            return value
        if value.count > _SMALL:
            return Held(value, self._streamer)
        decoded = value.dense()
        return decoded if raw else for_kernel(decoded)

    def execute(self, step: Step, values: dict[str, Any], states: States, function: str) -> None:
        """Run one step: its results go to `values`, or to the states."""
        op = step.op
        try:
            if op.kind == "read_state":
                values[op.outputs[0][0]] = states[str(step.names["input"])]
            elif op.kind == "write_state":
                self._write(step, values, states)
            elif op.kind in CONTROL:
                self._control(step, values, function)
            else:
                self._compute(step, values, function)
        except InputError:  # of an operation in a block of this one
            raise
        except Exception as error:  # of a package of any origin: whatever goes wrong is told with the operation's name
            raise InputError(f"function {function}: {op.name} ({op.kind}): {told(error)}") from error

    def _compute(self, step: Step, values: dict[str, Any], function: str) -> None:
        op = step.op
        assert step.kernel is not None
        move = op.kind in MOVES
        for _, declared in op.outputs:
            affordable(declared.shape)
        arguments = {
            p: v.dense() if isinstance(v, Held) and (op.kind, p) not in READ_STORED else v
            for p, v in step.fixed.items()
        }
        for parameter, names in step.names.items():
            if isinstance(names, list):
                arguments[parameter] = [_argument(values[n], move) for n in names]
            else:
                arguments[parameter] = _argument(values[names], move)
        if step.in_place:
            arguments["in_place"] = True
        result = step.kernel(**arguments)
        results = result if isinstance(result, tuple) else (result,)
        if len(results) < len(op.outputs):
            raise ValueError(f"gives {len(results)} results, declared are {len(op.outputs)}")
        for (name, declared), made in zip(op.outputs, results):
            if self.take_ranges and not move and declared.dtype == "fp16":
                key = f"{function}/{op.name}"
                self.ranges[key] = max(self.ranges.get(key, 0.0), largest(made))
            if op.kind not in VIEWS and any(made is argument for argument in arguments.values()):
                made = made.clone()  # a kernel that had nothing to do: the plan counts on memory of its own
            text = declared.dtype in ("string", "dictionary")
            values[name] = made if text else self.settle(made, declared, move)

    def _control(self, step: Step, values: dict[str, Any], function: str) -> None:
        """Run the blocks of an operation. What comes out shares no memory with what went in."""
        first, second = step.blocks
        if step.op.kind == "cond":
            pred = values[str(step.names["pred"])] if "pred" in step.names else step.fixed["pred"]
            results = self._block(first if bool(_argument(pred, False).item()) else second, [], values, function)
        else:
            results = [values[name] for name in step.names["loop_vars"]]
            while bool(_argument(self._block(first, results, values, function)[0], False).item()):
                if self.rounds_left <= 0:
                    raise ValueError(f"loops {MOST_ROUNDS} times in a run, which is the most that is allowed")
                self.rounds_left -= 1
                results = self._block(second, results, values, function)
        for (name, declared), made in zip(step.op.outputs, results):
            values[name] = self.settle(_argument(made, False), declared).clone()

    def _block(self, block: Nested, given: list[Any], values: dict[str, Any], function: str) -> list[Any]:
        bound = {
            name: self.settle(_argument(value, False), declared)
            for (name, declared), value in zip(block.inputs.items(), given)
        }
        scope = {**values, **block.constants, **bound}
        for step in block.steps:
            self.execute(step, scope, {}, function)
        return [scope[name] for name in block.outputs]

    def _write(self, step: Step, values: Mapping[str, Any], states: States) -> None:
        name = str(step.names["input"])
        value = values[str(step.names["data"])] if "data" in step.names else step.fixed["data"]
        value = value.dense() if isinstance(value, Held) else value
        old = states[name]
        if value.shape != old.shape:
            raise ValueError(f"writes {list(value.shape)} to state {name!r} of {list(old.shape)}")
        if value is not old:
            value = value.to(old.dtype)
            states[name] = (
                value if step.own and value.is_contiguous() else value.clone(memory_format=torch.contiguous_format)
            )

    def settle(self, value: Tensor, declared: ValueType, move: bool = False) -> Tensor:
        """A result in its declared type and checked against its declared shape."""
        if value.dim() != len(declared.shape) and value.numel() == 1 and not declared.shape:
            value = value.reshape(())
        if not fits(value, declared):
            raise ValueError(f"gives {list(value.shape)}, declared is {declared}")
        if move:
            return value
        if declared.dtype in FLOATS:
            return value.to(torch.float16 if declared.dtype == "fp16" and self.mode == "fp16" else torch.float32)
        if declared.dtype == "bool":
            return value if value.dtype == torch.bool else value != 0
        return as_integers(value, declared.dtype)


_SMALL = 4096
MOST_ROUNDS = 1 << 15
"""Of all loops of a run together: a loop whose condition never turns false must end."""


def decoded_bytes(package: MLPackage) -> int:
    """What the weights of the largest function take as float32. Functions share theirs."""
    sizes = (
        sum(
            kind.count
            for op in function.every_operation()
            if op.constant
            for _, kind in op.outputs
            if None not in kind.shape
        )
        for function in package.functions.values()
    )
    return 4 * max(sizes)


class Session:
    """A finished run. outputs: as `Interpreter.run` gives them, tensors of float16 or float32 for floats."""

    def __init__(
        self,
        interpreter: Interpreter,
        function: Function,
        inputs: Mapping[str, Tensor],
        states: States,
        vary: tuple[str, ...],
    ) -> None:
        self.interpreter = interpreter
        self.function = function
        self._vary = vary
        _check_names(function, vary, "an input that may vary")
        self._plan = interpreter.plan(function, vary)
        self._check_states(states)
        values: dict[str, Any] = {**self._plan.constants, **self._inputs(inputs, function.inputs)}
        self._execute(self._plan.steps, values, states, free=True)
        for name in self._plan.copies:
            if isinstance(values.get(name), Tensor):
                values[name] = values[name].clone()
        self._values = values
        self.outputs = self._collect(values)

    def rerun(self, changed: Mapping[str, Tensor]) -> dict[str, Any]:
        """The outputs with other values of some inputs named in `vary`; only what depends on those is computed again.

        Raises InputError where that would write a state.
        """
        _check_names(self.function, changed, "a changed input")
        if not set(changed) <= set(self._vary):
            raise InputError(f"rerun of {self.function.name}: started to vary {list(self._vary)}, not {list(changed)}")
        steps = dependent(self._plan, set(changed))
        writes = [step.op.name for step in steps if step.op.kind == "write_state"]
        if writes:
            raise InputError(
                f"rerun of {self.function.name}: {', '.join(changed)} reaches a write of a state, {writes[0]}"
            )
        values = {**self._values, **self._inputs(changed, {n: self.function.inputs[n] for n in changed})}
        self._execute(steps, values, {}, free=False)
        return self._collect(values)

    def _execute(self, steps: list[Step], values: dict[str, Any], states: States, free: bool) -> None:
        self.interpreter.rounds_left = MOST_ROUNDS
        with torch.no_grad(), one_thread():
            for step in steps:
                self.interpreter.execute(step, values, states, self.function.name)
                for name in step.frees if free else ():
                    values.pop(name, None)

    def _collect(self, values: Mapping[str, Any]) -> dict[str, Any]:
        found = {name: values[name] for name in self.function.outputs}
        return {name: value.dense().clone() if isinstance(value, Held) else value for name, value in found.items()}

    def _inputs(self, given: Mapping[str, Tensor], wanted: Mapping[str, ValueType]) -> dict[str, Tensor]:
        where = f"function {self.function.name}"
        optional = [n for n in wanted if n not in given and self.function.allowed[n].fill is not None]
        given = {**given, **{name: self.function.default_input(name) for name in optional}}
        if set(given) != set(wanted):
            raise InputError(f"{where}: expected the inputs {sorted(wanted)}, got {sorted(given)}")
        made = {}
        for name, declared in wanted.items():
            value = given[name]
            if not fits(value, declared):
                raise InputError(f"{where}: input {name!r} is {declared}, got {list(value.shape)}")
            if value.is_floating_point() != (declared.dtype in FLOATS):
                got = "floats" if value.is_floating_point() else str(value.dtype).removeprefix("torch.")
                raise InputError(f"{where}: input {name!r} is {declared}, got {got}")
            try:
                self.function.allowed[name].check(value.shape)
                made[name] = self.interpreter.settle(value, declared)
            except ValueError as error:
                raise InputError(f"{where}: input {name!r}: {error}") from None
        return made

    def _check_states(self, states: States) -> None:
        for name, declared in self.function.states.items():
            if name not in states or not fits(states[name], declared):
                got = list(states[name].shape) if name in states else "none"
                raise InputError(
                    f"function {self.function.name}: state {name!r} is {declared}, got {got}; see make_states"
                )


def _check_names(function: Function, names: Collection[str], what: str) -> None:
    unknown = [name for name in names if name not in function.inputs]
    if unknown:
        raise InputError(f"function {function.name}: {what}: {unknown[0]!r} is none of {sorted(function.inputs)}")


def dependent(plan: Plan, names: set[str]) -> list[Step]:
    """The steps that need any of these values, directly or through each other. A state carries no dependence but by a write."""
    reached, steps = set(names), []
    for step in plan.steps:
        if reached.intersection(reads(step)):
            reached.update(out for out, _ in step.op.outputs)
            steps.append(step)
    return steps


def boundary(plan: Plan, vary: tuple[str, ...]) -> set[str]:
    """The values that the dependent steps read and that do not change themselves, nor are constants or states."""
    steps = dependent(plan, set(vary))
    made = {out for step in steps for out, _ in step.op.outputs} | set(vary)
    fixed = plan.constants.keys() | plan.function.states.keys() | made
    return {name for step in steps for name in reads(step) if name not in fixed}


def _argument(value: Any, move: bool) -> Any:
    if isinstance(value, Held):
        return value.dense()
    return value if move or not isinstance(value, Tensor) else for_kernel(value)


def as_integers(value: Tensor, dtype: str) -> Tensor:
    """In the type that carries `dtype`. Raises ValueError for a value outside it."""
    if value.is_floating_point():
        raise ValueError(f"gives floats, declared is {dtype}")
    low, high = int_range(dtype)
    if value.numel() and value.dtype != torch.bool:
        smallest, greatest = (int(v) for v in value.aminmax())
        if smallest < low or greatest > high:
            raise ValueError(f"{smallest if smallest < low else greatest} does not fit {dtype}, {low} … {high}")
    return value.to(carrier(dtype))


def fits(value: Tensor, declared: ValueType) -> bool:
    """Whether a tensor has a declared shape, in which None stands for any size."""
    return len(value.shape) == len(declared.shape) and all(
        d is None or s == d for s, d in zip(value.shape, declared.shape)
    )
