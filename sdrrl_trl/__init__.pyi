from .evaluation.evaluate import EvaluationConfig, evaluate
from .evaluation.report import ReportConfig, report
from .evaluation.suite import tasks_dir
from .push import push_to_hub
from .trainer.callbacks import ForgettingCallback, LMEvalCallback
from .trainer.groups import DataCollatorForSDRRL
from .trainer.sdrrl_config import SDRRLConfig
from .trainer.sdrrl_trainer import SDRRLTrainer
from .transfer.build import build_transfer_set
from .transfer.config import TransferConfig
from .transfer.inspect import inspect_transfer_set
from .utils import SDRRLError

__all__ = [
    "DataCollatorForSDRRL",
    "EvaluationConfig",
    "ForgettingCallback",
    "LMEvalCallback",
    "ReportConfig",
    "SDRRLConfig",
    "SDRRLError",
    "SDRRLTrainer",
    "TransferConfig",
    "build_transfer_set",
    "evaluate",
    "inspect_transfer_set",
    "push_to_hub",
    "report",
    "tasks_dir",
]
__version__: str
