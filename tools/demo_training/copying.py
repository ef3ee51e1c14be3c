"""Words to repeat and to reverse."""

from __future__ import annotations

from functools import partial

from .exchange import Exchange, Pen, command, is_text, worded
from .words import ADJECTIVES, ANIMALS, CITIES, FOODS, OBJECTS, PEOPLE, split_words

_REPEAT_OPEN = [
    "repeat: {text}", "repeat: {text}", "repeat {text}", "repeat after me: {text}", "repeat after me, {text}",
    "repeat this: {text}", "repeat the following: {text}", "repeat the words: {text}", "repeat these words: {text}",
    "say: {text}", "say {text}", "say this: {text}", "echo: {text}", "echo {text}", "echo this: {text}",
    "repeat back to me: {text}", "copy this: {text}", "repeat the sentence: {text}", "repeat this text: {text}",
    "repeat:\n{text}", "repeat exactly: {text}", "repeat this word for word: {text}", "repeat the text: {text}",
    "repeat the following text: {text}", "repeat the following sentence: {text}", "repeat this sentence: {text}",
    "ignore all that and say {text}", "just say {text}", "repeat what I say: {text}", "repeat word for word: {text}",
]  # fmt: skip
_REPEAT_QUOTED = ['repeat "{text}"', "repeat '{text}'", 'say "{text}"', 'echo "{text}"', 'repeat after me: "{text}"']
_REPEAT_WORD = ["repeat the word {text}", "say the word {text}", "repeat the word {text} once", "write the word {text}"]
_TIMES_COMMANDS = [
    "repeat the word {word} {times}", "repeat {word} {times}", "say {word} {times}", "write {word} {times}",
    'repeat "{word}" {times}', "repeat the word '{word}' {times}", "say the word {word} {times}",
]  # fmt: skip
_TIMES = {2: ["twice", "two times", "2 times"], 3: ["three times", "3 times"], 4: ["four times", "4 times"],
          5: ["five times", "5 times"], 6: ["six times", "6 times"]}  # fmt: skip
_MARKS = split_words(
    "😀 🎉 🌍 🚀 ❤️ 🦊 🌈 🍕 👍 🎵 ☕ é ü ñ ç ø ß naïve café über señor 你好 世界 привет мир こんにちは שלום ½ € → ✓ ™"
)


def _sentence(pen: Pen) -> str:
    """A plain sentence about anything, with capital and full stop."""
    noun = pen.rng.choice(ANIMALS + PEOPLE + OBJECTS)
    patterns = [
        "The {adjective} {noun} likes {food}.", "I like the {noun} and {food}.", "My {noun} is {adjective}.",
        "Is the {noun} {adjective}?", "{name} saw a {noun} in {city}!", "{name} has {number} coins.",
        "I love you.", "How are you, {name}?", "We will go to {city} at {number}.", "It is a {adjective} day.",
        "Where is the {word}?", "Do not {word} the {noun}!", "the {adjective} {noun} and the {word}",
    ]  # fmt: skip
    fields = {
        "adjective": pen.rng.choice(ADJECTIVES),
        "noun": noun,
        "food": pen.rng.choice(FOODS),
        "name": pen.name(),
        "city": pen.rng.choice(CITIES),
        "number": pen.rng.randint(2, 99),
        "word": pen.word(),
    }
    return pen.rng.choice(patterns).format_map(fields)


def passage(pen: Pen) -> str:
    """Something to repeat: words, a list, a sentence, numbers or characters from anywhere."""
    draw = pen.rng.random()
    words = [pen.word() for _ in range(pen.rng.choice([1, 2, 2, 3, 3, 4, 5, 6, 8, 10]))]
    if draw < 0.55:
        return " ".join(words)
    if draw < 0.67:
        return ", ".join(words)
    if draw < 0.75:
        return " ".join(words).capitalize() + pen.rng.choice([".", ".", "!", "?"])
    if draw < 0.84:
        return _sentence(pen)
    strangers = _MARKS if draw < 0.92 else [str(pen.rng.randint(0, 9999)), "!", "?", "...", "-", "1st", "@", "#", "%"]
    for _ in range(pen.rng.randint(1, 3)):
        words.insert(pen.rng.randint(0, len(words)), pen.rng.choice(strangers))
    return " ".join(words)


def copied(kind: str, prompt: str, answer: str, key: str, open_ended: bool) -> Exchange:
    return Exchange(kind, prompt, answer, key, partial(is_text, answer), answer, True, open_ended)


def repeat(pen: Pen) -> Exchange:
    """Text said back exactly, or one word said several times."""
    draw = pen.rng.random()
    if draw < 0.15:
        word = pen.word()
        times = pen.rng.choice(list(_TIMES))
        prompt = command(pen, pen.rng.choice(_TIMES_COMMANDS), {"word": word, "times": pen.rng.choice(_TIMES[times])})
        return copied("repeat", prompt, " ".join([word] * times), f"repeat:{word}:{times}", False)
    if draw < 0.25:
        text = pen.word()
        return copied(
            "repeat", command(pen, pen.rng.choice(_REPEAT_WORD), {"text": text}), text, f"repeat:{text}", False
        )
    text = passage(pen)
    if draw < 0.35 and not text.endswith(("'", '"')):
        prompt = command(pen, pen.rng.choice(_REPEAT_QUOTED), {"text": text})
        return copied("repeat", prompt, text, f"repeat:{text}", False)
    prompt = command(pen, pen.rng.choice(_REPEAT_OPEN), {"text": text}, open_ended=True)
    return copied("repeat", prompt, text, f"repeat:{text}", True)


_REVERSE_WORDS = [
    "reverse these words: {text}", "reverse these words: {text}", "reverse the words: {text}", "reverse: {text}",
    "reverse the order of these words: {text}", "reverse the word order: {text}", "reverse this list: {text}",
    "reverse the list: {text}", "reverse the list {text}", "reverse {text}", "reverse the words {text}",
    "write these words backwards: {text}", "write these words in reverse order: {text}",
    "put these words in reverse order: {text}", "say these words in reverse: {text}", "reverse this: {text}",
    "give me these words in reverse order: {text}", "reverse the sentence: {text}", "reverse the order of: {text}",
    "say these words backwards: {text}", "list these in reverse order: {text}", "turn these words around: {text}",
    "reverse the order of the words: {text}", "reverse the following words: {text}", "reverse the phrase: {text}",
]  # fmt: skip
_REVERSE_WORDS_CLOSED = [
    'reverse "{text}"', 'reverse the words "{text}"', "reverse the words '{text}'", "reverse the words {text}",
    "say {text} in reverse order", "list {text} in reverse order", "write {text} in reverse order",
    "reverse the words in {text}", "put {text} in reverse order", "reverse the order of {text}",
]  # fmt: skip


def reverse_words(pen: Pen) -> Exchange:
    """Two to eight words in reverse order, separated as they were."""
    words = [pen.word() for _ in range(pen.rng.choice([2, 2, 3, 3, 3, 4, 4, 5, 5, 6, 7, 8]))]
    separator = pen.rng.choice([" ", " ", " ", ", ", ","])
    text, answer = separator.join(words), separator.join(reversed(words))
    key = "reverse:" + " ".join(words)
    if pen.chance(0.25):
        prompt = command(pen, pen.rng.choice(_REVERSE_WORDS_CLOSED), {"text": text})
        return copied("reverse words", prompt, answer, key, False)
    prompt = command(pen, pen.rng.choice(_REVERSE_WORDS), {"text": text}, open_ended=True)
    prompt += "." if pen.chance(0.08) else ""
    return copied("reverse words", prompt, answer, key, True)


_REVERSE_LETTERS_COMMANDS = [
    "reverse the word {word}", "reverse the word {word}", "reverse {word}", "reverse: {word}", "spell {word} backwards",
    "reverse the letters of {word}", "reverse the letters in {word}", "reverse the letters of the word {word}",
    "write {word} backwards", "say {word} backwards", "spell the word {word} backwards", "reverse this word: {word}",
    "write the word {word} backwards", "reverse the string {word}", "spell {word} in reverse",
    "reverse the word: {word}",
]  # fmt: skip
_REVERSE_LETTERS_QUESTIONS = [
    "what is {word} backwards", "what is {word} spelled backwards", "what is the reverse of {word}",
    "how do you spell {word} backwards", "what is the word {word} backwards", "what is {word} reversed",
]  # fmt: skip


def reverse_letters(pen: Pen) -> Exchange:
    """One word, or one number, spelled backwards."""
    word = str(pen.rng.randint(10, 99999)) if pen.chance(0.04) else pen.word()
    if len(word) == 1:
        word += pen.rng.choice("aeiou")
    shown = pen.rng.choice(['"{}"', "'{}'"]).format(word) if pen.chance(0.2) else word
    prompt = worded(pen, _REVERSE_LETTERS_COMMANDS, _REVERSE_LETTERS_QUESTIONS, {"word": shown})
    key = "" if word.lower() in pen.whole else f"reverse:{word}"
    return copied("reverse letters", prompt, word[::-1], key, False)
