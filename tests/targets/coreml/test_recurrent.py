"""Recurrent operators: against torch, and against what their documentation writes down."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from mil_kernels import close, run
from torch import Tensor, nn


def reordered(weight: Tensor, order: tuple[int, ...]) -> Tensor:
    """torch's gates in the operator's order."""
    parts = weight.detach().chunk(len(order))
    return torch.cat([parts[i] for i in order])


LSTM, GRU = (0, 1, 3, 2), (0, 2, 1)  # torch: i f g o and r z n; here: i f o z and r o z


@pytest.mark.parametrize("sequence", [True, False])
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
def test_lstm(direction: str, sequence: bool) -> None:
    torch.manual_seed(0)
    both = direction == "bidirectional"
    layer, x = nn.LSTM(4, 3, bidirectional=both), torch.randn(5, 2, 4)
    h, c = torch.randn(1 + both, 2, 3), torch.randn(1 + both, 2, 3)
    expected, (last_h, last_c) = layer(x.flip(0) if direction == "reverse" else x, (h, c))
    expected = expected.flip(0) if direction == "reverse" else expected

    def weights(suffix: str, name: str) -> dict[str, Tensor]:
        w, u, b, d = (getattr(layer, f"{kind}_l0{suffix}") for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
        parts = {f"weight_ih{name}": w, f"weight_hh{name}": u, f"bias{name}": b + d}
        return {key: reordered(value, LSTM) for key, value in parts.items()}

    given = weights("", "") | (weights("_reverse", "_back") if both else {})
    flat = [torch.cat(list(state), dim=-1) for state in (h, c, last_h, last_c)]
    made, came_h, came_c = run(
        "lstm", x=x, initial_h=flat[0], initial_c=flat[1], direction=direction, output_sequence=sequence, **given
    )
    close(made, expected.detach() if sequence else flat[2].detach().unsqueeze(0))
    close(came_h, flat[2].detach())
    close(came_c, flat[3].detach())


def test_lstm_activations_clip_and_peephole() -> None:
    """One step with one unit: the gates by hand."""
    x, h, c, u = 0.5, 0.25, 2.0, [0.1, 0.2, 0.3]
    i, f, o, z = (w * x + v * h + b for w, v, b in ((1, 2, 0.1), (-1, 1, 0.2), (0.5, 0.5, 0), (2, -1, 0.3)))

    def hard(value: float) -> float:
        return min(1.0, max(0.0, 0.2 * value + 0.5))

    new = min(1.2, hard(f + u[1] * c) * c + hard(i + u[0] * c) * max(0.0, z))
    out = hard(o + u[2] * new) * new
    made, last_h, last_c = run(
        "lstm",
        x=[[[x]]],
        initial_h=[[h]],
        initial_c=[[c]],
        weight_ih=[[1.0], [-1], [0.5], [2]],
        weight_hh=[[2.0], [1], [0.5], [-1]],
        bias=[0.1, 0.2, 0, 0.3],
        peephole=u,
        recurrent_activation="hard_sigmoid",
        cell_activation="relu",
        activation="linear",
        clip=1.2,
    )
    assert new == 1.2
    assert [float(v) for v in (made, last_h, last_c)] == pytest.approx([out, out, new])


@pytest.mark.parametrize(("direction", "sequence"), list(itertools.product(["forward", "reverse"], [True, False])))
def test_gru_with_the_reset_after_the_product(direction: str, sequence: bool) -> None:
    torch.manual_seed(1)
    layer, x, h = nn.GRU(4, 3), torch.randn(5, 2, 4), torch.randn(1, 2, 3)
    expected, last = layer(x.flip(0) if direction == "reverse" else x, h)
    expected = expected.flip(0) if direction == "reverse" else expected
    names = {"weight_ih": "weight_ih_l0", "weight_hh": "weight_hh_l0", "input_bias": "bias_ih_l0", "bias": "bias_hh_l0"}
    given = {name: reordered(getattr(layer, key), GRU) for name, key in names.items()}
    made, came = run(
        "gru", x=x, initial_h=h[0], direction=direction, output_sequence=sequence, reset_after=True, **given
    )
    close(made, (expected if sequence else last).detach())
    close(came, last[0].detach())


def test_gru_as_it_is_documented() -> None:
    """Without reset_after the reset gate multiplies the state itself: the documentation's formulas, in numpy."""
    rng = np.random.default_rng(0)
    x, h, w, u, b = (rng.standard_normal(s) for s in ((4, 2, 3), (2, 2), (6, 3), (6, 2), (6,)))
    state, states = h, []
    for step in x:
        (w_r, w_o, w_z), (u_r, u_o, u_z), (b_r, b_o, b_z) = (np.split(v, 3) for v in (w, u, b))
        r, z = (1 / (1 + np.exp(-(step @ a.T + state @ v.T + c))) for a, v, c in ((w_r, u_r, b_r), (w_z, u_z, b_z)))
        new = np.tanh(step @ w_o.T + (r * state) @ u_o.T + b_o)
        state = (1 - z) * new + z * state
        states.append(state)
    made, last = run("gru", x=x, initial_h=h, weight_ih=w, weight_hh=u, bias=b, output_sequence=True)
    close(made, torch.from_numpy(np.stack(states)))
    close(last, torch.from_numpy(state))


@pytest.mark.parametrize(("direction", "act"), list(itertools.product(["forward", "reverse"], ["tanh", "relu"])))
def test_rnn(direction: str, act: str) -> None:
    torch.manual_seed(2)
    layer, x, h = nn.RNN(4, 3, nonlinearity=act), torch.randn(5, 2, 4), torch.randn(1, 2, 3)
    expected, last = layer(x.flip(0) if direction == "reverse" else x, h)
    bias = layer.bias_ih_l0 + layer.bias_hh_l0
    given = {"weight_ih": layer.weight_ih_l0, "weight_hh": layer.weight_hh_l0, "bias": bias}
    given = {name: value.detach() for name, value in given.items()}
    made, came = run("rnn", x=x, initial_h=h[0], direction=direction, output_sequence=True, activation=act, **given)
    close(made, (expected.flip(0) if direction == "reverse" else expected).detach())
    close(came, last[0].detach())


@pytest.mark.parametrize("op", ["lstm", "gru", "rnn"])
def test_a_sequence_of_no_steps_keeps_the_state(op: str) -> None:
    gates = {"lstm": 4, "gru": 3, "rnn": 1}[op]
    more = {"initial_c": torch.ones(2, 3)} if op == "lstm" else {}
    weights = {"weight_ih": torch.ones(gates * 3, 4), "weight_hh": torch.ones(gates * 3, 3)}
    made, h, *_ = run(
        op, x=torch.ones(0, 2, 4), initial_h=torch.full((2, 3), 7.0), output_sequence=True, **weights, **more
    )
    assert made.shape == (0, 2, 3)
    assert h.tolist() == [[7.0] * 3] * 2


def test_recurrent_layers_say_what_they_do_not_know() -> None:
    given = {"x": torch.ones(1, 1, 1), "initial_h": torch.ones(1, 1), "weight_ih": [[1.0]], "weight_hh": [[1.0]]}
    for change, message in (
        ({"activation": "scaled_tanh"}, "activation 'scaled_tanh'"),
        ({"direction": "sideways"}, "direction 'sideways'"),
    ):
        with pytest.raises(ValueError, match=message):
            run("rnn", **given, **change)
    lstm = given | {
        "weight_ih": [[1.0]] * 4,
        "weight_hh": [[1.0]] * 4,
        "initial_h": [[1.0, 1]],
        "initial_c": [[1.0, 1]],
    }
    with pytest.raises(ValueError, match="without weights for the way back"):
        run("lstm", **lstm, direction="bidirectional")
