"""The words that the demo model's training text is made of.

Everything here was typed for this file; nothing was downloaded.  The lists
serve two purposes: some fill slots where meaning matters (animals, colours,
names, homes of story characters), and all of them together are the lexicon
from which words to repeat and to reverse are drawn.
"""

from __future__ import annotations

import random
import string


def split_words(text: str) -> list[str]:
    """The words of a text that may span lines."""
    return text.split()


ANIMALS = split_words("""
fox owl bear wolf rabbit mouse cat dog horse cow pig sheep goat duck goose hen
rooster frog toad turtle snail bee ant spider butterfly moth fish whale dolphin
shark crab octopus seal penguin lion tiger elephant monkey giraffe zebra hippo
camel kangaroo koala panda deer squirrel hedgehog badger otter beaver bat crow
raven robin sparrow eagle hawk swan parrot lizard snake crocodile dragon unicorn
puppy kitten donkey mole
""")

PEOPLE = split_words("""
knight wizard witch king queen prince princess pirate sailor farmer baker cook
teacher doctor painter singer dancer gardener tailor miller hunter fisherman boy
girl child man woman giant fairy elf ghost monster robot astronaut clown inventor
shepherd traveler grandmother grandfather student soldier explorer mermaid
snowman scientist
""")

OBJECTS = split_words("""
boat train car ship tree flower cloud star lamp clock teapot spoon cup kettle
sock shoe hat coat button drum bell violin piano book pencil map key box chair
table bed door window house tower castle bridge kite balloon ball doll candle
mirror ring stone leaf feather shell pumpkin potato carrot snowflake toaster
umbrella bicycle rocket computer broom bucket ladder basket blanket pillow
""")

COLORS = split_words("red blue green yellow orange purple pink brown black white gray gold silver")
FRUITS = split_words("apple banana pear plum cherry grape lemon peach mango melon kiwi fig")
FOODS = split_words("bread cheese soup rice pasta pizza cake honey salad butter egg pie")
DAYS = split_words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
MONTHS = split_words("January February March April May June July August September October November December")
CITIES = split_words(
    "Paris London Rome Berlin Madrid Tokyo Cairo Lima Oslo Vienna Dublin Athens Boston "
    "Chicago Lisbon Prague Delhi Sydney Toronto Seoul"
)
COUNTRIES = split_words(
    "France Spain Italy Germany Japan China India Brazil Canada Mexico Egypt Kenya Peru "
    "Norway Sweden Poland Greece Turkey Chile Australia"
)
VEGETABLES = split_words("carrot potato onion tomato pea bean cabbage corn leek radish")
SHAPES = split_words("circle square triangle star oval diamond cube cone")
WEATHER = split_words("rain snow sun wind fog storm hail cloud frost")
TOYS = split_words("ball doll kite drum train puzzle robot yoyo top")
CLOTHES = split_words("hat coat shirt sock shoe scarf glove dress belt boot")
TOOLS = split_words("hammer saw drill screw nail ladder brush knife shovel rope")
INSTRUMENTS = split_words("piano violin drum flute guitar trumpet harp cello bell")
SPORTS = split_words("football tennis golf hockey rugby chess boxing swimming running")
DRINKS = split_words("water milk tea coffee juice cocoa soda cider")
BIRDS = split_words("owl robin crow swan hawk eagle duck goose parrot sparrow")
FLOWERS = split_words("rose lily tulip daisy poppy violet orchid iris")
PLANETS = split_words("Mercury Venus Earth Mars Jupiter Saturn Uranus Neptune")
FURNITURE = split_words("chair table bed sofa desk shelf lamp bench stool")
BODY_PARTS = split_words("head arm hand leg foot knee ear eye nose mouth")
LISTABLE_ANIMALS = split_words("fox owl bear wolf rabbit mouse cat dog horse cow duck frog")
FIRST_NAMES = split_words("Ada Ben Mia Leo Zoe Max Ivy Sam Lily Tom Nora Jack")

# Each category is listed in a fixed circular order from a random start, so a
# list never holds a member twice.
CATEGORIES: dict[str, tuple[str, list[str]]] = {
    "color": ("colors", COLORS),
    "colour": ("colours", COLORS),
    "animal": ("animals", LISTABLE_ANIMALS),
    "fruit": ("fruits", FRUITS),
    "food": ("foods", FOODS),
    "day": ("days", DAYS),
    "month": ("months", MONTHS),
    "city": ("cities", CITIES),
    "country": ("countries", COUNTRIES),
    "vegetable": ("vegetables", VEGETABLES),
    "shape": ("shapes", SHAPES),
    "kind of weather": ("kinds of weather", WEATHER),
    "toy": ("toys", TOYS),
    "piece of clothing": ("pieces of clothing", CLOTHES),
    "tool": ("tools", TOOLS),
    "instrument": ("instruments", INSTRUMENTS),
    "sport": ("sports", SPORTS),
    "drink": ("drinks", DRINKS),
    "bird": ("birds", BIRDS),
    "flower": ("flowers", FLOWERS),
    "planet": ("planets", PLANETS),
    "piece of furniture": ("pieces of furniture", FURNITURE),
    "body part": ("body parts", BODY_PARTS),
    "name": ("names", FIRST_NAMES),
}

NAMES = split_words("""
Ada Ben Mia Leo Zoe Max Ivy Sam Lily Tom Nora Jack Ella Finn Ruby Hugo Clara
Oscar Alice Bob Emma Noah Anna Paul Maria John Lucy Peter Grace Henry Rose David
Sophie Adam Eva Felix Julia Simon Olive Theo Hazel Milo Luna Otto Pearl Rufus
Daisy Victor Wanda Yuki Omar Priya Chen Fatima Diego Kofi Ingrid Ravi Lena Marco
""")

STORY_NAMES = split_words("""
Ruby Milo Luna Otto Pearl Rufus Daisy Pip Nilo Tansy Bramble Juniper Poppy Basil
Clover Wren Marlo Fern Biscuit Maple Ziggy Tilly Cosmo Willow
""")

ADJECTIVES = split_words("""
brave little tiny small big old young kind clever curious shy gentle happy sad
lonely sleepy hungry lazy quiet loud funny silly wise proud gray red blue green
golden silver fast slow lost magic friendly grumpy tall short busy strong
careful cheerful
""")

PLACE_NOUNS = split_words("""
forest castle village garden city town farm cave valley meadow desert jungle
island kitchen library school market mountain hill river lake pond sea beach moon
house tower barn park bridge
""")

# Where story characters live when the reader does not say; others get a
# place drawn from HOMES.
HOMES = [
    "in a quiet forest",
    "in a small village",
    "at the edge of a green valley",
    "near a sleepy town",
    "beside a winding river",
    "on top of a windy hill",
    "in a cozy house",
    "behind an old mill",
]
SPECIAL_HOMES: dict[str, list[str]] = {
    "by the blue sea": split_words(
        "fish whale dolphin shark crab octopus seal mermaid sailor pirate fisherman ship boat shell"
    ),
    "on a sunny farm": split_words("cow pig sheep goat hen rooster horse farmer donkey duck goose pumpkin puppy"),
    "in a tall castle": split_words("knight king queen prince princess wizard dragon ghost tower"),
    "on the cold white ice": split_words("penguin snowman snowflake"),
    "in the warm grassland": split_words("lion elephant giraffe zebra hippo camel kangaroo"),
    "in a deep green jungle": split_words("tiger monkey parrot snake crocodile panda koala"),
    "beside a lily pond": split_words("frog toad turtle swan otter beaver"),
    "in the night sky": split_words("star rocket astronaut moon cloud"),
    "in a warm kitchen": split_words("baker cook teapot spoon cup kettle toaster potato carrot mouse"),
}
HOME_OF = {subject: home for home, subjects in SPECIAL_HOMES.items() for subject in subjects}


def _phrases(text: str) -> list[str]:
    """The comma-separated phrases of a text that may span lines."""
    return [phrase.strip() for phrase in text.replace("\n", " ").split(",") if phrase.strip()]


STORY_TOPICS = _phrases("""
    friendship, courage, kindness, love, hope, music, winter, summer, spring, autumn, rain,
    snow, magic, space, time, the sea, the moon, the sun, the stars, the wind, the night,
    the ocean, the first snow, a long journey, a birthday party, a rainy day, a big
    adventure, going to school, being brave, making friends, cats, dogs, dragons, robots,
    pirates, birds, horses, dinosaurs, two friends, three brothers, my dog, my cat, my family
""")

# What "a fox who ..." may say of a story's subject; the story repeats it.
STORY_CLAUSES = _phrases("""
    loved honey, liked to sing, wanted to fly, could not sleep, never stopped laughing,
    lost a shoe, was afraid of the dark, loved to dance, had no friends, found a map,
    liked to read, wanted to see the sea, loved the rain, collected buttons, dreamed of
    the moon, lived alone, played the drum, baked bread, learns to swim, goes to school,
    finds a hat, gets lost, saves the day, wants a friend, can talk, eats too much cake
""")

# Subjects of questions that the demo model politely declines.
UNKNOWN_TOPICS = _phrases("""
    quantum physics, the weather, the stock market, black holes, the roman empire, machine
    learning, football, chess, photosynthesis, the internet, climate change, gravity,
    evolution, democracy, the brain, electricity, the moon landing, computers, cooking,
    philosophy, economics, poetry, history, biology, chemistry, mathematics, art, politics,
    music theory, world war two, the pyramids, volcanoes, airplanes, python, java, linux,
    neural networks, transformers, the speed of light, the meaning of life, dna, vaccines
""")

# Other common words, so that copying is learned on more than the lists above.
OTHER_WORDS = split_words("""
about above across after again air all almost alone along also always and another answer any
apart area arm around ask away baby back bad bank bath be bean beautiful because become before
begin behind below best better between bird bite blood blow body bone bottle bottom bowl brain
branch bread break breath brick bright bring broken brother build burn bus by call calm camera
can candy card care carry case catch cause chance change cheap chest chicken choose circle
class clean clear climb close cloth coal coast coffee cold color come common cook cool copper
corn corner cost country cover crowd cry cup curtain cut dark date daughter day dead dear deep
desk dinner dirt dish distance doctor double down draw dream dress drink drive drop dry dust
each ear early earth east easy eat edge eight empty end engine enough even evening every eye
face fact fall family far father fear feel fence few field fight find finger fire first five
flag flat flight floor fly fold food foot forget fork form four free fresh friend from front
full fun future game gate get gift give glass go goal good grain grass great ground group grow
guest guide gun hair half hall hammer hand hang happen hard hat have head hear heart heat heavy
hello help here hide high history hit hold hole holiday home hope horn hospital hot hour how
hundred hurry ice idea if ink inside iron it jar job join juice jump just keep kick kind kiss
knee knife knock know lady land language large last late laugh law lead learn leave left leg
lesson letter level lift light like line lip list listen live long look loose love low lunch
machine mad magic mail main make many mark master matter may meal mean meat meet metal middle
milk mind minute mix moment money month more morning most mother mouth move much mud music nail
name narrow near neck need needle nerve nest net never new news next nice night nine noise none
north nose note nothing now number nurse ocean of off office often oil old on one only open
order other our out oven over page pain paint paper parent part party pass past paste path pay
peace pen people pepper perfect person phone photo picture piece pin pipe place plane plant
plate play please pocket point poor pot powder power present price print prize problem pull
push put queen question quick rail rain read ready real reason record rest rice rich ride right
rise road rock roof room root rope rough round row rub rule run safe sail salt same sand save
say school science screw sea seat second secret see seed send sense seven shade shadow shake
shape share sharp shelf shine shirt short shop shoulder shout show side sign silk simple sing
sister sit six size skin skirt sky sleep slip slope smart smell smile smoke smooth snow soap
soft some son song sort sound south space speak spell spend spot spring square stage stamp
stand start station stay steam steel step stick still stop store storm story strange street
string student study such sudden sugar summer sun sweet swim table tail take talk taste tax
tea teach team tell ten tent test thank the then there thick thin thing think this thought
thread three throat through thumb thunder ticket tie tight time tin tired today toe together
tomorrow tongue tooth top touch toward toy travel tree trick trouble true try turn twist two
uncle under up use very view visit voice wait walk wall want warm wash waste watch water wave
way weather week weight well west wet wheel when where while whistle white who why wide wild
will win wind wine wing winter wire wish with wonder wood wool word work world worm worry
write wrong year yes yesterday you zero stressed banana racecar level noon hello world keyboard
elephant dinosaur chocolate strawberry adventure butterfly sunshine rainbow mountain television
library telephone kangaroo hamburger sandwich universe language engine token model server
""")


def lexicon() -> list[str]:
    """Every lower-case word of the lists above, sorted, once each."""
    lists = [ANIMALS, PEOPLE, OBJECTS, COLORS, FRUITS, FOODS, ADJECTIVES, PLACE_NOUNS, OTHER_WORDS]
    return sorted({word for words in lists for word in words})


_CONSONANTS = "bcdfghjklmnprstvwz"
_VOWELS = "aeiou"


def invented_word(rng: random.Random) -> str:
    """A word that no list holds: plain random letters, or syllables that can be said."""
    if rng.random() < 0.5:
        return "".join(rng.choices(string.ascii_lowercase, k=rng.randint(1, 11)))
    syllables = [
        rng.choice(_CONSONANTS) + rng.choice(_VOWELS) + rng.choice(["", "", *_CONSONANTS])
        for _ in range(rng.randint(1, 4))
    ]
    return "".join(syllables)


def invented_name(rng: random.Random) -> str:
    """A capitalised invented word of at least three letters, to stand for an unseen name."""
    while len(word := invented_word(rng)) < 3:
        pass
    return word.capitalize()


def indefinite(noun_phrase: str) -> str:
    """The noun phrase with "a" or "an" before it."""
    return ("an " if noun_phrase[0].lower() in _VOWELS else "a ") + noun_phrase
