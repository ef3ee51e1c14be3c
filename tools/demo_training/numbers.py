"""Counting, adding and subtracting."""

from __future__ import annotations

from functools import partial

from .exchange import Exchange, Pen, command, is_text, last_number_is, worded
from .words import split_words

NUMBER_WORDS = split_words(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
    "fifteen sixteen seventeen eighteen nineteen twenty"
)


def numerals(pen: Pen, *numbers: int) -> list[str]:
    """The numbers in digits, or now and then all in words where they are small."""
    if all(number <= 20 for number in numbers) and pen.chance(0.12):
        return [NUMBER_WORDS[number] for number in numbers]
    return [str(number) for number in numbers]


def operand(pen: Pen) -> int:
    return pen.rng.randint(0, 20 if pen.chance(0.35) else 99)


_ADD_COMMANDS = [
    "add {a} and {b}", "add {a} to {b}", "add {a} + {b}", "sum {a} and {b}", "calculate {a} + {b}",
    "compute {a} plus {b}", "tell me {a} plus {b}", "tell me the sum of {a} and {b}", "solve {a} + {b}",
    "add the numbers {a} and {b}", "calculate the sum of {a} and {b}", "add up {a} and {b}",
]  # fmt: skip
_ADD_QUESTIONS = [
    "what is {a} + {b}", "what is {a}+{b}", "what is {a} plus {b}", "what is {a} and {b}", "how much is {a} + {b}",
    "how much is {a} plus {b}", "what is the sum of {a} and {b}", "what do you get when you add {a} and {b}",
    "{a} + {b}", "{a} plus {b}", "{a}+{b}", "{a} + {b} =", "{a}+{b}=", "what does {a} + {b} equal",
    "what is the result of {a} + {b}", "if I have {a} {things} and get {b} more, how many do I have",
    "I have {a} {things} and you give me {b} more, how many do I have now", "what is the total of {a} and {b}",
]  # fmt: skip
_SUBTRACT_COMMANDS = [
    "subtract {b} from {a}", "take {b} from {a}", "calculate {a} - {b}", "compute {a} minus {b}",
    "tell me {a} minus {b}", "take away {b} from {a}", "solve {a} - {b}",
]  # fmt: skip
_SUBTRACT_QUESTIONS = [
    "what is {a} - {b}", "what is {a}-{b}", "what is {a} minus {b}", "how much is {a} - {b}", "{a} - {b}",
    "how much is {a} minus {b}", "{a} minus {b}", "{a}-{b}", "{a} - {b} =", "what is {a} take away {b}",
    "what is the difference between {a} and {b}",
]  # fmt: skip
_THINGS = split_words("apples pears books coins stones eggs birds cookies cats dogs balls cards")


def _numeric(kind: str, prompt: str, answer: str, key: str, result: int) -> Exchange:
    return Exchange(kind, prompt, answer, key, partial(last_number_is, result), result, True)


def addition_key(*numbers: int) -> str:
    """The key of a sum, the same in whatever order the numbers come."""
    return "add:" + "+".join(map(str, sorted(numbers)))


def add(pen: Pen) -> Exchange:
    """The sum of two numbers up to 99, or of three up to 20."""
    if pen.chance(0.06):
        numbers = [pen.rng.randint(0, 20) for _ in range(3)]
        text = pen.rng.choice([" + ", " plus ", "+"]).join(map(str, numbers))
        questions = ["what is {sum}", "{sum}", "how much is {sum}"]
        prompt = worded(pen, ["add {sum}", "calculate {sum}"], questions, {"sum": text})
    else:
        numbers = [operand(pen), operand(pen)]
        a, b = numerals(pen, *numbers)
        prompt = worded(pen, _ADD_COMMANDS, _ADD_QUESTIONS, {"a": a, "b": b, "things": pen.rng.choice(_THINGS)})
    result = sum(numbers)
    return _numeric("add", prompt, f"{' + '.join(map(str, numbers))} = {result}", addition_key(*numbers), result)


def subtract(pen: Pen) -> Exchange:
    """The difference of two numbers up to 99; it may be negative."""
    a, b = operand(pen), operand(pen)
    if a < b and pen.chance(0.7):
        a, b = b, a
    first, second = numerals(pen, a, b)
    prompt = worded(pen, _SUBTRACT_COMMANDS, _SUBTRACT_QUESTIONS, {"a": first, "b": second})
    return _numeric("subtract", prompt, f"{a} - {b} = {a - b}", f"subtract:{a}-{b}", a - b)


_STEP_WORDS = {2: "twos", 3: "threes", 5: "fives", 10: "tens"}


def _count_up(pen: Pen) -> tuple[str, list[int]]:
    if pen.chance(0.5):
        stop = pen.rng.randint(1, 30 if pen.chance(0.85) else 100)
        [end] = numerals(pen, stop)
        commands = [
            "count to {b}", "count to {b}", "count up to {b}", "count from one to {b}", "count from 1 to {b}",
            "count until {b}", "list the numbers from 1 to {b}", "say the numbers from 1 to {b}",
            "write the numbers from 1 to {b}", "list the first {b} numbers",
        ]  # fmt: skip
        return command(pen, pen.rng.choice(commands), {"b": end}), list(range(1, stop + 1))
    start = pen.rng.randint(0, 95)
    stop = min(start + pen.rng.randint(1, 25), 100)
    if pen.chance(0.4):
        start, stop = sorted(pen.rng.sample(range(21), 2))
    a, b = numerals(pen, start, stop)
    commands = [
        "count from {a} to {b}", "count from {a} to {b}", "count up from {a} to {b}", "count {a} to {b}",
        "list the numbers from {a} to {b}", "list all numbers between {a} and {b}", "count between {a} and {b}",
        "say the numbers from {a} to {b}", "start at {a} and count to {b}", "count starting from {a} up to {b}",
        "write the numbers {a} to {b}", "write out the numbers from {a} through {b}",
        "give me the numbers from {a} to {b}",
    ]  # fmt: skip
    return command(pen, pen.rng.choice(commands), {"a": a, "b": b}), list(range(start, stop + 1))


def _count_down(pen: Pen) -> tuple[str, list[int]]:
    start = pen.rng.randint(2, 30 if pen.chance(0.8) else 100)
    if start <= 30 and pen.chance(0.5):
        [a] = numerals(pen, start)
        commands = ["count down from {a}", "count backwards from {a}", "do a countdown from {a}", "count back from {a}"]
        return command(pen, pen.rng.choice(commands), {"a": a}), list(range(start, 0, -1))
    stop = pen.rng.randint(max(0, start - 25), start - 1)
    a, b = numerals(pen, start, stop)
    commands = [
        "count down from {a} to {b}", "count backwards from {a} to {b}", "count from {a} down to {b}",
        "count from {a} to {b}", "list the numbers from {a} down to {b}", "do a countdown from {a} to {b}",
    ]  # fmt: skip
    return command(pen, pen.rng.choice(commands), {"a": a, "b": b}), list(range(start, stop - 1, -1))


def _count_by(pen: Pen) -> tuple[str, list[int]]:
    if pen.chance(0.15):
        start, parity = pen.rng.choice([(2, "even"), (1, "odd")])
        stop = pen.rng.randint(4, 40)
        commands = ["count the {p} numbers to {b}", "list the {p} numbers up to {b}", "count {p} numbers to {b}",
                    "list the {p} numbers from 1 to {b}", "count to {b} in {p} numbers"]  # fmt: skip
        return command(pen, pen.rng.choice(commands), {"p": parity, "b": stop}), list(range(start, stop + 1, 2))
    step = pen.rng.choice([2, 2, 3, 5, 5, 10, 10])
    start = step if pen.chance(0.4) else pen.rng.randint(0, 20)
    stop = min(start + step * pen.rng.randint(2, 12), 100)
    by = pen.rng.choice([_STEP_WORDS[step], str(step), f"{step}s"])
    if start == step:
        commands = ["count by {by} to {b}", "count to {b} by {by}", "count by {by} up to {b}", "count in {by} to {b}"]
    else:
        commands = [
            "count by {by} from {a} to {b}", "count from {a} to {b} by {by}", "count from {a} to {b} in steps of {n}",
            "count in steps of {n} from {a} to {b}", "count from {a} to {b} in {by}",
        ]  # fmt: skip
    return command(pen, pen.rng.choice(commands), {"a": start, "b": stop, "by": by, "n": step}), list(
        range(start, stop + 1, step)
    )


def count(pen: Pen) -> Exchange:
    """Counting up, down, or by twos, threes, fives and tens."""
    prompt, numbers = pen.rng.choice([_count_up, _count_up, _count_up, _count_down, _count_by])(pen)
    answer = ", ".join(map(str, numbers))
    step = numbers[1] - numbers[0] if len(numbers) > 1 else 1
    # Counting from 1 to 1 is an exception to be learned by heart, not a case to hold out.
    key = f"count:{numbers[0]}:{numbers[-1]}:{step}" if len(numbers) > 1 else ""
    return Exchange("count", prompt, answer, key, partial(is_text, answer), list(numbers), True)
