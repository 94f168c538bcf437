import json
import os
import sys
from pathlib import Path

import pytest
import yaml


# Before any import of torch: the models are tiny, and threads that wait for each other slow several tests at a time
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Before any Hugging Face import: the tests reach no hub
os.environ.update(
    HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1", TOKENIZERS_PARALLELISM="false"
)

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "benchmarks"))  # in front, its evaluate.py would hide the package
DEMO = ROOT / "examples" / "demo"


def data_dir() -> Path | None:
    """Folder with benchmark data, or None."""
    folder = Path(os.environ.get("SDRRL_DATA_DIR", ROOT.parent / "shared" / "data"))
    return folder if folder.is_dir() else None


def cases(name: str, file: str = "input_cases.yaml") -> list:
    """Cases of a parametrized test."""
    return yaml.safe_load((Path(__file__).parent / file).read_text(encoding="utf-8"))[name]


def write_json_lines(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


class CannedGenerator:
    """Answers each question with a short English text about it, and notes every question that it was asked."""

    def __init__(self, log: Path | None = None, pause: float = 0.0):
        self.log, self.pause = log, pause

    def describe(self):
        return {"engine": "canned"}

    def generate(self, conversations):
        import time

        from sdrrl_trl.engines import Generation

        time.sleep(self.pause)
        questions = [conversation[-1]["content"] for conversation in conversations]
        if self.log is not None:
            with open(self.log, "a", encoding="utf-8") as file:
                file.write("".join(json.dumps(question) + "\n" for question in questions))
        return [Generation(canned_answer(question), "stop") for question in questions]


def canned_answer(question: str) -> str:
    words = " ".join(question.split()[:6]).rstrip(".?!,:;")
    return f"The question was about this: {words}. It has a simple answer.\n\n" + (
        "- Read `README.md` at https://example.com/a.\n- Then ask again."
    )


def make_tiny_model(folder: Path, **sizes: int) -> None:
    """Saves a small random Llama with a chat template, its tokenizer trained on the demo's texts."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=800,
        special_tokens=["<|pad|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = [(DEMO / name).read_text(encoding="utf-8") for name in ("seeds.jsonl", "parallel.jsonl")]
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|pad|>")
    fast.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(fast),
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        eos_token_id=fast.eos_token_id,
        pad_token_id=fast.pad_token_id,
        bos_token_id=None,
        initializer_range=0.2,  # with the default, every loss sits at the logarithm of the vocabulary size
        **{"hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 64, **sizes},
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    fast.save_pretrained(folder)


@pytest.fixture
def benchmarks(monkeypatch):
    """Real benchmark data."""
    if data_dir() is None:
        pytest.skip("needs the data of the benchmarks")
    monkeypatch.setenv("SDRRL_DATA_DIR", str(data_dir()))


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> str:
    """Folder of the smallest such model."""
    folder = tmp_path_factory.mktemp("tiny") / "model"
    make_tiny_model(folder)
    return str(folder)


@pytest.fixture
def seeds(tmp_path) -> str:
    """A file with 24 of the demo's questions, of all categories."""
    rows = [json.loads(line) for line in (DEMO / "seeds.jsonl").read_text(encoding="utf-8").splitlines()]
    return str(write_json_lines(tmp_path / "seeds.jsonl", rows[::11]))


@pytest.fixture
def stub_seeds(tmp_path):
    """A file with 40 questions, one that is too long and one that is there twice, and a lexicon beside it."""
    from stub_engines import StubTranslator, sentence

    rows = [{"id": f"q{i}", "instruction": f"{sentence(str(i), 8)} See `code {i}` now."} for i in range(40)]
    rows += [{"id": "long", "instruction": "word " * 300_000}, {"id": "again", "instruction": rows[3]["instruction"]}]
    lexicon = "".join(f"{word}\t{translation}\n" for word, translation in StubTranslator.VOCABULARY.items())
    (tmp_path / "lexicon.tsv").write_text(lexicon)
    return str(write_json_lines(tmp_path / "seeds.jsonl", rows))


@pytest.fixture
def parallel(tmp_path):
    """Nine good pairs and one twice, and two sentences without a partner."""
    from stub_engines import StubTranslator, sentence

    sentences = [sentence(f"p{i}") for i in range(9)]
    pairs = [{"en": text, "pt": StubTranslator.translate_words(text)} for text in sentences]
    pairs += [pairs[0], {"pt": "Curto."}, {"en": "Only source here."}]
    return str(write_json_lines(tmp_path / "parallel.jsonl", pairs))


@pytest.fixture
def whole(stub_seeds, tmp_path):
    """A set built without interruption by one process."""
    from stub_engines import StubGenerator, StubTranslator, build

    logs = tmp_path / "whole_asked", tmp_path / "whole_sent"
    return build(stub_seeds, tmp_path / "whole", StubGenerator(logs[0]), StubTranslator(logs[1]))


@pytest.fixture(scope="session")
def smollm2() -> str:
    """The real SmolLM2-135M-Instruct."""
    from sdrrl_trl.engines.fast_translate import smollm2

    return smollm2()[0]
