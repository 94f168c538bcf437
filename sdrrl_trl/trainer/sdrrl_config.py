import math
import re
from dataclasses import dataclass, field

import torch
from transformers.utils import is_torch_bf16_gpu_available
from trl import SFTConfig

from sdrrl_trl.utils import SDRRLError


@dataclass
class SDRRLConfig(SFTConfig):
    r"""
    Configuration class for the [`SDRRLTrainer`].

    This class includes only the parameters that are specific to SDRRL training. For a full list of training arguments,
    please refer to the [`~trl.SFTConfig`] documentation. With none of the parameters below set, [`SDRRLTrainer`]
    trains exactly as [`~trl.SFTTrainer`] does. None of them is in the paper as far as we know. `greater_is_better`
    defaults to `False` for a `metric_for_best_model` such as `eval_bpb/pt`, `eval_nll/pt` or `eval_kl/pt`. A
    `save_total_limit` of 1 becomes 2: the checkpoint before the last stays until the last one is complete. Where
    no GPU has bfloat16, `bf16` defaults to `False`; TRL stops there.

    Parameters:
        kl_coef (`float`, *optional*, defaults to `0.0`):
            Coefficient `c` of the divergence: the loss of a step, in nats per token, is `sum_t nll_t + c * kl_t` over
            its supervised tokens, divided by their number `n`, where `kl_t` is KL(initial || model) of the next token
            over the whole vocabulary. `0.0` turns it off.
        anchor_languages (`list[str]`, *optional*):
            Answer languages that are anchored: the tokens of their records get `c * kl_t` **in the place of** `nll_t`,
            all others `nll_t` alone, and `n` still counts both. On a share `s` of the tokens, `c` thus equals a
            coefficient of `c * s / (1 - s)` between the means of the two parts
            (https://huggingface.co/papers/2605.26097, where 1 to 10 were tried, on answers sampled from the initial
            model at temperature 1). At the start the gradient of anchored records is zero. Default: none.
    """

    kl_coef: float = field(default=0.0, metadata={"help": "Coefficient of KL(initial || model). 0.0: off."})
    anchor_languages: list[str] | None = field(
        default=None, metadata={"help": "Languages whose answers get KL, not NLL."}
    )

    def __post_init__(self):
        if isinstance(self.anchor_languages, str):
            self.anchor_languages = [self.anchor_languages]
        # A kill before a checkpoint is sealed must not leave that one alone
        if self.save_total_limit == 1:
            self.save_total_limit = 2
        if self.bf16 is None and not is_torch_bf16_gpu_available():
            self.bf16 = False
        if not torch.accelerator.is_available():
            self.dataloader_pin_memory = False  # which torch would warn of
        # transformers takes the largest value of everything but a loss for the best
        if self.greater_is_better is None and re.search("(nll|bpb|kl|drift)/", self.metric_for_best_model or ""):
            self.greater_is_better = False
        super().__post_init__()
        # `SFTConfig` itself reads numbers that YAML takes for text (`1e-1`), so text left here is none
        if isinstance(self.kl_coef, str) or not 0 <= self.kl_coef < math.inf:
            raise SDRRLError(
                f"`kl_coef` must be a number of at least 0, got {self.kl_coef}: a negative coefficient would "
                "drive the model away from the initial one without bound. Set it to 0.0 to turn the divergence off."
            )
        if self.anchor_languages and not self.kl_coef:
            raise SDRRLError(
                "`anchor_languages` needs a `kl_coef` above 0: with 0 their records would train nothing. Set it to "
                "4.0, say, or leave `anchor_languages` out (if a recipe sets it, `anchor_languages: null` in YAML)."
            )
        if self.kl_coef and self.loss_type != "nll":
            raise SDRRLError(f"`kl_coef` is added to `loss_type='nll'` only, got {self.loss_type!r}. Set one of them.")
        if self.kl_coef and self.label_smoothing_factor:
            raise SDRRLError(
                "`label_smoothing_factor` cannot be combined with `kl_coef`: TRL computes that loss from full logits, "
                "past it. Set it to 0."
            )
