"""Answer extraction: the text of a completion, and what the answer in it is, step by step.

Evaluation, best-of-n, rewards, the audit and pair making all judge an answer by `closed_answers`, which reads it in
the order of this module: [`extract_answer`], [`unwrap`], [`statements`], [`clauses`]. The published normal form
([`published_exact_match`], arXiv 2503.00743) stays beside it under its own name. Left out: what the kind of question
decides (numbers are in `quantities`; yes/no, choices and texts are in `closed_answers`).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_INSIDE = r"(?:(?!</?(?:think|answer)>).)*"  # a second answer, or text between the parts, must not pass as content
_THINK_ANSWER = re.compile(rf"\s*<think>{_INSIDE}</think>\s*<answer>{_INSIDE}</answer>\s*", re.DOTALL)

# The published instruction (arXiv 2503.00743), in our words; `is_think_answer` checks the form.
THINK_ANSWER = (
    "First think about the image and the question, then answer. Write your reasoning inside <think> </think> and the "
    "final answer inside <answer> </answer>, such as: <think> reasoning </think><answer> answer </answer>"
)

_END_TOKEN = re.compile(r"<\|(?:im_end|eot_id|end|endoftext|end_of_text|eos)\|>|</s>|<(?:eos|eot|end_of_turn)>")
_START_TOKEN = re.compile(r"<\|im_start\|>\w*|<(?:s|bos|pad|unk|start_of_turn)>")
_TAG = re.compile(r"<\|\w+\|>|</?(?:b|i|u|p|em|strong|br|span|div|center|code|pre|h\d)\s*/?>")
_QUESTION = re.compile(r"[^.?!\n]*\?+(?=\s*[^\s?])")  # before an answer; an answer with a question mark is hedged
_CERTAIN = re.compile(
    r"\b(?:there is )?(?:no|not any|not a single|without(?: a| any)?) (?:doubt|problem|worries)\b", re.I
)
_CHATTER = re.compile(r"\s*(?:sure|certainly|of course|okay|ok|oh|alright|well|hmm+)\b(?! not)[\s,.!:]+(?=\S)", re.I)
_CORRECTION = re.compile(
    r"(?:^|[.,:;!\n…-])\s*(?:(?:oh|no|hmm)\b[,.]? )*(?:wait|hold on|correction|scratch that|i mean|on second thoughts?"
    r"|let me correct (?:that|myself))\b(?:[,.]? no\b(?=[\s,.:-]+\w))?(?:[\s,.:;!]|-(?!\d))*",
    re.I,
)
_STATED = re.compile(
    r"(?P<final>\bfinal[ _])?(?:\b(?:answer|ans|(?<!me )count|total(?: number| count)?|choice|option|class|category"
    r"|label|prediction|response|conclusion)\b(?: (?:to|of|for|in) [^.:;\n]*?)?"
    r"(?:\s+(?:is|was|would be|should be|must be)\b(?: clearly| definitely)?\s*:?"
    r"|\s*[:=→]|\s+-(?=\s)|\s*\n|(?<=answer)\s+(?=[(\[]?(?:[A-Z]|\d+)\b))|(?:答案|选项?)(?:是|为|:|应该是)?)"
    r"\s*(?:(?:option|choice|letter)\b\s*:?)?",
    re.I,
)
_NOT_MEANT = re.compile(r"\b(?:other|another|one|first|second|third|each|every|any|either)\b", re.I)
_CONCLUSION = re.compile(
    r"(?:^|[.,;\n]\s*|\band )(?:therefore|thus|hence|so|in conclusion|in total)\b,?"
    r"|\b(?:total of|makes|making|equals)\b|=|(?=\b[\w-]+(?: \w+)? (?:in total|altogether|overall)\b)",
    re.I,
)
_HEDGE = re.compile(
    r"\b(?:maybe|perhaps|possibl[ey]|possibility|probabl[ey]|likely|unlikely|unsure|uncertain|unclear|unknown|ambiguous"
    r"|may|might|could|unable|if|whether|depends|guess(?:ing)?|doubt|sorry|insufficient|impossible|as an ai|hardly"
    r"|barely|suppose|yes or no|true or false|low confidence|approx(?:imately)?|roughly|estimated?|give or take"
    r"|part(?:ial)?ly|somewhat|mostly|would need|need more|not know|too blurry"
    r"|can not(?! (?:see|find|detect|spot|identify) (?:any|a)\b)|no(?:body| one)"
    r"|(?:not|hard|difficult) (?:sure|certain|clear|possible|enough|able|applicable|to (?:say|tell|see|determine))"
    r"|no (?:idea|way|clear|information|comment|answer|data|access|view|telling|knowing|image|opinion|question"
    r"|picture|photo|clue|certainty|reply|response|means|context|input)|not \w+ enough)\b"
    r"|(?:^|[.\n])\s*or\b|\?",
    re.I,
)
_DENIAL = re.compile(
    r"\b(?:not?|never|neither|nor|without|none|nothing|wrong|incorrect|false|except|excluding|excluded|instead of"
    r"|rather than|other than|(?:any|every)(?:thing|one| \w+)? but|all but|missing|absent|lacks?|lacking|unlike"
    r"|far from|ruled? out)\b",
    re.I,
)
EXPLAINED = re.compile(
    r"(?<=\w)[,.]?\s*\b(?:because\b|since\b|due to\b|based on\b|as (?=(?:there|it|the|they|we|i|no)\b))", re.I
)  # what follows gives a reason
_CLAUSE = re.compile(
    r"[;\n]|[.,!](?=\s|$)|(?<!wrong)(?<!incorrect):(?=\s|$)|(?<!\d)\s+[-–—]+\s+|\s+[-–—]+\s+(?!\d)|—"
    r"|\b(?:(?<!thing )(?<!any )(?<!all )(?<!one )(?<!option )but|because|since|while|whereas|although|though"
    r"|however|which|where|with|(?<!or )so)\b|\bas (?=(?:there|it|the|they|we|i|no)\b)"
    r"|(?<=\w)\s*\(|\band (?=not?\b)|(?=\b(?:rather than|instead of|without|except|excluding|unlike)\b)",
    re.I,
)


def message_text(value: str | Sequence[Mapping[str, Any]] | None) -> str:
    """Returns the text of a completion: a string, or messages in conversational form.

    Example:
        >>> message_text([{"role": "assistant", "content": "a port"}])
        'a port'
    """
    if value is None or isinstance(value, str):
        return value or ""
    texts = []
    for message in value:
        content = message.get("content") or ""
        if not isinstance(content, str):
            content = "".join(part.get("text") or "" for part in content if part.get("type") == "text")
        texts.append(content)
    return "\n".join(text for text in texts if text)


def extract_answer(output: str) -> str:
    """Returns the part of an output that is the answer: inside `<answer>` if there is one, without thoughts.

    Thoughts are a `<think>…</think>`, all before a `</think>` whose start was in the prompt, and all behind a
    `<think>` that is never closed, unless a whole `<answer>…</answer>` ends it. An `<answer>` that is never closed is
    read to its end. Several answers that differ are returned together, so that they contradict each other. What
    follows a token that ends a turn (`<|im_end|>`) is not read.

    Example:
        >>> extract_answer("<think>rural?</think><answer> urban </answer>"), extract_answer("<think>it may be urban")
        ('urban', '')
    """
    text = re.sub(r"<(/?)(?:think(?:ing)?|thought|reasoning)>", r"<\1think>", output, flags=re.I)
    turns = (_START_TOKEN.sub(" ", part) for part in _END_TOKEN.split(text))
    text = next((turn for turn in turns if turn.strip()), "")
    text = re.sub(r"<think>.*?</think>", " ", text, flags=re.DOTALL).split("</think>")[-1]
    before, _, thought = text.partition("<think>")
    text = f"{before} {thought}" if re.search(r"<answer>.*</answer>\s*$", thought, re.DOTALL | re.I) else before
    answers = re.findall(r"<answer>(.*?)(?:</answer>|$)", text, flags=re.DOTALL | re.I)
    if not answers:
        return re.sub(r"</answer>", " ", text, flags=re.I).strip()
    return "\n".join(dict.fromkeys(one.strip() for one in answers))


def has_answer(text: str) -> bool:
    """Whether the text holds an `<answer>…</answer>`."""
    return _ANSWER.search(text) is not None


def in_asked_form(text: str, prompt: str) -> bool:
    """Whether the text holds an `<answer>…</answer>` if the prompt asks for one."""
    return has_answer(text) or "<answer>" not in prompt


def is_think_answer(text: str) -> bool:
    """Whether the text is one `<think>…</think>`, one `<answer>…</answer>` and white space (arXiv 2503.00743)."""
    return _THINK_ANSWER.fullmatch(text) is not None


def unwrap(output: str) -> str:
    r"""Returns the answer of an output without what only wraps it; its case, sentences and numbers stay.

    Tags, special tokens, LaTeX, Markdown, JSON, quotes, full-width forms and short forms ("isn't") go. A `\boxed{…}`
    becomes a statement, a question repeated before the answer and what is corrected ("2, no wait, 3") go as well.

    Example:
        >>> unwrap(r"$\boxed{B}$"), unwrap('```json\n{"answer": 3}\n```'), unwrap("Is it urban? It isn't。")
        ('final answer: B', 'answer: 3', 'It is not.')
    """
    text = re.sub(r"−\s*|(?<!\S)–(?=\d)", "-", extract_answer(output))
    text = re.sub(r"(?<=\d)(?=[⁰¹²³⁴-⁹])", "^", text)  # NFKC would join a power, or ½, to the number before it
    text = unicodedata.normalize("NFKC", re.sub(r"(?<=\d)(?=[¼-¾⅐-⅞])", " ", text))
    text = re.sub(r"(?<=\d)\s*\*\s*(?=\d)", " x ", text)
    text = text.translate(str.maketrans("’‘⁄。、", "''/.,", '"“”«»《》「」『』【】`*$'))
    text = re.sub(r"\\[dt]?frac\s*\{(\d+)\}\s*\{(\d+)\}", r"\1/\2", text)
    text = re.sub(r"\\(?:text(?:bf|it|rm)?|math(?:bf|it|rm|bb))\s*\{([^{}]*)\}", r"\1", text)
    text = re.sub(r"\\f?boxed\s*\{([^{}]*)\}", r"final answer: \1\n", text)
    text = re.sub(r"\\[,;! ]|\\[()\[\]]|\{(?=,\})|(?<=,)\}", "", text).replace("\\%", "%")
    text = re.sub(r"^\s*(?:json|text)?\s*\{|^\s*#+|[{}]", " ", _TAG.sub(" ", text), flags=re.M)
    text = re.sub(r"(?<!\w)['_]+|['_]+(?!\w)", "", text)
    text = re.sub(r",\s*(?=\w+:\s)", "\n", text)  # the next key of JSON
    text = re.sub(r"^\s*(?:confidence|probability|certainty)\s*[:=].*", "", text, flags=re.M | re.I)
    text = re.sub(r"\b(?:can't|cannot)\b", "can not", text, flags=re.I)
    text = re.sub(r"(?<=\w)n't\b|\b(is|are|do|does|did|was|were|has|have)nt\b", r"\1 not", text, flags=re.I)
    for short, long in (
        ("(?:(?<=it)|(?<=answer)|(?<=hat)|(?<=there))'s", " is"),
        ("'m", " am"),
        ("'d", " would"),
        ("'ve", " have"),
        ("'re", " are"),
    ):
        text = re.sub(rf"(?<=\w){short}\b", long, text, flags=re.I)
    text = _CORRECTION.split(_CERTAIN.sub("", text))[-1]
    text = _QUESTION.sub("", text)
    return _CHATTER.sub("", text, count=1) if _CHATTER.match(text) else text.strip()


def statements(text: str) -> list[str]:
    """Returns what an unwrapped text states as its answer ("answer: …", "the answer is …"); all of it if it does not.

    A final answer goes before other ones. A statement that is denied or doubted ("I don't think the answer is 3") is
    none, and if there is no other, nothing is returned.

    Example:
        >>> statements("Step 1: look. Answer: 3. I see 2 here."), statements("If the answer is 3, go.")
        (['3.'], [])
    """
    found = list(_STATED.finditer(text))
    if not found:
        return [text]
    pieces: dict[bool, list[str]] = {True: [], False: []}
    ends = [_clause_start(text, match.start()) for match in found[1:]] + [len(text)]
    for match, end in zip(found, ends, strict=True):
        before = text[_clause_start(text, match.start()) : match.start()]
        meant = not any(pattern.search(before) for pattern in (_DENIAL, _HEDGE, _NOT_MEANT))
        piece = _first_sentence(text[match.end() : end].strip())
        if meant and re.search(r"\w", piece):
            pieces[bool(match["final"])].append(piece)
    return pieces[True] or pieces[False]


def _clause_start(text: str, end: int) -> int:
    return max(text.rfind(mark, 0, end) + 1 for mark in ".,;:!\n")


def _first_sentence(text: str) -> str:
    """The first sentence, with the next one if that is a choice's letter ("B. urban") or takes it back ("Or 4.")."""
    sentences = re.split(r"(?<=[.!;])\s+|\n+", text)
    more = len(sentences) > 1 and (
        re.fullmatch(r"[(\[]?[A-Za-z][)\]]?\.", sentences[0])
        or re.match(r"(?:or|but|however|although|no)\b", sentences[1], re.I)
        or _HEDGE.match(sentences[1])
        or re.search(r"\bnot (?:sure|certain)\b", sentences[1])
    )
    return " ".join(sentences[: 2 if more else 1])


def conclusion(text: str) -> str:
    """Returns what follows the last "so", "therefore" or "=" of a text; empty if there is none."""
    parts = _CONCLUSION.split(text)
    return parts[-1].strip() if len(parts) > 1 else ""


def hedged(text: str) -> bool:
    """Whether a text says that it does not know, or may be wrong: "maybe", "not sure", "cannot tell"."""
    return _HEDGE.search(text) is not None


def clauses(text: str) -> list[tuple[str, bool]]:
    """Returns the clauses of a text, and of each whether it is affirmed: it holds no negation.

    Example:
        >>> clauses("not A but B, which is urban")
        [('not A', False), ('B', True), ('is urban', True)]
    """
    parts = [part.strip() for part in _CLAUSE.split(text)]
    return [(part, _DENIAL.search(part) is None) for part in parts if re.search(r"\w", part)]


def published_normal_form(text: str) -> str:
    """The published normal form of a closed answer: lower case, white space and dots dropped (arXiv 2503.00743).

    Example:
        >>> published_normal_form("Storage Tanks .")
        'storagetanks'
    """
    return re.sub(r"[\s.]+", "", text.lower())


def published_exact_match(answer: str, solution: str) -> bool:
    """The published rule: whether an answer equals the solution in the published normal form.

    So "3.5" is right for "35", and "3.0" is wrong for "3". An empty answer is never right.

    Example:
        >>> published_exact_match("<answer>Rural.</answer>", "rural"), published_exact_match("", "")
        (True, False)
    """
    given = published_normal_form(extract_answer(answer))
    return bool(given) and given == published_normal_form(extract_answer(solution))
