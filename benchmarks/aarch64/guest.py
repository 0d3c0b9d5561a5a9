"""Greedy decoding of a bundle, with nothing but numpy and onnxruntime: guest.py FOLDER PROMPT STEPS OUT.npz [FORCED]

PROMPT, FORCED: token numbers with commas. With FORCED those are decoded instead of the most likely ones. Writes the tokens that
were most likely, int64 [STEPS], and the logits, float32 [STEPS, V].
"""

import platform
import sys

import numpy as np
import onnxruntime as ort


class Model:
    """model.onnx with one cache that past and present share."""

    def __init__(self, folder: str, tokens: int) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 2
        options.log_severity_level = 3
        self.session = ort.InferenceSession(folder + "/model.onnx", options, providers=["CPUExecutionProvider"])
        self.names = {value.name for value in self.session.get_inputs()}
        self.past = 0
        self.caches = {
            v.name: ort.OrtValue.ortvalue_from_numpy(np.zeros((1, v.shape[1], tokens, v.shape[3]), np.float32))
            for v in self.session.get_inputs()
            if v.name.startswith("past_key_values.")
        }

    def step(self, ids: list[int]) -> np.ndarray:
        binding, total = self.session.io_binding(), self.past + len(ids)
        feeds = {
            "input_ids": [ids],
            "attention_mask": np.ones((1, total)),
            "position_ids": [np.arange(self.past, total)],
        }
        for name, value in feeds.items():
            if name in self.names:
                binding.bind_cpu_input(name, np.ascontiguousarray(value, np.int64))
        for name, cache in self.caches.items():
            binding.bind_ortvalue_input(name, cache)
            binding.bind_ortvalue_output(name.replace("past_key_values", "present"), cache)
        binding.bind_output("logits")
        self.session.run_with_iobinding(binding)
        self.past = total
        return binding.get_outputs()[-1].numpy()[0, -1]


def main() -> None:
    folder, prompt, steps, out = sys.argv[1], [int(t) for t in sys.argv[2].split(",")], int(sys.argv[3]), sys.argv[4]
    forced = [int(t) for t in sys.argv[5].split(",")] if len(sys.argv) > 5 else None
    model = Model(folder, len(prompt) + steps)
    logits = [model.step(prompt)]
    for i in range(steps - 1):
        logits.append(model.step([forced[i] if forced else int(logits[-1].argmax())]))
    np.savez(out, logits=np.stack(logits), tokens=np.stack(logits).argmax(-1), machine=platform.machine())


main()
