"""Recurrent layers over sequences [S, B, I]: one step after the other, as the operators' documentation writes them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import linear

from pocketphi.targets.coreml.kernels.arguments import Parameter, flag

Activation = Callable[[Tensor], Tensor]
Step = Callable[[Tensor, tuple[Tensor, ...]], tuple[Tensor, ...]]
"""(a step's input projection [B, …], the state) → the next state; its first part is the hidden state [B, H]."""

_ACTIVATIONS: dict[str, Activation] = {
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "relu": torch.relu,
    "linear": lambda x: x,
    "sigmoid_hard": lambda x: (0.2 * x + 0.5).clamp(0, 1),
    "hard_sigmoid": lambda x: (0.2 * x + 0.5).clamp(0, 1),
}
"""Not `scaled_tanh`: nothing says which factors a recurrent layer takes."""


def rnn(
    x: Tensor,
    initial_h: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Parameter = None,
    direction: str = "forward",
    output_sequence: Parameter = None,
    activation: str = "tanh",
) -> tuple[Tensor, Tensor]:
    """h' = act(W_ih x + W_hh h + b). Gives the sequence (or its last step) [S, B, H] and the last h [B, H]."""
    act = _activation(activation)

    def step(projected: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (act(projected + state[0] @ weight_hh.t()),)

    sequence, state = _run(linear(x, weight_ih, bias), (initial_h,), step, _reversed(direction))
    return _last(sequence, state[0], output_sequence), state[0]


def gru(
    x: Tensor,
    initial_h: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Parameter = None,
    direction: str = "forward",
    output_sequence: Parameter = None,
    recurrent_activation: str = "sigmoid",
    activation: str = "tanh",
    reset_after: Parameter = None,
    input_bias: Parameter = None,
) -> tuple[Tensor, Tensor]:
    """Gates in the order reset, output, update (r, o, z): h' = (1 - z) · o + z · h.

    o = act(W_io x + b_o + W_ho (r · h)); with reset_after, as in torch: act(W_io x + b_io + r · (W_ho h + b_ho)), where
    `bias` is that of the hidden state and `input_bias` that of the input.
    """
    gate, act = _activation(recurrent_activation), _activation(activation)
    after = flag(reset_after)
    hidden_bias = bias if after else None
    given = input_bias
    if not after and bias is not None:
        given = bias if input_bias is None else bias + input_bias
    w_r, w_o, w_z = weight_hh.chunk(3)
    b_r, b_o, b_z = (None, None, None) if hidden_bias is None else hidden_bias.chunk(3)

    def step(projected: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        (h,), (x_r, x_o, x_z) = state, projected.chunk(3, dim=-1)
        r, z = gate(x_r + linear(h, w_r, b_r)), gate(x_z + linear(h, w_z, b_z))
        o = act(x_o + (r * linear(h, w_o, b_o) if after else linear(r * h, w_o, b_o)))
        return ((1 - z) * o + z * h,)

    sequence, state = _run(linear(x, weight_ih, given), (initial_h,), step, _reversed(direction))
    return _last(sequence, state[0], output_sequence), state[0]


def lstm(
    x: Tensor,
    initial_h: Tensor,
    initial_c: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Parameter = None,
    peephole: Parameter = None,
    weight_ih_back: Parameter = None,
    weight_hh_back: Parameter = None,
    bias_back: Parameter = None,
    peephole_back: Parameter = None,
    direction: str = "forward",
    output_sequence: Parameter = None,
    recurrent_activation: str = "sigmoid",
    cell_activation: str = "tanh",
    activation: str = "tanh",
    clip: Parameter = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gates in the order input, forget, output, cell (i, f, o, z): c' = f · c + i · z, h' = o · act(c').

    Gives the sequence (or its last step), the last h and the last c. Of both directions: forward, then reverse, along the
    last axis; the last step of the sequence is then each direction's own last one.
    """
    acts = _activation(recurrent_activation), _activation(cell_activation), _activation(activation)
    if direction != "bidirectional":
        step = _lstm_step(weight_hh, peephole, acts, clip)
        runs = [_run(linear(x, weight_ih, bias), (initial_h, initial_c), step, _reversed(direction))]
    else:
        if weight_ih_back is None or weight_hh_back is None:
            raise ValueError("bidirectional, and without weights for the way back")
        (h, h_back), (c, c_back) = initial_h.chunk(2, dim=-1), initial_c.chunk(2, dim=-1)
        step, back = (_lstm_step(w, p, acts, clip) for w, p in ((weight_hh, peephole), (weight_hh_back, peephole_back)))
        runs = [
            _run(linear(x, weight_ih, bias), (h, c), step, False),
            _run(linear(x, weight_ih_back, bias_back), (h_back, c_back), back, True),
        ]
    sequence = torch.cat([made for made, _ in runs], dim=-1)
    h, c = (torch.cat([state[i] for _, state in runs], dim=-1) for i in (0, 1))
    return _last(sequence, h, output_sequence), h, c


def _lstm_step(
    weight_hh: Tensor, peephole: Parameter, acts: tuple[Activation, Activation, Activation], clip: Parameter
) -> Step:
    gate, cell, act = acts
    p_i, p_f, p_o = (0, 0, 0) if peephole is None else peephole.chunk(3)

    def step(projected: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        h, c = state
        i, f, o, z = (projected + h @ weight_hh.t()).chunk(4, dim=-1)
        c_new = gate(f + p_f * c) * c + gate(i + p_i * c) * cell(z)
        if clip is not None:
            c_new = c_new.clamp(-float(clip.item()), float(clip.item()))
        return gate(o + p_o * c_new) * act(c_new), c_new

    return step


def _run(
    projected: Tensor, state: tuple[Tensor, ...], step: Step, backwards: bool
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Each step's hidden state [S, B, H] in the order of the input, and the state after the last step."""
    made = []
    for one in reversed(projected.unbind(0)) if backwards else projected.unbind(0):
        state = step(one, state)
        made.append(state[0])
    if not made:
        return state[0].new_zeros((0, *state[0].shape)), state
    return torch.stack(made[::-1] if backwards else made), state


def _last(sequence: Tensor, h: Tensor, output_sequence: Parameter) -> Tensor:
    return sequence if flag(output_sequence) else h.unsqueeze(0)


def _activation(name: str) -> Activation:
    if name.lower() not in _ACTIVATIONS:
        raise ValueError(f"activation {name!r} is not understood")
    return _ACTIVATIONS[name.lower()]


def _reversed(direction: str) -> bool:
    if direction not in ("forward", "reverse"):
        raise ValueError(f"direction {direction!r} is not understood")
    return direction == "reverse"
