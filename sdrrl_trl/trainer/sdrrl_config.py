from dataclasses import dataclass

from trl import SFTConfig

from sdrrl_trl.utils import SDRRLError


@dataclass
class SDRRLConfig(SFTConfig):
    r"""
    Configuration class for the [`SDRRLTrainer`].

    All parameters of [`~trl.SFTConfig`], with its defaults; those that [`SDRRLTrainer`] cannot honour are refused.
    """

    def __post_init__(self):
        super().__post_init__()
        if self.loss_type != "nll":
            raise SDRRLError(
                f"SDRRLTrainer only supports `loss_type='nll'`, got {self.loss_type!r}: the loss per kind and "
                "language would not be that of the training. Set `loss_type='nll'` or use `SFTTrainer`."
            )
        if self.packing and self.packing_strategy != "bfd":
            raise SDRRLError(
                f"SDRRLTrainer only supports `packing_strategy='bfd'`, got {self.packing_strategy!r}: other "
                "strategies cut rows in pieces, whose second halves no longer answer their question. Set "
                "`packing_strategy='bfd'`."
            )
