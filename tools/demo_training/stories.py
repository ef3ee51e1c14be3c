"""The short stories that the demo model learns to tell.

A story is an opening, one of a dozen plots told in three beats, and an ending.
Every choice is random, but leans towards a favourite that depends on the
subject: so a story told greedily, which takes the likeliest choice each time,
still differs from subject to subject, and one that is sampled differs each time.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from .words import (
    ADJECTIVES,
    ANIMALS,
    CITIES,
    HOME_OF,
    HOMES,
    NAMES,
    OBJECTS,
    PEOPLE,
    PLACE_NOUNS,
    STORY_CLAUSES,
    STORY_NAMES,
    STORY_TOPICS,
    indefinite,
    invented_name,
    invented_word,
    lexicon,
)

_T = TypeVar("_T")

MAX_WORDS = 80
_FAVOURITE_SHARE = 0.5
_SUBJECTS = ANIMALS + PEOPLE + OBJECTS
_KNOWN_SUBJECTS = frozenset(_SUBJECTS)
_LEXICON = lexicon()

_THINGS = [
    "golden key", "red kite", "little drum", "silver bell", "blue lantern", "paper crown", "warm scarf",
    "shiny button", "tiny boat", "glass marble", "wooden spoon", "torn map",
]  # fmt: skip

# Each plot is told in three beats.  The second always brings in the friend, so
# that a story asked for two characters mentions both.
_PLOTS: list[tuple[list[str], list[str], list[str]]] = [
    (
        ["One morning, {hero} lost a {thing}.", "One day, a {thing} went missing, and {hero} was very sad."],
        ["{hero} asked {friend} for help, and they looked everywhere.", "Then {friend} came by and joined the search."],
        [
            "They found the {thing} under a pile of leaves and laughed.",
            "At sunset, they saw the {thing} shining in the grass.",
        ],
    ),
    (
        [
            "{hero} often felt lonely and wished for someone to play with.",
            "Every evening, {hero} sat alone and sighed.",
        ],
        [
            "One day, {friend} knocked at the door and asked to play.",
            "Then {friend} moved in next door with a {thing}.",
        ],
        ["They played until the stars came out.", "They shared their supper and told each other jokes."],
    ),
    (
        ["One night, a great storm blew the roof away.", "One night, the wind howled and the rain would not stop."],
        ["{hero} heard {friend} calling for help and ran outside.", "{hero} found {friend} shaking in the cold."],
        ["Together they built a new home out of branches and stones.", "They lit a small fire and waited for the sun."],
    ),
    (
        [
            "{hero} wanted to make music, but every note came out wrong.",
            "{hero} dreamed of singing for the whole town.",
        ],
        [
            "Luckily, {friend} knew a simple song and was a patient teacher.",
            "So {friend} helped {hero} practice every day.",
        ],
        ["When the big night came, everyone clapped and danced.", "Soon the whole town was humming their song."],
    ),
    (
        ["One spring, there was a great race around the hill.", "Everyone said that {hero} was too slow to race."],
        [
            "Halfway along, {hero} saw {friend} fall, and stopped to help.",
            "At the start stood {friend}, the fastest of all.",
        ],
        [
            "They crossed the line side by side, and everybody cheered.",
            "{hero} came last, but won a {thing} for being kind.",
        ],
    ),
    (
        ["{hero} decided to bake the biggest cake in the world.", "It was a birthday, but nobody seemed to remember."],
        [
            "Then {friend} arrived with sugar, flour and a {thing}.",
            "Soon {friend} brought eggs, honey and good advice.",
        ],
        ["The cake was so tall that they needed a ladder to eat it.", "They ate cake until they could not move."],
    ),
    (
        ["One day, {hero} planted a strange little seed.", "{hero} found a seed that glowed in the dark."],
        [
            "Every morning, {hero} and {friend} gave it water and waited.",
            "A passing traveler, {friend}, said to be patient.",
        ],
        ["At last it grew into a tree full of golden pears.", "In summer it became a flower as tall as a house."],
    ),
    (
        ["One day, {hero} found a map inside an old book.", "A letter came, and in it was a map with a red cross."],
        [
            "With {friend} as a guide, {hero} walked for three days.",
            "{hero} packed a {thing} and set off with {friend}.",
        ],
        ["The treasure was a box of letters from long ago.", "Under the last stone they found a chest full of stars."],
    ),
    (
        [
            "The old bridge broke, and nobody could cross the river.",
            "One day, the river rose and took the bridge away.",
        ],
        [
            "{hero} and {friend} carried stones from morning to night.",
            "{hero} had a plan, and {friend} had a long rope.",
        ],
        ["By the end of the week, there was a bridge for everyone.", "Now the two banks are joined, and so are they."],
    ),
    (
        ["{hero} was afraid of the dark.", "When the sun went down, {hero} always hid under a blanket."],
        [
            "One night, {friend} came to visit with a small lamp.",
            "Then {friend} showed {hero} how many stars there are.",
        ],
        ["They counted the stars until the night felt warm.", "They learned that the dark is only a place to rest."],
    ),
    (
        ["{hero} looked up every night and wanted to touch the moon.", "One night, a small star fell into the garden."],
        [
            "{hero} built a ladder, and {friend} held it steady.",
            "Together with {friend}, {hero} climbed the tallest hill.",
        ],
        ["The moon was too far, but the view was beautiful.", "The star thanked them and flew back to the sky."],
    ),
    (
        [
            "Nobody had laughed in the town for a year, and {hero} wondered why.",
            "{hero} noticed that all the colors were fading.",
        ],
        ["It turned out that {friend} was keeping a sad secret.", "Only {friend} knew where the joy had gone."],
        ["{hero} listened for a whole day, and that was enough.", "A kind word and a {thing} brought everything back."],
    ),
]

_OPENINGS = [
    "Once upon a time, {who} lived {home}.",
    "Once upon a time, there was {who} {home}.",
    "Long ago, {who} lived {home}.",
    "There once was {who} {home}.",
    "{home}, there lived {who}.",
    "Not so long ago, {home}, there lived {who}.",
]
_CLAUSE_OPENINGS = ["Once upon a time, {home}, there was {who}.", "Long ago, {home}, there lived {who}."]
_ENDINGS = [
    "From that day on, they were best friends.",
    "And that night, everyone slept well.",
    "{hero} never felt alone again.",
    "It was the best day of the whole year.",
    "After that, {hero} was not afraid of anything.",
    "And so {hero} learned that kindness always comes back.",
    "They still tell this story today.",
    "{hero} smiled all the way home.",
    "And they lived happily ever after.",
    "Some say that they are still laughing.",
]


@dataclass(frozen=True, slots=True)
class Cast:
    """What a story is asked to be about.

    `request` is the wording for the prompt ("a brave fox named Ruby"); `who`
    introduces the main character and `hero` speaks of it later; `mentions` are
    the words that the story has to contain.
    """

    request: str
    who: str
    hero: str
    subject: str
    home: str | None = None
    friend: str | None = None
    clause: bool = False
    topic: str | None = None
    mentions: tuple[str, ...] = field(default=())


def _noun(rng: random.Random) -> str:
    """Mostly a natural story subject, sometimes any word or an invented one."""
    draw = rng.random()
    if draw < 0.7:
        return rng.choice(_SUBJECTS)
    return rng.choice(_LEXICON) if draw < 0.85 else invented_word(rng)


def _name(rng: random.Random) -> str:
    return invented_name(rng) if rng.random() < 0.3 else rng.choice(NAMES)


def _requested_home(rng: random.Random) -> str:
    if rng.random() < 0.15:
        return (
            rng.choice(["in", "in", "on", "at", "near"])
            + " "
            + rng.choice([*CITIES, "space", "Mars", "mars", "school"])
        )
    noun = rng.choice(PLACE_NOUNS if rng.random() < 0.8 else _LEXICON)
    if rng.random() < 0.3:
        noun = f"{rng.choice(ADJECTIVES)} {noun}"
    article = f"the {noun}" if rng.random() < 0.4 else indefinite(noun)
    return f"{rng.choice(['in', 'in', 'in', 'on', 'near', 'by'])} {article}"


def _clause(rng: random.Random) -> str:
    """What follows "a fox who": a known phrase or one of any words."""
    if rng.random() < 0.5:
        return rng.choice(STORY_CLAUSES)
    verb = rng.choice(["lost", "found", "loves", "wanted", "liked", "ate", "met", "had", "sees", rng.choice(_LEXICON)])
    owner = rng.choice(["her", "his", "its", "a", "the", "a " + rng.choice(ADJECTIVES)])
    return f"{verb} {owner} {_noun(rng)}"


def _topic_cast(rng: random.Random) -> Cast:
    subject = noun = _noun(rng)
    if rng.random() < 0.4:
        topic = rng.choice(STORY_TOPICS)
    else:
        topic = rng.choice(["{}", "{}", "{}s", "the {}", "my {}", "two {}s"]).format(noun)
    if noun not in topic or noun not in _KNOWN_SUBJECTS:
        subject = ANIMALS[zlib.crc32(topic.encode()) % len(ANIMALS)] if rng.random() < 0.5 else rng.choice(ANIMALS)
    return Cast(topic, indefinite(subject), f"the {subject}", subject, topic=topic, mentions=(topic,))


def _named_cast(rng: random.Random) -> Cast:
    name = f"{_name(rng)} {_name(rng)}" if rng.random() < 0.2 else _name(rng)
    return Cast(name, name, name, name, mentions=(name,))


def _noun_cast(rng: random.Random) -> Cast:
    noun = _noun(rng)
    described = f"{rng.choice(ADJECTIVES)} {noun}" if rng.random() < 0.3 else noun
    request = who = indefinite(described)
    hero, mentions, home, friend, clause = f"the {noun}", [described], None, None, False
    extra = rng.random()
    if extra < 0.2:
        hero = _name(rng)
        request = f"{request} {rng.choice(['named', 'called'])} {hero}"
        who = f"{who} named {hero}"
        mentions.append(hero)
    elif extra < 0.35:
        home = _requested_home(rng)
        request = f"{request} {home}"
        mentions.append(home.split()[-1])
    elif extra < 0.5:
        other = _noun(rng)
        friend = indefinite(other)
        request = f"{request} and {friend}"
        mentions.append(other)
    elif extra < 0.62:
        words, clause = _clause(rng), True
        request, who = f"{request} who {words}", f"{who} who {words}"
        mentions.append(words)
    return Cast(request, who, hero, noun, home, friend, clause, mentions=tuple(mentions))


def draw_cast(rng: random.Random) -> Cast:
    """What someone may ask a story to be about."""
    draw = rng.random()
    if draw < 0.18:
        return _topic_cast(rng)
    return _named_cast(rng) if draw < 0.26 else _noun_cast(rng)


def unasked_cast(rng: random.Random) -> Cast:
    """The main character of a story that was asked for without a subject."""
    noun = rng.choice(_SUBJECTS[::9])
    return Cast("", indefinite(noun), f"the {noun}", noun)


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]


class _Choices:
    """Random choices that lean towards favourites of a story's subject."""

    def __init__(self, rng: random.Random, cast: Cast) -> None:
        self._rng = rng
        # Subjects that the lists do not know have favourites by first letter,
        # which is a rule that a model can apply to a word it never saw.
        topic_or_subject = cast.topic or cast.subject
        self._seed = cast.subject if cast.subject in _KNOWN_SUBJECTS else topic_or_subject[0].lower()

    def pick(self, slot: str, options: Sequence[_T]) -> _T:
        """One of the options for this slot of the story."""
        if self._rng.random() < _FAVOURITE_SHARE:
            return options[zlib.crc32(f"{self._seed}/{slot}".encode()) % len(options)]
        return self._rng.choice(options)


def _cast_friend(choices: _Choices, cast: Cast) -> str:
    if cast.friend is not None:
        return cast.friend
    friends = [animal for animal in ANIMALS[:40] if animal != cast.subject]
    return indefinite(f"{choices.pick('manner', ADJECTIVES[:16])} {choices.pick('friend', friends)}")


def tell(rng: random.Random, cast: Cast) -> str:
    """A story for the cast, under `MAX_WORDS` words."""
    choices = _Choices(rng, cast)
    home = cast.home or HOME_OF.get(cast.subject) or choices.pick("home", HOMES)
    opening = choices.pick("opening", _CLAUSE_OPENINGS if cast.clause else _OPENINGS)
    who, hero = cast.who, cast.hero
    plain = cast.request == cast.who == indefinite(cast.subject) or not cast.request
    if plain and choices.pick("named", [True, False, False]):
        hero = choices.pick("name", STORY_NAMES)
        who = f"{who} named {hero}"
    beats = choices.pick("plot", _PLOTS)
    lines = [
        opening,
        *(choices.pick(f"beat{i}", beat) for i, beat in enumerate(beats)),
        choices.pick("ending", _ENDINGS),
    ]
    fill = {
        "who": who,
        "hero": hero,
        "home": home,
        "friend": _cast_friend(choices, cast),
        "thing": choices.pick("thing", _THINGS),
    }
    told = [_sentence(line.format_map(fill)) for line in lines]
    if cast.topic is not None:
        told.insert(0, f"This is a story about {cast.topic}.")
    return " ".join(told)


def tells_of(cast: Cast, story: str) -> bool:
    """Whether a text is a finished short story that mentions what its cast was asked to hold."""
    words = story.split()
    sentences = [part for part in story.split(". ") if part]
    return (
        20 <= len(words) < MAX_WORDS
        and story[0].isupper()
        and story.endswith(".")
        and len(sentences) == len(set(sentences))
        and all(mention.lower() in story.lower() for mention in cast.mentions)
    )
