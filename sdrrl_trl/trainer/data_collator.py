from dataclasses import dataclass
from typing import Any

import torch
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling
from trl.trainer.utils import pad


@dataclass
class DataCollatorForSDRRL(DataCollatorForLanguageModeling):
    """
    Data collator of [`SDRRLTrainer`]: that of [`~trl.SFTTrainer`] with one more key, `group_ids`.

    `group_ids` holds, for each token, the index of its row's (kind, question language, answer language) in the
    trainer's table. It is padded with 0, or concatenated when padding-free, as `input_ids` is.
    """

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        output = super().torch_call(examples)
        group_ids = [torch.tensor(example["group_ids"]) for example in examples]
        if self.padding_free:
            group_ids = [torch.cat(group_ids)]
        output["group_ids"] = pad(group_ids, 0, padding_side="right", pad_to_multiple_of=self.pad_to_multiple_of)
        return output
