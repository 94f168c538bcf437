"""
Wording of the questions that the builder makes itself, in the language of the question. All of it is ours.

The hint that says in which language to answer exists for the 16 languages of the paper, the 10 of MultiJail, English
and a few more; names of languages are those of the Unicode CLDR. Elsewhere the English wording is used.
"""

from functools import cache

from babel import Locale

from sdrrl_trl.languages import LANGUAGES


# Languages that inflect the name get a wording that leaves it in the nominative ("Language of the answer: ...")
_HINTS = {
    "ar": "أجب باللغة {}.",
    "bg": "Език на отговора: {}.",
    "bn": "{} ভাষায় উত্তর দিন।",
    "ca": "Respon en {}.",
    "cs": "Jazyk odpovědi: {}.",
    "da": "Svar på {}.",
    "de": "Antworte auf {}.",
    "en": "Answer in {}.",
    "es": "Responde en {}.",
    "fi": "Vastauksen kieli: {}.",
    "fr": "Réponds en {}.",
    "gl": "Responde en {}.",
    "hu": "A válasz nyelve: {}.",
    "id": "Jawab dalam bahasa {}.",
    "it": "Rispondi in {}.",
    "ja": "{}で答えてください。",
    "jv": "Wangsulana nganggo basa {}.",
    "km": "សូមឆ្លើយជាភាសា{}។",
    "ko": "{}로 답하세요.",
    "nb": "Svar på {}.",
    "nl": "Antwoord in het {}.",
    "pl": "Język odpowiedzi: {}.",
    "pt": "Responda em {}.",
    "sl": "Jezik odgovora: {}.",
    "sv": "Svara på {}.",
    "sw": "Jibu kwa {}.",
    "th": "ตอบเป็นภาษา{}",
    "uk": "Мова відповіді: {}.",
    "vi": "Hãy trả lời bằng {}.",
    "zh": "请用{}回答。",
}
_TRANSLATE = {
    "cs": ("Přelož následující text. Cílový jazyk: {}.", "Přeložte tento text. Jazyk překladu: {}."),
    "da": ("Oversæt denne tekst til {}:", "Hvad hedder dette på {}?"),
    "de": ("Übersetze diesen Text. Zielsprache: {}.", "Wie lautet das auf {}?"),
    "en": ("Translate this into {}:", "How do you say this in {}?", "Give the {} translation of this text:"),
    "es": ("Traduce este texto al {}:", "¿Cómo se dice esto en {}?"),
    "fi": ("Käännä tämä teksti. Kohdekieli: {}.", "Mikä on tämän tekstin käännös? Kieli: {}."),
    "fr": ("Traduis ce texte en {} :", "Comment dit-on ceci en {} ?"),
    "hu": ("Fordítsd le ezt a szöveget. Célnyelv: {}.", "Mi ennek a fordítása? Nyelv: {}."),
    "id": ("Terjemahkan teks ini ke dalam bahasa {}:", "Apa bahasa {} dari teks ini?"),
    "it": ("Traduci questo testo in {}:", "Come si dice questo in {}?"),
    "ja": ("次の文章を{}に訳してください。", "これは{}で何と言いますか。"),
    "ko": ("다음 글을 {}로 번역하세요.", "이것을 {}로 뭐라고 합니까?"),
    "nb": ("Oversett denne teksten til {}:", "Hva heter dette på {}?"),
    "pl": ("Przetłumacz ten tekst. Język docelowy: {}.", "Jakie jest tłumaczenie tego tekstu? Język: {}."),
    "pt": ("Traduza este texto para o {}:", "Como se diz isto em {}?"),
    "sl": ("Prevedi to besedilo. Ciljni jezik: {}.", "Kakšen je prevod tega besedila? Jezik: {}."),
    "sw": ("Tafsiri maandishi haya kwa {}:", "Hii inasemwaje kwa {}?"),
    "th": ("แปลข้อความนี้เป็นภาษา{}", "ข้อความนี้ในภาษา{}ว่าอย่างไร"),
    "uk": ("Переклади цей текст. Мова перекладу: {}.", "Як перекласти цей текст? Мова: {}."),
    "vi": ("Hãy dịch đoạn văn này sang {}:", "Câu này trong {} nói thế nào?"),
    "zh": ("请把这段文字翻译成{}：", "这段话用{}怎么说？"),
}
_CONTINUE = {
    "ar": ("أكمل هذا النص:", "ما تتمة هذا النص؟"),
    "bg": ("Продължи този текст:", "Как продължава този текст?"),
    "bn": ("এই লেখাটি সম্পূর্ণ করুন:", "এর পরে কী আসে?"),
    "cs": ("Pokračuj v tomto textu:", "Jak tento text pokračuje?"),
    "da": ("Fortsæt denne tekst:", "Hvordan fortsætter denne tekst?"),
    "de": ("Setze diesen Text fort:", "Wie geht dieser Text weiter?"),
    "en": ("Continue this text:", "How does this text go on?"),
    "es": ("Continúa este texto:", "¿Cómo sigue este texto?"),
    "fi": ("Jatka tätä tekstiä:", "Miten tämä teksti jatkuu?"),
    "fr": ("Continue ce texte :", "Quelle est la suite de ce texte ?"),
    "hu": ("Folytasd ezt a szöveget:", "Hogyan folytatódik ez a szöveg?"),
    "id": ("Lanjutkan teks ini:", "Bagaimana kelanjutan teks ini?"),
    "it": ("Continua questo testo:", "Come prosegue questo testo?"),
    "ja": ("次の文章の続きを書いてください。", "この文章の続きは何ですか。"),
    "jv": ("Terusna teks iki:", "Kepriye terusane teks iki?"),
    "km": ("សូមបន្តអត្ថបទនេះ៖", "តើអត្ថបទនេះបន្តយ៉ាងដូចម្តេច?"),
    "ko": ("다음 글을 이어서 쓰세요.", "이 글은 어떻게 이어집니까?"),
    "nb": ("Fortsett denne teksten:", "Hvordan fortsetter denne teksten?"),
    "pl": ("Kontynuuj ten tekst:", "Jaki jest dalszy ciąg tego tekstu?"),
    "pt": ("Continue este texto:", "Como continua este texto?"),
    "sl": ("Nadaljuj to besedilo:", "Kako se to besedilo nadaljuje?"),
    "sw": ("Endelea na maandishi haya:", "Maandishi haya yanaendeleaje?"),
    "th": ("เขียนข้อความนี้ต่อ", "ข้อความนี้ต่อไปว่าอย่างไร"),
    "uk": ("Продовж цей текст:", "Як продовжується цей текст?"),
    "vi": ("Hãy viết tiếp đoạn văn này:", "Đoạn văn này tiếp tục thế nào?"),
    "zh": ("请续写这段文字：", "这段文字接下来是什么？"),
}


@cache
def language_name(tag: str, in_language: str) -> str:
    """Name of a language in another one (or in itself), from the CLDR; `no` stands for Norwegian in general."""
    return Locale.parse(in_language).languages["no" if tag == "nb" else tag]


def answer_hint(question_language: str, answer_language: str) -> str:
    """Sentence that asks for an answer in `answer_language`, in the language of the question where we have one."""
    wording = question_language if question_language in _HINTS else "en"
    return _HINTS[wording].format(language_name(answer_language, wording))


def translation_prompt(source: str, target: str, number: int) -> str:
    """Request to translate, in the language of the text; `number` picks one of several wordings."""
    wording = source if source in _TRANSLATE else "en"
    templates = _TRANSLATE[wording]
    return templates[number % len(templates)].format(language_name(target, wording))


def completion_prompt(language: str, number: int) -> str:
    """Request to continue a text, in its language; `number` picks one of several wordings."""
    templates = _CONTINUE.get(language, _CONTINUE["en"])
    return templates[number % len(templates)]


def rewrite_prompt(question: str, reference: str) -> str:
    """
    Request to answer a question in one's own words along a reference answer, the idea of self-distillation fine-tuning
    (SDFT, https://huggingface.co/papers/2402.13669). English only; the wording is ours.
    """
    return (
        f"{question}\n\nHere is a reference answer:\n\n{reference}\n\n"
        "Write your own answer to the question above, in your own words, with the reference answer as a guide. Reply "
        "with the answer only."
    )


def pivot_labels(source: str, target: str) -> tuple[str, str, str]:
    """Headings of the three parts of a pivot answer."""
    first, second = LANGUAGES[source].name, LANGUAGES[target].name
    return f"{first} question", f"{first} answer", f"{second} answer"
