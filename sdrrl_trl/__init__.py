"""Self-distillation from resource-rich languages (SDRRL, arXiv 2402.12204) on top of TRL and lm-evaluation-harness."""

import lazy_loader


__version__ = "0.1.0"

# The public names stand in `__init__.pyi`, which type checkers read. Each is imported on first use, so that
# `import sdrrl_trl` and `sdrrl --help` load no torch
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
