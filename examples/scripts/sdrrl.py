# Copyright 2026 The sdrrl_trl authors
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.

"""
TRL's `sft.py` with three names changed: train on a transfer set made by `sdrrl build`.

# LoRA
python examples/scripts/sdrrl.py \
    --model_name_or_path HuggingFaceTB/SmolLM2-135M-Instruct \
    --dataset_name transfer_set \
    --anchor_languages en --kl_coef 4 \
    --learning_rate 1.0e-3 --num_train_epochs 1 \
    --packing \
    --use_peft \
    --lora_target_modules all-linear \
    --output_dir SmolLM2-135M-SDRRL

It also runs under `accelerate launch` and `torchrun --nproc_per_node 2`.
"""

import argparse

from datasets import load_dataset
from trl import ModelConfig, ScriptArguments, TrlParser, get_peft_config, get_quantization_config

from sdrrl_trl import SDRRLConfig, SDRRLTrainer


def main(script_args, training_args, model_args):
    training_args.model_init_kwargs = {
        "revision": model_args.model_revision,
        "attn_implementation": model_args.attn_implementation,
        "dtype": model_args.dtype,
        **(training_args.model_init_kwargs or {}),
    }
    dataset = load_dataset(script_args.dataset_name, name=script_args.dataset_config)
    trainer = SDRRLTrainer(
        model=model_args.model_name_or_path,
        args=training_args,
        train_dataset=dataset[script_args.dataset_train_split],
        eval_dataset=dataset[script_args.dataset_test_split] if training_args.eval_strategy != "no" else None,
        quantization_config=get_quantization_config(model_args),
        peft_config=get_peft_config(model_args),
    )
    trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
    trainer.save_model(training_args.output_dir)
    trainer.accelerator.print(f"Model saved to {training_args.output_dir}.")
    if training_args.push_to_hub:
        trainer.push_to_hub(dataset_name=script_args.dataset_name)
    # No `trainer.end()`: with gloo, destroying the process group while DDP holds it can hang at exit (torch 2.13)


def make_parser() -> argparse.ArgumentParser:
    return TrlParser((ScriptArguments, SDRRLConfig, ModelConfig))


if __name__ == "__main__":
    main(*make_parser().parse_args_and_config())
