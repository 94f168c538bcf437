import sys
import time

from transformers import TrainerCallback


class ProgressLines(TrainerCallback):
    """Plain lines with rate, ETA and loss at every logging step, for log files, where a progress bar is a mess."""

    def on_train_begin(self, args, state, control, **kwargs):
        self._start, self._first_step = time.monotonic(), state.global_step

    def on_log(self, args, state, control, logs, **kwargs):
        if not state.is_world_process_zero or "loss" not in logs:
            return
        rate = (state.global_step - self._first_step) / (time.monotonic() - self._start)
        left = (state.max_steps - state.global_step) / rate
        losses = [f"{name} {float(logs[name]):.3f}" for name in logs if name == "loss" or name.startswith("nll/")]
        print(
            f"train: {state.global_step}/{state.max_steps} steps, {rate:.2f}/s, {left:.0f} s left, "
            + ", ".join(losses),
            file=sys.stderr,
            flush=True,
        )
