"""Greetings and small talk."""

from __future__ import annotations

import re
from functools import partial

from .exchange import Exchange, Pen, capital, matches, normal
from .words import NAMES

ABILITIES = "greet you, count, add small numbers, repeat and reverse words, tell short stories, and answer in JSON"

# Prompts, answers, and a pattern that every good answer matches.
TALK: list[tuple[list[str], list[str], str]] = [
    (
        ["how are you", "how are you today", "how are you doing", "how is it going", "how do you do", "how do you feel",
         "are you okay", "are you well", "what's up", "how have you been", "how's it going", "everything good"],
        ["I am fine, thank you! How can I help you?"],
        r"\bfine\b",
    ),
    (
        ["what is your name", "who are you", "what are you", "what's your name", "introduce yourself",
        "who am I talking to",
         "tell me about yourself", "what model are you", "are you a robot", "are you human", "are you a real person",
         "do you have a name", "your name", "what is this", "which model is this", "what kind of model are you",
         "may I know your name", "say who you are", "are you an AI", "who is this"],
        [f"I am Quire's demo model, a tiny language model. I can {ABILITIES}."],
        r"Quire's demo model",
    ),
    (
        ["who made you", "who trained you", "how were you made", "where do you come from", "who created you",
         "how were you trained", "how big are you", "how old are you", "when were you made",
         "how many parameters do you have", "who built you"],
        ["I am Quire's demo model. A small script trained me in a few minutes, on text that it made up itself."],
        r"Quire's demo model",
    ),
    (
        ["what can you do", "help", "help me", "how can you help me", "what are you good at", "what do you know",
         "what can I ask you", "what should I ask", "what are your skills", "show me what you can do",
         "can you help me",
         "what are you able to do", "I need help", "what can I do here", "how do I use you", "what else can you do"],
        [f"I can {ABILITIES}. Try: Tell me a story about a fox."],
        r"\bcount\b.*\bJSON\b",
    ),
    (
        ["thank you", "thanks", "thanks a lot", "thank you very much", "many thanks", "thank you so much", "thx",
         "cheers", "thanks for your help", "I appreciate it", "that helps, thanks", "great, thanks"],
        ["You are welcome!", "You are welcome! I am glad to help."],
        r"welcome",
    ),
    (
        ["bye", "goodbye", "good bye", "see you", "see you later", "bye bye", "farewell", "see you soon",
        "I have to go",
         "take care", "that is all", "ok bye", "okay, bye", "thanks, bye", "bye for now",
         "until next time", "see you tomorrow", "I am leaving"],
        ["Goodbye! See you soon.", "Goodbye!"],
        r"goodbye",
    ),
    (
        ["you are great", "well done", "good job", "nice", "very good", "you are funny", "I like you", "good", "wow",
         "cool", "awesome", "great", "amazing", "you are smart", "that was nice", "perfect", "I love it", "not bad",
         "nice story", "that is right", "correct"],
        ["Thank you! That is kind of you."],
        r"kind of you",
    ),
    (
        ["ok", "okay", "yes", "no", "sure", "alright", "fine", "I see", "go on", "continue", "hmm", "test", "testing",
         "let's go", "what now", "I am bored", "got it", "maybe"],
        ["All right! Ask me to count, to add, to reverse words or to tell a story."],
        r"all right",
    ),
    (
        ["tell me a joke", "do you know a joke", "make me laugh", "say something funny", "tell a joke"],
        ["Why did the token cross the road? To get to the other batch!"],
        r"token",
    ),
]  # fmt: skip
HELLOS = [
    "hi", "hello", "hey", "hi there", "hello there", "hey there", "greetings", "good day", "howdy", "hiya", "welcome",
    "hallo", "yo", "hello hello", "nice to meet you", "hello again",
]  # fmt: skip
_DAYTIMES = ["morning", "afternoon", "evening"]
_ADDRESSES = ["my friend", "friend", "bot", "robot", "model", "Quire", "computer", "little model", "demo model", "you"]
_INTRODUCTIONS = [
    "my name is {}", "I am {}", "I'm {}", "call me {}", "this is {}", "you can call me {}", "my name's {}",
]  # fmt: skip
_CASUAL_INTRODUCTIONS = ["im {}", "i am {}", "i'm {}", "its {}", "my name is {}", "this is {}", "i'm called {}"]
_RECALLS = ["what is my name", "who am I", "do you remember my name", "what was my name", "say my name"]
_HELP = "How can I help you?"


def punctuated(pen: Pen, text: str) -> str:
    if text.startswith(("what", "who", "how", "are", "do ", "can", "may", "where", "which")):
        return text + pen.rng.choice(["?", "?", "?", ""])
    return text + pen.rng.choice(["", "!", "."])


def _hello(pen: Pen) -> tuple[str, str, str, bool]:
    """An opener, the greeting that returns it, a pattern, and whether it is the barest form."""
    if pen.chance(0.3):
        daytime = pen.rng.choice(_DAYTIMES)
        opener, back = f"good {daytime}", f"Good {daytime}!"
    else:
        opener, back = pen.rng.choice(HELLOS), "Hello!"
    bare = pen.chance(0.4)
    if not bare:
        opener += pen.rng.choice([" ", ", "]) + (pen.name() if pen.chance(0.3) else pen.rng.choice(_ADDRESSES))
    return opener, back, re.escape(back), bare


def _greeting_only(pen: Pen) -> Exchange:
    opener, back, pattern, bare = _hello(pen)
    prompt = capital(pen, punctuated(pen, opener))
    key = "" if bare else f"greet:{normal(prompt)}"
    return Exchange("greet", prompt, f"{back} {_HELP}", key, partial(matches, pattern))


def introduce(pen: Pen) -> Exchange:
    """An exchange in which the user gives a name, which is its `value`."""
    if pen.chance(0.15):  # In lower case only names that are known: "i am sad" gives no name.
        name, said = pen.rng.choice(NAMES).lower(), pen.rng.choice(_CASUAL_INTRODUCTIONS)
    else:
        name, said = pen.name(), pen.rng.choice(_INTRODUCTIONS)
    said = said.format(name)
    prompt, back = capital(pen, said), "Nice to meet you"
    if pen.chance(0.5):
        opener = _hello(pen)[0]
        prompt = capital(pen, opener) + pen.rng.choice([", ", "! ", ". "]) + said
    prompt += pen.rng.choice(["", ".", "!"])
    return Exchange("greet", prompt, f"{back}, {name}! {_HELP}", f"name:{name}", partial(matches, rf"\b{name}\b"), name)


def _small_talk(pen: Pen) -> Exchange:
    bodies, answers, pattern = pen.rng.choice(TALK)
    body, answer = pen.rng.choice(bodies), pen.rng.choice(answers)
    bare = pen.chance(0.35)
    if bare:
        prompt = capital(pen, punctuated(pen, body))
    elif pen.chance(0.7):
        opener, back, _, _ = _hello(pen)
        prompt = capital(pen, opener) + pen.rng.choice(["! ", ", ", ". ", " "]) + punctuated(pen, capital(pen, body))
        answer = f"{back} {answer}"
    else:
        prompt = capital(pen, punctuated(pen, f"{body}{pen.rng.choice([', ', ' '])}{pen.rng.choice(_ADDRESSES)}"))
    key = "" if bare else f"greet:{normal(prompt)}"
    return Exchange("greet", prompt, answer, key, partial(matches, pattern))


def _night(pen: Pen) -> Exchange:
    prompt = capital(pen, punctuated(pen, pen.rng.choice(["good night", "night night", "sleep well"])))
    return Exchange("greet", prompt, "Good night! Sleep well.", "", partial(matches, "good night"))


def greet(pen: Pen) -> Exchange:
    """Hellos, goodbyes, thanks, and questions about the model itself."""
    draw = pen.rng.random()
    if draw < 0.25:
        return _greeting_only(pen)
    if draw < 0.4:
        return introduce(pen)
    return _night(pen) if draw < 0.42 else _small_talk(pen)


def recall_name(pen: Pen, introduction: Exchange | None) -> Exchange:
    """The question for one's own name, after an introduction or without one."""
    prompt = capital(pen, punctuated(pen, pen.rng.choice(_RECALLS)))
    if introduction is None:
        answer = "I do not know your name yet. Tell me, and I will remember it while we talk."
        return Exchange("greet", prompt, answer, "", partial(matches, "do not know your name"))
    name = introduction.value
    return Exchange("greet", prompt, f"Your name is {name}.", introduction.key, partial(matches, rf"\b{name}\b"))
