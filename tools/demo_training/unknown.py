"""Everything that the demo model declines politely."""

from __future__ import annotations

from functools import partial

from .copying import passage
from .exchange import Exchange, Pen, command, matches, normal, question, worded
from .numbers import operand
from .talk import ABILITIES, HELLOS, TALK
from .words import ADJECTIVES, ANIMALS, CITIES, COUNTRIES, FOODS, OBJECTS, UNKNOWN_TOPICS, invented_word, split_words

_UNKNOWN_QUESTIONS = [
    "what is the capital of {country}", "who wrote {name}", "who invented the {noun}", "how far is the {noun}",
    "why is the {noun} {adjective}", "what is {topic}", "how does {topic} work", "what do you think about {topic}",
    "when was {name} born", "who is the president of {country}", "where is {city}", "how old is {name}",
    "what is the weather in {city}", "what time is it", "what day is it today", "how many people live in {country}",
    "what is the meaning of {word}", "what does {word} mean", "do you like {topic}", "have you been to {city}",
    "what is the best {noun}", "how do I cook {food}", "how do I make a {noun}", "is a {noun} a {other}",
    "can you write code", "do you know {topic}", "who is {name}", "what is a {noun}", "what is {word}",
    "why do people like {topic}", "how much does a {noun} cost", "where can I buy a {noun}", "are you sure",
    "can you drive a {noun}", "what is the population of {city}", "who won the game", "is {topic} hard",
    "how many {noun}s are there", "what color is the {noun}", "how do you say {word} in Spanish", "why",
    "what is the largest {noun}", "who painted the {noun}", "what happened in {year}",
    "what is the square root of {year}",
]  # fmt: skip
_UNKNOWN_COMMANDS = [
    "explain {topic}", "tell me about {topic}", "translate {word} to French", "translate {word} into German",
    "write a poem about {topic}", "write a function that sorts a list", "write python code for {topic}",
    "summarize this article", "give me advice about {topic}", "sing a song about {topic}", "draw a {noun}",
    "describe {topic}", "describe a {noun}", "recommend a book about {topic}", "plan a trip to {city}",
    "compare a {noun} and a {other}", "write an essay on {topic}", "define {word}", "find the bug", "open the {noun}",
    "play {word}", "search for {word}", "turn on the {noun}", "explain how a {noun} works", "fix my {noun}",
    "write an email to {name}", "give me a recipe for {food}", "teach me {topic}", "prove that {topic} is real",
]  # fmt: skip
_UNKNOWN_TASKS = [
    "{verb} these words: {text}", "{verb} the words in: {text}", "{verb} this: {text}", "{verb}: {text}",
    "{verb} {text}",
    "how many words are in: {text}", "how many letters are in {word}", "what is the opposite of {word}",
    "what rhymes with {word}", "is {year} a prime number", "what comes after {year}", "{verb} the {noun} {text}",
    "what is the first letter of {word}", "which word is longer: {text}", "{verb} the sentence: {text}",
]  # fmt: skip
_UNKNOWN_VERBS = split_words(
    "sort shuffle capitalize count join translate summarize remove rank classify correct rewrite shorten expand "
    "encode decode parse compare combine delete find rhyme match group label explain solve analyze"
)
_UNKNOWN_STATEMENTS = [
    "the capital of {country} is", "I like {topic}", "I have a {noun}", "my {noun} is {adjective}", "the {noun} is",
    "{word}", "{word} {other}", "{adjective} {noun}", "I do not understand", "{topic}", "the best {noun} is",
    "{name} is my friend", "I live in {city}", "today is {adjective}", "there is a {noun} in the {other}",
    "roses are red", "the answer is", "I am {adjective}", "we went to {city}", "{word} {other} {adjective}", "because",
]  # fmt: skip
_HARD_QUESTIONS = [
    "what is {a} times {b}", "what is {a} * {b}", "what is {a} divided by {b}", "what is {big} + {b}", "{a} * {b}",
    "what is {big} plus {huge}", "{big} + {huge}", "multiply {a} by {b}", "{a} x {b}", "{a} / {b}", "divide {a} by {b}",
    "add {big} and {huge}", "what is {big} minus {a}", "what is {big} - {b}", "{a} times {b}",
    "how much is {a} times {b}",
]  # fmt: skip
_SPOKEN_FOR = frozenset(normal(text) for bodies, _, _ in TALK for text in bodies) | {normal(text) for text in HELLOS}
_UNKNOWN = f"I do not know that: I am only a tiny demo model. I can {ABILITIES}."
_TOO_HARD = "That is too hard for me: I only add and subtract numbers from 0 to 99."


def other(pen: Pen) -> Exchange:
    """Anything else: a polite word that this is beyond a tiny model."""
    if pen.chance(0.15):
        big, huge = pen.rng.randint(100, 999), pen.rng.randint(100, 99999)
        numbers = {"a": operand(pen), "b": operand(pen), "big": big, "huge": huge}
        prompt = question(pen, pen.rng.choice(_HARD_QUESTIONS), numbers)
        return Exchange("other", prompt, _TOO_HARD, f"other:{normal(prompt)}", partial(matches, "too hard"), None, True)
    prompt = _unknown_prompt(pen)
    while normal(prompt) in _SPOKEN_FOR:
        prompt = _unknown_prompt(pen)
    return Exchange("other", prompt, _UNKNOWN, f"other:{normal(prompt)}", partial(matches, "do not know"), None, True)


def _unknown_prompt(pen: Pen) -> str:
    fields: dict[str, object] = {
        "noun": pen.rng.choice(OBJECTS + ANIMALS) if pen.chance(0.6) else pen.word(),
        "other": pen.rng.choice(OBJECTS),
        "topic": pen.rng.choice(UNKNOWN_TOPICS) if pen.chance(0.7) else pen.word(),
        "country": pen.rng.choice(COUNTRIES) if pen.chance(0.7) else pen.name(),
        "city": pen.rng.choice(CITIES) if pen.chance(0.7) else pen.name(),
        "adjective": pen.rng.choice(ADJECTIVES),
        "name": pen.name(),
        "word": pen.word(),
        "food": pen.rng.choice(FOODS),
        "year": pen.rng.randint(100, 2100),
        "verb": invented_word(pen.rng) if pen.chance(0.2) else pen.rng.choice(_UNKNOWN_VERBS),
        "text": passage(pen),
    }
    if pen.chance(0.15):
        return command(pen, pen.rng.choice(_UNKNOWN_TASKS), fields, open_ended=True)
    prompt = worded(pen, _UNKNOWN_COMMANDS, _UNKNOWN_QUESTIONS + _UNKNOWN_STATEMENTS, fields)
    return prompt.removesuffix("?") if pen.chance(0.1) else prompt
