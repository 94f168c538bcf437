"""What the sections of gpu.py share: sizes, models, and how time and memory are taken."""

import gc
import os
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import torch


# Libraries are imported in the sections: of one that is missing, the others shall not fail
ROOT = Path(__file__).parents[1]
sys.path[0] = str(ROOT / "tests")  # in front, this folder's evaluate.py would hide the package `evaluate`
sys.path.append(str(ROOT / "benchmarks"))
os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TOKENIZERS_PARALLELISM="false", TQDM_DISABLE="1")
os.environ.update(HF_DATASETS_DISABLE_PROGRESS_BARS="1", HF_HUB_DISABLE_PROGRESS_BARS="1")
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it, cuBLAS is not deterministic
HAS_GPU = torch.cuda.is_available()
DEVICE = "cuda" if HAS_GPU else "cpu"
DTYPE = torch.bfloat16 if HAS_GPU else torch.float32
WORDS = "the sky looks blue because air scatters blue light more than red light "
LLAMA_1B = {"vocab_size": 128_256, "hidden_size": 2048, "num_hidden_layers": 16, "intermediate_size": 8192}
LLAMA_1B |= {"num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 4096}
M2M_418M = {"vocab_size": 128_112, "d_model": 1024, "layers": 12, "heads": 16, "ffn_dim": 4096}
FULL = {"llama": LLAMA_1B, "m2m": M2M_418M, "steps": 8, "max_length": 1024, "text": 12, "kl": (8192, 151_936, 2048)}
FULL |= {"kl_checked": 1024, "kl_rounds": 5, "questions": 128, "new_tokens": 64}
LLAMA_TINY = {"vocab_size": 1000, "hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 64}
LLAMA_TINY |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 4096}
M2M_TINY = {"vocab_size": 1000, "d_model": 32, "layers": 1, "heads": 2, "ffn_dim": 64}
QUICK = {"llama": LLAMA_TINY, "m2m": M2M_TINY, "steps": 5, "max_length": 256, "text": 3, "kl": (128, 1000, 32)}
QUICK |= {"kl_checked": 300, "kl_rounds": 1, "questions": 8, "new_tokens": 16}


def now():
    """Seconds, once the GPU has done what it was given."""
    if HAS_GPU:
        torch.cuda.synchronize()
    return time.perf_counter()


@contextmanager
def measured(found):
    """Puts seconds and the peak of extra GPU memory in MB into `found`. What the allocator has kept, it may use."""
    gc.collect()
    if HAS_GPU:
        torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated() if HAS_GPU else 0
    start = now()
    yield
    found["seconds"] = now() - start
    found["MB"] = (torch.cuda.max_memory_allocated() - before) / 2**20 if HAS_GPU else 1.0


def tiny_model(folder):
    """Folder of the tests' smallest model, whose tokenizer all models here share."""
    from conftest import make_tiny_model

    path = folder / "tiny"
    if not path.exists():
        make_tiny_model(path)
    return str(path)


def llama(sizes, folder, attention="sdpa"):
    """A random model, in bfloat16 on a GPU, the same each time, and its tokenizer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

    tokenizer = AutoTokenizer.from_pretrained(tiny_model(folder))
    ids = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    torch.manual_seed(0)
    with torch.device(DEVICE):
        config = LlamaConfig(**sizes["llama"], **ids, tie_word_embeddings=True)
        options = {"dtype": DTYPE, "attn_implementation": attention}
        return AutoModelForCausalLM.from_config(config, **options), tokenizer
