import json
import shutil
import weakref
from types import SimpleNamespace

import pytest
import torch
from transformers import DynamicCache

from sdrrl_trl.engines import Sampling, transformers
from sdrrl_trl.engines.transformers import TransformersGenerator, _Sampler, in_batches


QUESTIONS = [[{"role": "user", "content": "Why " * n + "?"}] for n in (1, 9, 3, 30, 2, 14, 5)]


@pytest.fixture(scope="module")
def generator(tiny_model):
    """A tiny random model that ends its answers now and then."""
    generator = TransformersGenerator(tiny_model, Sampling(24, temperature=0.0), dtype="float32")
    with torch.no_grad():
        generator.model.get_output_embeddings().weight[generator.tokenizer.eos_token_id] *= 2
    return generator


def plain(generator, conversation):
    """One row, by `generate` alone."""
    tokenizer = generator.tokenizer
    inputs = tokenizer.apply_chat_template([conversation], add_generation_prompt=True, return_tensors="pt")
    ids = generator.model.generate(**inputs, max_new_tokens=24)[0, inputs["input_ids"].shape[1] :]
    return tokenizer.decode(ids, skip_special_tokens=True).strip()


def test_transformers_warns_of_nothing_that_the_engine_does(generator, recwarn, caplog):
    generator.generate(QUESTIONS)
    assert not [str(warning.message) for warning in recwarn] and not caplog.records


@pytest.mark.parametrize("batch_tokens", [32_768, 200])
def test_batched_answers_are_those_of_one_row_at_a_time(generator, monkeypatch, batch_tokens):
    monkeypatch.setattr(generator, "_batch_tokens", batch_tokens)
    answers = generator.generate(QUESTIONS)
    assert [answer.text for answer in answers] == [plain(generator, question) for question in QUESTIONS]
    assert {answer.finish_reason for answer in answers} == {"stop", "length"}  # rows leave at different times


def test_keys_and_values_of_a_batch_fill_half_of_what_the_weights_leave_of_a_gpus_memory(generator, monkeypatch):
    model, cache = generator.model, DynamicCache(config=generator.model.config)
    model(torch.zeros(1, 1, dtype=torch.long), past_key_values=cache)
    of_a_token = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert transformers.batch_tokens(model) == generator._batch_tokens == transformers.BATCH_TOKENS  # on a CPU
    monkeypatch.setattr(transformers, "own_device", lambda: torch.device("cuda", 0))
    for n_tokens in (1000, 10**9):
        gpu = SimpleNamespace(total_memory=model.get_memory_footprint() + 2 * n_tokens * of_a_token)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _, gpu=gpu: gpu)
        assert transformers.batch_tokens(model) == min(n_tokens, transformers.MOST_TOKENS)


ROWS = [[1] * n for n in (3, 5, 2, 9, 5, 1)]


def test_batches_keep_to_their_tokens_and_are_the_same_for_any_order_of_the_rows():
    def batches(rows):
        made = []

        def function(batch):
            made.append([rows[i] for i in batch])
            return [len(rows[i]) for i in batch]

        assert in_batches(function, rows, 16) == [len(row) for row in rows]
        return made

    assert batches(ROWS) == batches(ROWS[::-1])
    assert [len(batch) for batch in batches(ROWS)] == [3, 2, 1]
    assert in_batches(None, [], 16) == []


def test_running_out_of_memory_halves_a_batch_and_leaves_nothing_behind(monkeypatch):
    sizes, failed, kept = [], [], []

    def function(batch):
        sizes.append(len(batch))
        kept.append(sum(tensor() is not None for tensor in failed))
        if len(batch) > 1:
            activations = torch.empty(10)
            failed.append(weakref.ref(activations))
            raise torch.OutOfMemoryError("no")
        return [len(ROWS[i]) for i in batch]

    monkeypatch.setattr(torch.accelerator, "empty_cache", lambda: None)
    assert in_batches(function, ROWS, 1000) == [len(row) for row in ROWS]
    assert sizes[:3] == [6, 3, 1] and not any(kept)  # what failed is free before the next attempt


@pytest.fixture
def sampling(generator, monkeypatch):
    monkeypatch.setattr(generator, "sampling", Sampling(24))
    return generator


def test_a_sampled_answer_depends_on_its_row_and_the_seed_alone(sampling, monkeypatch):
    answers = sampling.generate(QUESTIONS)
    assert sampling.generate(QUESTIONS[::-1])[::-1] == answers
    assert [sampling.generate([question])[0] for question in QUESTIONS] == answers
    monkeypatch.setattr(sampling, "sampling", Sampling(24, seed=1))
    assert sampling.generate(QUESTIONS) != answers


def test_what_a_model_recommends_for_sampling_stays_off(tiny_model, tmp_path):
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    plain = TransformersGenerator(str(folder), Sampling(12)).generate(QUESTIONS)
    recommended = json.loads((folder / "generation_config.json").read_text())
    recommended |= {"do_sample": True, "temperature": 0.1, "top_k": 1, "top_p": 0.1, "repetition_penalty": 2.0}
    (folder / "generation_config.json").write_text(json.dumps(recommended))
    assert TransformersGenerator(str(folder), Sampling(12)).generate(QUESTIONS) == plain


def test_samples_follow_the_distribution_of_the_model():
    """The softmax at the same temperature, and without the tokens beyond the nucleus."""
    n, p = 4000, torch.tensor([0.5, 0.3, 0.15, 0.05])
    generators = [torch.Generator().manual_seed(seed) for seed in range(n)]
    logits = (0.5 * p.log()).expand(n, -1)  # at a temperature of 0.5, those of `p`
    tokens = _Sampler(Sampling(temperature=0.5, top_p=0.9), generators)(None, logits).argmax(-1)
    expected = torch.tensor([0.5, 0.3, 0.15, 0.0]) / 0.95
    shares = tokens.bincount(minlength=4) / n
    assert shares.tolist() == pytest.approx(expected.tolist(), abs=4 * (0.25 / n) ** 0.5)
    assert shares[3] == 0


def test_a_question_that_leaves_no_room_for_an_answer_is_marked(generator):
    answers = generator.generate([QUESTIONS[0], [{"role": "user", "content": "word " * 3000}]])
    assert [answer.finish_reason == "prompt_too_long" for answer in answers] == [False, True]
