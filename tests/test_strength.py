"""`model@0.75`: how much of what training changed is used, in `sdrrl evaluate` and `sdrrl merge`."""

import pytest
import torch
from conftest import cases
from huggingface_hub import metadata_load
from peft import LoraConfig, PeftModel, get_peft_model
from test_evaluate import make_tuned
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from sdrrl_trl import SDRRLError
from sdrrl_trl.cli import main
from sdrrl_trl.evaluation.weights import check_strength, merge, split_strength


@pytest.fixture(scope="module")
def tuned(tiny_model, tmp_path_factory):
    return make_tuned(tiny_model, tmp_path_factory.mktemp("tuned"))


def test_a_strength_stands_behind_the_last_at_and_an_existing_folder_wins(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m@0.5").mkdir()
    assert split_strength("m@0.5") == ("m@0.5", None) and split_strength("m") == ("m", None)
    assert split_strength("m@0.5@0.25") == ("m@0.5", 0.25) and split_strength("n@1") == ("n", 1.0)
    for wrong in cases("strengths"):
        with pytest.raises(SDRRLError, match=f"'{wrong}'.*from 0 .base model. to 1"):
            check_strength(wrong)


@pytest.mark.parametrize("kind", ["adapter", "head", "full"])
def test_a_merged_model_is_that_of_the_strength_and_says_so(tiny_model, tuned, tmp_path, kind):
    base = {"base": tiny_model} if kind == "full" else {}
    start, end = (AutoModelForCausalLM.from_pretrained(path) for path in (tiny_model, tuned["full"]))
    if kind != "full":
        end = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model), tuned[kind])
        end = end.merge_and_unload()
    expected = dict(start.named_parameters()), dict(end.named_parameters())
    for strength in (0, 0.75, 1):
        merge(f"{tuned[kind]}@{strength}", tmp_path / str(strength), **base)
        merged = dict(AutoModelForCausalLM.from_pretrained(tmp_path / str(strength)).named_parameters())
        for name, weight in merged.items():
            if strength == 0.75:
                torch.testing.assert_close(weight, expected[0][name] * 0.25 + expected[1][name] * 0.75)
            else:
                assert torch.equal(weight, expected[strength][name])
    folder = tmp_path / "0.75"
    assert (
        AutoTokenizer.from_pretrained(folder).chat_template == AutoTokenizer.from_pretrained(tiny_model).chat_template
    )
    card = (folder / "README.md").read_text()
    assert f"of `{kind}`\nat strength 0.75" in card and "base model `model`" in card
    about = metadata_load(folder / "README.md")
    assert str(tmp_path) not in card and "merge" in about["tags"] and about["license"] == "other"


@pytest.mark.parametrize("option", ["target_modules", "modules_to_save"])
@pytest.mark.parametrize("matrix", ["embed_tokens", "lm_head"])
def test_an_adapter_of_one_of_two_tied_matrices_leaves_the_other_as_it_was(tiny_model, tmp_path, option, matrix):
    config = AutoConfig.from_pretrained(tiny_model, tie_word_embeddings=True)
    base = AutoModelForCausalLM.from_config(config).eval()
    for part in (base, AutoTokenizer.from_pretrained(tiny_model)):
        part.save_pretrained(tmp_path / "tied")
    lora = LoraConfig(**{"r": 4, "init_lora_weights": False, "target_modules": ["q_proj"]} | {option: [matrix]})
    tuned = get_peft_model(AutoModelForCausalLM.from_pretrained(tmp_path / "tied"), lora)
    if option == "modules_to_save":
        getattr(tuned, "get_output_embeddings" if matrix == "lm_head" else "get_input_embeddings")().weight.data *= 1.1
    tuned.save_pretrained(tmp_path / "adapter")
    ids = torch.tensor([[5, 6, 7, 8]])
    for strength, model in ((0, base), (1, tuned)):
        merged = AutoModelForCausalLM.from_pretrained(
            merge(f"{tmp_path / 'adapter'}@{strength}", tmp_path / str(strength))
        )
        torch.testing.assert_close(merged(ids).logits, model.eval()(ids).logits, rtol=1e-4, atol=1e-4)


def test_what_cannot_be_merged_is_named_before_anything_is_written(tiny_model, tuned, tmp_path, capsys):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    other = tmp_path / "other"
    config = AutoModelForCausalLM.from_pretrained(tiny_model).config
    config.intermediate_size = 32
    config.save_pretrained(other)  # without weights, which are not read
    config.quantization_config = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    config.save_pretrained(tmp_path / "quantized")
    for name in ("other", "quantized"):
        AutoTokenizer.from_pretrained(tiny_model).save_pretrained(tmp_path / name)
    evaluate = ["evaluate", "--tasks", "sdrrl_heldout", "--transfer_set", "none", "--output_dir", "new", "--models"]
    shapes, full = "do not have weights of the same shapes", tuned["full"]
    for arguments, named in (
        (["merge", full, "new"], "give that: `--base`"),
        (["merge", tuned["adapter"] + "@2", "new"], "from 0"),
        (["merge", tuned["adapter"], tmp_path / "full"], "is not empty"),
        (["merge", full, "new", "--base", other], shapes),
        ([*evaluate, f"base={other}", f"tuned={full}@0.5"], shapes),
        ([*evaluate, f"base={tmp_path / 'quantized'}", f"tuned={full}@0.5"], "between quantized weights"),
    ):
        with pytest.raises(SystemExit):
            main([*map(str, arguments)])
        assert named.lower() in capsys.readouterr().err.lower()
