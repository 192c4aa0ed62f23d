"""Captions without what a face looks like, which the identity tokens are to say."""

from __future__ import annotations

import re


_PEOPLE = (
    r"(?:man|men|woman|women|person|people|boy|boys|girl|girls|guy|guys|lady|ladies|gentleman|gentlemen|male|female|child"
    r"|children|kid|kids|baby|toddler|teen|teenager|adult|adults|bride|groom|model|actor|actress)\b"
)
_COLORS = (
    "black|brown|dark|light|fair|pale|white|gray|grey|silver|blond|blonde|golden|red|auburn|ginger|blue|green|hazel|amber"
    "|brunette|chestnut|platinum|salt|pepper|tan|olive|ebony|bright|deep"
)
_SHAPES = (
    "long|short|medium|shoulder|length|curly|wavy|straight|thick|thin|full|bushy|trimmed|neat|shaved|braided|spiky|messy"
    "|slicked|receding|big|small|large|narrow|wide|round|oval|square|almond|hooded|deep-set|high|sharp|strong|chiseled|smooth"
)
_DESCRIPTIONS = f"{_COLORS}|{_SHAPES}"
# adjectives of people, left out before one of them
_ADJECTIVES = (
    r"(?:young|younger|old|older|elderly|aged|middle[ -]aged|senior|teenage|adult|youthful|bald|balding|bearded|unshaven"
    r"|clean[ -]shaven|mustached|moustached|freckled|wrinkled|blond|blonde|brunette|redheaded|red-headed|gray-haired"
    r"|[\w-]+[ -](?:haired|eyed|skinned|bearded|faced|complexioned)|\d+[ -]years?[ -]olds?"
    r"|asian|african|african[ -]american|caucasian|hispanic|latino|latina|indian|european|arab|middle[ -]eastern|chinese"
    r"|japanese|korean)\b"
)
# what a phrase is left out for, wherever it stands in it
_FEATURES = re.compile(
    r"\b(?:hair|hairs|hairstyle|hairdo|haircut|hairline|beard|goatee|stubble|mustache|moustache|sideburns|bangs|ponytail"
    r"|pigtails|braids?|dreadlocks|afro|curls|bald|balding|unshaven|clean[ -]shaven|eyebrows?|eyelashes|skin|complexion"
    r"|freckles?|wrinkles|dimples|cheekbones|jawline|nose|ethnicity|descent"
    r"|in an? (?:\w+ )?(?:bun|updo|bob|knot|topknot)|aged \d+|\d+[ -]years?[ -]old|years old|(?:his|her|their) (?:early |mid |late |mid-)?"
    r"(?:\d0s|teens|twenties|thirties|forties|fifties|sixties|seventies|eighties)"
    rf"|(?:{_DESCRIPTIONS}) (?:[\w-]+ )?(?:eyes|lips|face|jaw|forehead)"
    r"|(?:eyes|lips|face|jaw|forehead) (?:is|are) (?:\w+ )?"
    rf"(?:{_DESCRIPTIONS}))\b",
    re.IGNORECASE,
)
_BEFORE_PEOPLE = re.compile(
    rf"\b(?:(an?) )?((?:(?:{_ADJECTIVES}|(?:black|white|brown)(?= {_PEOPLE}))(?:,? and |, | ))+)"
    rf"(?=((?:(?!(?:and|with|of|in|on|at|the|a|an)\b)[\w-]+ ){{0,2}}{_PEOPLE}))",
    re.IGNORECASE,
)
_NOUNS = re.compile(r"\b(?:blonde|brunette|redhead)s?\b", re.IGNORECASE)
# where a phrase begins: at punctuation, or at one of these words
_VERBS = (
    "who|has|have|had|having|is|are|was|wears|wearing|wore|holding|holds|standing|sitting|looking|smiling|posing|walking"
    "|dressed|featuring|sporting|showing|in|on|at|against|near|beside|behind|under|while|as|for|outside|inside|during"
)
_BOUNDARY = re.compile(
    rf"(?P<mark>[.;:!?]+)\s+|(?P<comma>,)\s+(?P<then>and\s+)?|\s+(?P<and>and|but)\s+|\s+(?=(?:with|{_VERBS})\b)",
    re.IGNORECASE,
)
_BEGINS_ITSELF = re.compile(rf"(?:with|{_VERBS}|\w+ing)\b", re.IGNORECASE)
_ANOTHER_PERSON = re.compile(rf"(?:an?|the|two|three|another) (?:[\w-]+ )?{_PEOPLE}", re.IGNORECASE)
_LAST_WORD = re.compile(rf"\b(?:{_DESCRIPTIONS})$", re.IGNORECASE)
_FIRST_WORD = re.compile(rf"(?:{_DESCRIPTIONS})\b", re.IGNORECASE)


def without_face(caption: str) -> str:
    r"""
    An English caption without hair, beard, skin, eyes, age, ethnicity and the shape of the face, by lists of words. Adjectives
    before a person are taken out (`a young bearded man` becomes `a man`); of the rest, phrases, which begin at punctuation
    and at words such as *and*, *with*, *wearing* and *in*, are left out whole where they hold a listed word. Expression,
    glasses, hats, make-up, clothes and *man* or *woman* stay. What the lists do not know stays; see "Captions" in the
    documentation.

    Returns:
        `str`: The caption; empty where nothing is left.
    """
    text = " ".join(caption.split())
    text = _BEFORE_PEOPLE.sub(_with_article, text)
    kept = ""
    lead = ""  # the word that began a phrase left out, such as "with": what "and" adds to that phrase is joined by it
    mark = ""  # the punctuation before a sentence that is left out so far
    subject_left_out = False  # "her hair is long": what is said of it goes too
    for number, (joint, phrase) in enumerate(_phrases(text)):
        begins_sentence = number == 0 or joint[0] in ".;:!?"
        subject_left_out = subject_left_out and not begins_sentence and not joint.startswith(",")
        if subject_left_out or _FEATURES.search(phrase):
            head = _BEGINS_ITSELF.match(phrase)
            lead = head.group() if head else lead
            mark = joint if begins_sentence else mark
            subject_left_out = subject_left_out or begins_sentence
            continue
        if mark and not begins_sentence:
            joint = mark
        elif lead and joint.endswith(("and ", "but ")) and not _ANOTHER_PERSON.match(phrase):
            joint = " " if _BEGINS_ITSELF.match(phrase) else f" {lead} "
        lead = mark = ""
        kept += joint + phrase if kept else phrase
    kept = _NOUNS.sub("person", kept).strip(" ,;:") + mark.strip()
    if not any(letter.isalpha() for letter in kept):
        return ""
    return kept[0].upper() + kept[1:] if caption.lstrip()[0].isupper() else kept


def _phrases(text: str) -> list[tuple[str, str]]:
    """The phrases of a text, each with what joins it to the one before: put together again, they are the text."""
    phrases: list[tuple[str, str]] = []
    joint, start = "", 0
    for boundary in _BOUNDARY.finditer(text):
        before, after = text[start : boundary.start()], text[boundary.end() :]
        # "long and curly hair" is one phrase
        if (boundary["comma"] or boundary["and"]) and _LAST_WORD.search(before) and _FIRST_WORD.match(after):
            continue
        if not before:
            continue
        phrases.append((joint, before))
        joint, start = boundary.group(), boundary.end()
    phrases.append((joint, text[start:]))
    return phrases


def _with_article(match: re.Match[str]) -> str:
    """What stood before a person without its adjectives, with the article that fits the word after them."""
    article, following = match.group(1), match.group(3)
    if article is None:
        return ""
    fitting = "an" if re.match(r"(?!uni)[aeiou]", following, re.IGNORECASE) else "a"
    return f"{fitting.capitalize() if article[0].isupper() else fitting} "
