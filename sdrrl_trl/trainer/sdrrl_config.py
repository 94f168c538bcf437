import json
import math
from dataclasses import dataclass, field
from typing import Any

from trl import SFTConfig

from sdrrl_trl.utils import SDRRLError


@dataclass
class SDRRLConfig(SFTConfig):
    r"""
    Configuration class for the [`SDRRLTrainer`].

    This class includes only the parameters that are specific to SDRRL training. For a full list of training arguments,
    please refer to the [`~trl.SFTConfig`] documentation. With none of the parameters below set, [`SDRRLTrainer`]
    trains exactly as [`~trl.SFTTrainer`] does. None of them is in the paper as far as we know.

    Parameters:
        > Parameters that control the weights of the tokens

        kind_weights (`dict[str, float]` or `str`, *optional*):
            Loss weight of the tokens of each kind of record, `1.0` for kinds that are not named. The loss is the
            weighted mean over tokens: a weight of 2 acts as having each row twice.
        language_weights (`dict[str, float]` or `str`, *optional*):
            The same for each answer language. Multiplied with the weight of the kind.

        > Parameters that control the KL divergence to the initial model

        kl_coef (`float`, *optional*, defaults to `0.0`):
            Coefficient of the token-level KL divergence between the frozen initial model and the model, added to the
            loss. `0.0` turns it off.
        kl_direction (`str`, *optional*, defaults to `"forward"`):
            `"forward"` for KL(initial || model), `"reverse"` for KL(model || initial).
        kl_temperature (`float`, *optional*, defaults to `1.0`):
            Temperature of both distributions in the KL divergence.
        kl_token_weights (`str`, *optional*):
            `"dpsw"` weights the KL divergence of each token by the certainty of the initial model and the uncertainty
            of the model (dual-perspective saliency weighting, MSD, https://huggingface.co/papers/2605.02971).

        > Parameters that control the data

        groups (`list[list[str]]` or `str`, *optional*):
            All `[kind, question_language, answer_language]` of the data. Needed for streaming data, where they cannot
            be looked up before training; ignored otherwise.
    """

    _VALID_DICT_FIELDS = SFTConfig._VALID_DICT_FIELDS + ["kind_weights", "language_weights"]

    kind_weights: dict[str, Any] | str | None = field(
        default=None,
        metadata={"help": "Loss weight of the tokens of each kind of record; 1.0 for kinds that are not named."},
    )
    language_weights: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "The same for each answer language. Multiplied with the weight of the kind."}
    )
    kl_coef: float = field(
        default=0.0,
        metadata={"help": "Coefficient of the token-level KL divergence to the frozen initial model. 0.0: off."},
    )
    kl_direction: str = field(
        default="forward",
        metadata={
            "help": "`forward` for KL(initial || model), `reverse` for KL(model || initial).",
            "choices": ["forward", "reverse"],
        },
    )
    kl_temperature: float = field(
        default=1.0, metadata={"help": "Temperature of both distributions in the KL divergence."}
    )
    kl_token_weights: str | None = field(
        default=None,
        metadata={
            "help": "`dpsw` weights the KL divergence of each token by the certainty of the initial model and the "
            "uncertainty of the model.",
            "choices": ["dpsw"],
        },
    )
    groups: list[Any] | str | None = field(
        default=None,
        metadata={"help": "All [kind, question_language, answer_language] of streaming data, as JSON or YAML."},
    )

    def __post_init__(self):
        super().__post_init__()
        for name in ("kind_weights", "language_weights"):
            _check_weights(name, getattr(self, name))
        if isinstance(self.kl_coef, str) or not 0 <= self.kl_coef < math.inf:
            raise SDRRLError(
                f"`kl_coef` must be a number of at least 0, got {self.kl_coef}: a negative coefficient would "
                "drive the model away from the initial one without bound. Set it to 0.0 to turn the divergence off."
            )
        if not 0 < self.kl_temperature < math.inf:
            raise SDRRLError(f"`kl_temperature` must be a number above 0, got {self.kl_temperature}. Set it to 1.0.")
        if self.kl_direction not in ("forward", "reverse"):
            raise SDRRLError(f"`kl_direction` must be 'forward' or 'reverse', got {self.kl_direction!r}.")
        if self.kl_token_weights not in (None, "dpsw"):
            raise SDRRLError(f"`kl_token_weights` must be 'dpsw' or left out, got {self.kl_token_weights!r}.")
        if self.kl_token_weights and not self.kl_coef:
            raise SDRRLError("`kl_token_weights` does nothing without `kl_coef`. Set `kl_coef`, or leave it out.")
        if isinstance(self.groups, str):
            try:
                self.groups = json.loads(self.groups)
            except ValueError as error:
                raise SDRRLError(f"`groups` is not valid JSON ({error}): {self.groups!r}.") from error
        for group in self.groups or []:
            if not isinstance(group, list | tuple) or len(group) != 3 or not all(isinstance(x, str) for x in group):
                raise SDRRLError(
                    f"`groups` must list [kind, question_language, answer_language], got {group!r}, such as "
                    '[["target", "pt", "pt"]].'
                )
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
        if self.label_smoothing_factor and (self.kl_coef or self.kind_weights or self.language_weights):
            raise SDRRLError(
                "`label_smoothing_factor` cannot be combined with token weights or `kl_coef`: TRL computes "
                "that loss from full logits, past them. Set it to 0."
            )


def _check_weights(name: str, weights: dict[str, Any] | None) -> None:
    if weights is None:
        return
    if not isinstance(weights, dict):
        raise SDRRLError(f'`{name}` must map names to numbers, such as {{"target": 2.0}}, got {weights!r}.')
    for key, value in weights.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
            raise SDRRLError(
                f"`{name}`: the weight of {key!r} must be a number of at least 0, got {value!r}. A negative "
                "weight would train the model away from its answers."
            )
