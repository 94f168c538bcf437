from dataclasses import dataclass
from typing import Any

import torch
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling
from trl.trainer.utils import pad


PROVENANCE_KEYS = ("group_ids", "label_bytes", "row_ids")


@dataclass
class DataCollatorForSDRRL(DataCollatorForLanguageModeling):
    """
    Data collator of [`SDRRLTrainer`]: that of [`~trl.SFTTrainer`] with three more keys of the shape of `input_ids`.

    `group_ids` holds, for each token, the index of its row's (kind, question language, answer language) in the
    trainer's table. `label_bytes` holds the length of the row's supervised text in UTF-8 bytes at its last supervised
    token, 0 elsewhere. `row_ids` holds the place of its row in the batch, which padding-free batches do not show. All
    are padded with 0, or concatenated when padding-free.
    """

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        output = super().torch_call(examples)
        sizes = [len(example["input_ids"]) for example in examples]
        rows = {"row_ids": [[index] * n for index, n in enumerate(sizes)]}
        for key in ("group_ids", "label_bytes"):  # data prepared elsewhere, for `predict`, have none
            rows[key] = [example.get(key, [0] * n) for example, n in zip(examples, sizes, strict=True)]
        for key in PROVENANCE_KEYS:
            values = [torch.tensor(row) for row in rows[key]]
            if self.padding_free:
                values = [torch.cat(values)]
            output[key] = pad(values, 0, padding_side="right", pad_to_multiple_of=self.pad_to_multiple_of)
        return output
