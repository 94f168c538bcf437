"""Self-distillation from resource-rich languages (SDRRL, arXiv 2402.12204) on top of TRL and lm-evaluation-harness."""

import importlib


__version__ = "0.1.0"

# Where each public name lives. Imported on first use, so that `import sdrrl_trl` and `sdrrl --help` load no torch.
_PUBLIC = {
    "ForgettingCallback": "sdrrl_trl.trainer.callbacks",
    "LMEvalCallback": "sdrrl_trl.trainer.callbacks",
    "SDRRLConfig": "sdrrl_trl.trainer.sdrrl_config",
    "SDRRLError": "sdrrl_trl.utils",
    "SDRRLTrainer": "sdrrl_trl.trainer.sdrrl_trainer",
    "DataCollatorForSDRRL": "sdrrl_trl.trainer.groups",
    "TransferConfig": "sdrrl_trl.transfer.config",
    "build_transfer_set": "sdrrl_trl.transfer.build",
    "EvaluationConfig": "sdrrl_trl.evaluation.evaluate",
    "evaluate": "sdrrl_trl.evaluation.evaluate",
    "tasks_dir": "sdrrl_trl.evaluation.suite",
}

__all__ = sorted(_PUBLIC)


def __getattr__(name: str):
    if name not in _PUBLIC:
        raise AttributeError(f"module 'sdrrl_trl' has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)
