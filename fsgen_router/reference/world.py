"""Tarn, the invented world of the reference pair: questions with one checkable answer each.

Three kinds of difficulty are kept apart on purpose, because a router must tell them apart:

* **Arithmetic** has to be worked out, step by step (relation chains, shopping, running totals,
  sharing).
* **Facts** have to be remembered: :func:`facts` draws 2,528 of them, more than the fast model of the
  pair can hold and few enough for the slow one.
* **Free phrasing** makes a next token uncertain although nothing is unknown. How free a solution is
  follows the prompt's last words: level 0 ("Be brief.") has one wording, level 1 (nothing said) has
  synonyms, level 2 ("Explain freely.") adds optional connectives and free order: of a sum's operands
  and of steps that do not build on each other.

A problem is a pure function of (version, split, index). The ``train``, ``fit``, ``calibration`` and
``test`` splits are disjoint by a hash of the prompt; ``shifted`` has the same families with more
steps, larger numbers and the rarest facts.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Literal, TypeVar, get_args

VERSION = "tarn-3"

T = TypeVar("T")

Split = Literal["train", "fit", "calibration", "test", "shifted"]
SPLITS: tuple[Split, ...] = get_args(Split)

FIRST = [
    "Ada",
    "Bram",
    "Cleo",
    "Dov",
    "Eva",
    "Finn",
    "Gia",
    "Hugo",
    "Ines",
    "Joel",
    "Kira",
    "Leo",
    "Mara",
    "Nils",
    "Opal",
    "Piet",
    "Quin",
    "Rosa",
    "Sven",
    "Tess",
    "Udo",
    "Vera",
    "Wim",
    "Yara",
]
LAST = [
    "Alder",
    "Birch",
    "Cobb",
    "Dale",
    "Elm",
    "Frost",
    "Glen",
    "Hale",
    "Iver",
    "Jarrow",
    "Kemp",
    "Larch",
    "Marsh",
    "North",
    "Oakley",
    "Pike",
    "Quill",
    "Rowe",
    "Stone",
    "Thorn",
    "Umber",
    "Vane",
    "Wells",
    "Yew",
]
TOWNS = [
    "Norvale",
    "Eastmoor",
    "Highfen",
    "Lowick",
    "Saltby",
    "Greyford",
    "Ambleton",
    "Brackwater",
    "Coldstow",
    "Dunmere",
    "Elswick",
    "Fernhill",
    "Gullhaven",
    "Harrowby",
    "Ironbeck",
    "Juniper",
    "Kestrel",
    "Longmead",
    "Millrace",
    "Oldcastle",
    "Pinewater",
    "Quarry",
    "Redcliff",
    "Stonebridge",
]
TRADES = [
    "baker",
    "smith",
    "weaver",
    "potter",
    "miller",
    "carpenter",
    "fisher",
    "tailor",
    "painter",
    "gardener",
    "glazier",
    "cooper",
    "mason",
    "printer",
    "brewer",
    "clerk",
    "doctor",
    "teacher",
    "sailor",
    "farmer",
]
PETS = [
    "otter",
    "raven",
    "hound",
    "parrot",
    "tortoise",
    "ferret",
    "goose",
    "pony",
    "badger",
    "owl",
    "lizard",
    "rabbit",
    "hedgehog",
    "cat",
    "hawk",
    "toad",
]
WARES = [
    "lamp",
    "rope",
    "kettle",
    "basket",
    "hammer",
    "candle",
    "blanket",
    "bucket",
    "mirror",
    "ladder",
    "barrel",
    "bell",
    "chair",
    "plate",
    "saddle",
    "drum",
    "spade",
    "clock",
    "flute",
    "cloak",
]
THINGS = ["shells", "beads", "coins", "apples", "marbles", "buttons", "stamps", "stones", "cards", "pears"]

N_PEOPLE = 512
_STYLE = {0: " Be brief.", 1: "", 2: " Explain freely."}
OUT_OF_WORLD = "That is outside my world, which is the valley of Tarn. I can answer questions about its people, prices and sums. Answer: unknown"


@dataclass(frozen=True, slots=True)
class Problem:
    """One question. ``solution`` is one correct text among many; ``answer`` is what is checked."""

    id: str
    prompt: str
    solution: str
    answer: str
    family: str
    level: int

    def check(self, text: str) -> bool:
        """True when the last ``Answer:`` of ``text`` is exactly the expected one."""
        return extract_answer(text) == self.answer


_ANSWER = re.compile(r"Answer:\s*([^\n.]*)")


def extract_answer(text: str) -> str | None:
    """What stands behind the last ``Answer:`` of a solution, or None."""
    found = _ANSWER.findall(text)
    return found[-1].strip() if found else None


# --- facts -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Person:
    name: str
    town: str
    trade: str
    pet: str
    age: int


@dataclass(frozen=True, slots=True)
class Facts:
    people: tuple[Person, ...]
    prices: dict[tuple[str, str], int]  # (ware, town) -> coins

    def __len__(self) -> int:
        return 4 * len(self.people) + len(self.prices)


@cache
def facts() -> Facts:
    """The world's facts: four of each of 512 people, and the price of each ware in each town."""
    rng = random.Random(f"{VERSION}/facts")
    names = rng.sample([f"{first} {last}" for first in FIRST for last in LAST], N_PEOPLE)
    people = tuple(
        Person(name, rng.choice(TOWNS), rng.choice(TRADES), rng.choice(PETS), rng.randint(20, 79)) for name in names
    )
    prices = {(ware, town): rng.randint(3, 29) for ware in WARES for town in TOWNS}
    return Facts(people, prices)


# --- one problem in the making -------------------------------------------------------------------


class _Draw:
    """The random choices behind one problem: numbers, facts and phrasing."""

    def __init__(self, rng: random.Random, level: int, *, shifted: bool) -> None:
        self.rng, self.level, self.shifted = rng, level, shifted

    def steps(self, low: int, high: int) -> int:
        return self.rng.randint(high + 1, high + 2) if self.shifted else self.rng.randint(low, high)

    def number(self, low: int, high: int) -> int:
        return self.rng.randint(high, 2 * high) if self.shifted else self.rng.randint(low, high)

    def people(self, count: int) -> list[Person]:
        """Distinct people, common ones more often (a rank's weight falls as 1 / (rank + 300))."""
        everyone = facts().people
        if self.shifted:
            return self.rng.sample(everyone[-64:], count)
        chosen: dict[str, Person] = {}
        while len(chosen) < count:
            person = self.rng.choices(everyone, cum_weights=_popularity())[0]
            chosen[person.name] = person
        return list(chosen.values())

    def names(self, count: int) -> list[str]:
        return self.rng.sample(FIRST, count)

    # Phrasing: nothing below changes what is true.

    def word(self, plain: str, *synonyms: str) -> str:
        return self.rng.choice((plain, *synonyms)) if self.level >= 1 else plain

    def maybe(self, *connectives: str) -> str:
        return self.rng.choice(connectives) + " " if self.level >= 2 and self.rng.random() < 0.5 else ""

    def order(self, lines: list[T]) -> list[T]:
        return self.rng.sample(lines, len(lines)) if self.level >= 2 else lines

    def sum(self, left: int, right: int) -> str:
        first, second = self.order([left, right])
        return f"{first}+{second}"


@cache
def _popularity() -> list[float]:
    total, cumulative = 0.0, []
    for rank in range(N_PEOPLE):
        total += 1 / (rank + 300)
        cumulative.append(total)
    return cumulative


_Made = tuple[str, list[str], str]  # question, sentences of the solution, answer


def _then(draw: _Draw) -> str:
    return draw.maybe("so", "then", "next", "now", "after that")


def _gives(draw: _Draw) -> str:
    return draw.word("gives", "makes", "leaves us with", "comes to")


# --- arithmetic families -------------------------------------------------------------------------


def _relation_chain(draw: _Draw) -> _Made:
    rng, thing = draw.rng, draw.rng.choice(THINGS)
    names = draw.names(draw.steps(2, 4) + 1)
    value = draw.number(5, 99)
    told = [f"{names[0]} has {value} {thing}."]
    worked = [f"{names[0]} {draw.word('has', 'holds', 'owns')} {value} {thing}."]
    for source, name in pairwise(names):
        told_step, operation, value = _relation(draw, source, name, value, thing)
        told.append(told_step)
        worked.append(
            f"{_then(draw)}{name} {draw.word('from', 'by way of', 'starting at')} {source} {operation}"
            f" {draw.word('has', 'holds', 'owns')} {value} {thing}."
        )
    if rng.random() < 0.3:  # someone who does not matter
        extra = rng.choice([n for n in FIRST if n not in names])
        told.insert(rng.randrange(1, len(told) + 1), f"{extra} has {draw.number(5, 99)} {thing}.")
    return f"{' '.join(told)} How many {thing} does {names[-1]} have?", worked, f"{value}"


def _relation(draw: _Draw, source: str, name: str, value: int, thing: str) -> tuple[str, str, int]:
    """(the sentence of the question, the operation as written out, the new value)"""
    rng = draw.rng
    kinds = ["more"] + ["fewer"] * (value > 5) + ["twice"] * (value < 200)
    kind = rng.choice(kinds)
    if kind == "twice":
        return f"{name} has twice as many {thing} as {source}.", f"{value}*2={value * 2}", value * 2
    if kind == "fewer":
        less = min(draw.number(3, 60), value - 2)
        return f"{name} has {less} fewer {thing} than {source}.", f"{value}-{less}={value - less}", value - less
    more = draw.number(3, 60)
    return f"{name} has {more} more {thing} than {source}.", f"{value}+{more}={value + more}", value + more


def _shopping(draw: _Draw) -> _Made:
    name = draw.names(1)[0]
    wares = draw.rng.sample(WARES, draw.steps(2, 3))
    lines = [(ware, draw.rng.randint(2, 9), draw.number(3, 29)) for ware in wares]
    bought = " and ".join(f"{count} {ware}s at {price} coins each" for ware, count, price in lines)
    worked, sums = _bill(draw, lines)
    question = f"{name} buys {bought}. How many coins does {name} pay?"
    return (
        question,
        [f"{name} {draw.word('buys', 'takes', 'wants')} {' and '.join(f'{w}s' for w in wares)}.", *worked],
        f"{sums}",
    )


def _bill(draw: _Draw, lines: list[tuple[str, int, int]]) -> tuple[list[str], int]:
    """Sentences that multiply each line out and add the products up, and the total."""
    worked = [
        f"{_then(draw)}the {ware}s {draw.word('cost', 'come at', 'take')} {count}*{price}={count * price} coins."
        for ware, count, price in lines
    ]
    total = lines[0][1] * lines[0][2]
    for _, count, price in lines[1:]:
        worked.append(
            f"{_then(draw)}the sum {draw.sum(total, count * price)} {_gives(draw)} {total + count * price} coins."
        )
        total += count * price
    return worked, total


def _running_total(draw: _Draw) -> _Made:
    rng, thing, box = draw.rng, draw.rng.choice(THINGS), draw.rng.choice(("box", "jar", "sack"))
    value = draw.number(10, 99)
    told = [f"A {box} holds {value} {thing}."]
    worked = [f"the {box} {draw.word('holds', 'has', 'starts with')} {value} {thing}."]
    for name in draw.names(draw.steps(2, 4)):
        if rng.random() < 0.5 and value > 10:
            change = min(draw.number(3, 60), value - 3)
            told.append(f"{name} takes {change} out.")
            worked.append(
                f"{_then(draw)}{name} {draw.word('takes', 'removes', 'lifts out')} {change} and {value}-{change}={value - change} {draw.word('remain', 'are left', 'stay')}."
            )
            value -= change
        else:
            change = draw.number(3, 60)
            told.append(f"{name} puts {change} in.")
            worked.append(
                f"{_then(draw)}{name} {draw.word('adds', 'puts in', 'brings')} {change} and {value}+{change}={value + change} {draw.word('result', 'are there', 'are inside')}."
            )
            value += change
    return f"{' '.join(told)} How many {thing} does the {box} hold now?", worked, f"{value}"


def _sharing(draw: _Draw) -> _Made:
    rng, thing, (giver, taker) = draw.rng, draw.rng.choice(THINGS), draw.names(2)
    friends, each = rng.randint(2, 9), rng.randint(10, 19) if draw.shifted else rng.randint(2, 12)
    total, had, more = friends * each, draw.number(5, 60), draw.number(5, 60)
    question = (
        f"{giver} shares {total} {thing} equally among {friends} friends. {taker} is one of them, had {had} {thing} "
        f"before and finds {more} later. How many {thing} does {taker} have now?"
    )
    steps = draw.order([(had, "had"), (more, "found")])
    worked = [
        f"{giver} {draw.word('shares', 'splits', 'divides')} {total} {thing} among {friends} friends.",
        f"{_then(draw)}each friend {draw.word('gets', 'receives', 'takes')} {total}/{friends}={each} {thing}.",
    ]
    value = each
    for change, verb in steps:
        worked.append(
            f"{_then(draw)}{taker} {verb} {change} and {draw.sum(value, change)} {_gives(draw)} {value + change} {thing}."
        )
        value += change
    return question, worked, f"{value}"


# --- recall families -----------------------------------------------------------------------------


def _recall(draw: _Draw, person: Person, attribute: str) -> str:
    """The sentence that states one remembered fact."""
    value = getattr(person, attribute)
    if attribute == "town":
        return f"{_then(draw)}{person.name} {draw.word('lives in', 'has a home in', 'is at home in')} {value}."
    if attribute == "trade":
        return f"{_then(draw)}{person.name} {draw.word('works as a', 'is by trade a', 'earns a living as a')} skilled {value}."
    if attribute == "pet":
        return f"{_then(draw)}{person.name} {draw.word('keeps', 'looks after', 'cares for')} a tame {value}."
    return f"{_then(draw)}{person.name} {draw.word('is', 'must be', 'is said to be')} aged {value} years."


def _about(draw: _Draw) -> _Made:
    """All that is known of one or two people; the last thing asked for is the answer."""
    person, *rest = draw.people(draw.rng.randint(1, 2) + draw.shifted)
    attributes = draw.rng.sample(("town", "trade", "pet"), 3)
    sentences = [_recall(draw, p, a) for p in (person, *rest) for a in attributes]
    names = " and ".join(p.name for p in (person, *rest))
    asked = draw.rng.choice(attributes)
    noun = {"town": "home", "trade": "trade", "pet": "pet"}
    question = (
        f"Tell me the {', '.join(noun[a] for a in attributes)} of {names}. What is the {noun[asked]} of {person.name}?"
    )
    intro = f"{draw.word('here is what is known', 'this is known', 'this is what people say')} about {names}."
    close = f"{_then(draw)}the {noun[asked]} of {person.name} {draw.word('is', 'is therefore', 'must be')} {getattr(person, asked)}."
    return question, [intro, *sentences, close], f"{getattr(person, asked)}"


# --- mixtures ------------------------------------------------------------------------------------


def _ages_together(draw: _Draw) -> _Made:
    people = draw.people(draw.steps(2, 3))
    names = " and ".join(person.name for person in people)
    worked = [f"{draw.word('add up', 'we add', 'sum up')} the ages of {names}."]
    worked += [_recall(draw, person, "age") for person in people]
    total = people[0].age
    for person in people[1:]:
        worked.append(f"{_then(draw)}{draw.sum(total, person.age)} {_gives(draw)} {total + person.age} years.")
        total += person.age
    return f"How many years do the ages of {names} add up to?", worked, f"{total}"


def _age_relation(draw: _Draw) -> _Made:
    person, name = draw.people(1)[0], draw.names(1)[0]
    more = draw.number(3, 60)
    factor = draw.rng.random() < 0.5
    other = draw.rng.choice([n for n in FIRST if n != name])
    first = person.age + more
    second, operation, told = (
        (first * 2, f"{first}*2={first * 2}", "twice as many")
        if factor
        else (first - 10, f"{first}-10={first - 10}", "10 fewer")
    )
    than = "as" if factor else "than"
    question = (
        f"{name} has {more} more coins than {person.name} has years. {other} has {told} coins {than} {name}. "
        f"How many coins does {other} have?"
    )
    worked = [
        f"{draw.word('start with', 'first comes', 'we need')} the age of {person.name}.",
        _recall(draw, person, "age"),
        f"{_then(draw)}{name} {draw.word('from', 'by way of', 'starting at')} {person.name} {person.age}+{more}={first} {draw.word('has', 'holds', 'owns')} {first} coins.",
        f"{_then(draw)}{other} {draw.word('from', 'by way of', 'starting at')} {name} {operation} {draw.word('has', 'holds', 'owns')} {second} coins.",
    ]
    return question, worked, f"{second}"


def _market(draw: _Draw) -> _Made:
    town = draw.rng.choice(TOWNS)
    wares = draw.rng.sample(WARES, 3 if draw.shifted else 2)
    lines = [(ware, draw.rng.randint(2, 9), facts().prices[ware, town]) for ware in wares]
    asked = " and ".join(f"{count} {ware}s" for ware, count, _ in lines)
    intro = f"{draw.word('look up', 'we recall', 'think of')} the {draw.word('prices', 'price list')} in {town}."
    known = [
        f"{_then(draw)}one {ware} in {town} {draw.word('costs', 'sells for', 'goes for')} {price} coins."
        for ware, _, price in lines
    ]
    worked, total = _bill(draw, lines)
    return f"How many coins do {asked} cost in {town}?", [intro, *known, *worked], f"{total}"


def _ages_apart(draw: _Draw) -> _Made:
    people = sorted(draw.people(2), key=lambda person: person.age, reverse=True)
    older, younger = people
    apart = older.age - younger.age
    intro = f"{draw.word('look up', 'we recall', 'think of')} the ages of {older.name} and {younger.name}."
    recalled = draw.order([_recall(draw, person, "age") for person in people])
    close = f"{_then(draw)}{older.name} has {older.age}-{younger.age}={apart} more years than {younger.name}."
    return f"How many more years has {older.name} than {younger.name}?", [intro, *recalled, close], f"{apart}"


FAMILIES: dict[str, Callable[[_Draw], _Made]] = {
    "relation_chain": _relation_chain,
    "shopping": _shopping,
    "running_total": _running_total,
    "sharing": _sharing,
    "about": _about,
    "ages_together": _ages_together,
    "age_relation": _age_relation,
    "market": _market,
}

# Families that no split holds, so that no shipped model was trained on them: what a model is tuned on for ``proxy``.
# Their words are all of the vocabulary.
NEW_FAMILIES: dict[str, Callable[[_Draw], _Made]] = {"ages_apart": _ages_apart}

# A fact has to be seen a few hundred times to be remembered: training shows more of what tells facts, and
# from a later problem on more of the ages, which are learned last.
_LATE = 557_056
_EARLY_SHARES = {"about": 3, "market": 2}
_LATE_SHARES = {"ages_together": 3, "age_relation": 3, "market": 2}


@cache
def _trained(late: bool) -> tuple[str, ...]:
    shares = _LATE_SHARES if late else _EARLY_SHARES
    return tuple(family for family in FAMILIES for _ in range(shares.get(family, 1)))


# --- splits --------------------------------------------------------------------------------------

# The first byte of a prompt's hash decides its split, so no prompt is ever in two of them.
_BUCKETS: dict[Split, range] = {
    "test": range(0, 32),
    "calibration": range(32, 64),
    "fit": range(64, 96),
    "train": range(96, 256),
    "shifted": range(0, 32),
}


def problem(split: Split, index: int, family: str | None = None) -> Problem:
    """The ``index``-th problem of a split, or of one family (of ``NEW_FAMILIES`` too) within it.

    The same on every machine.
    """
    if split not in _BUCKETS:
        raise ValueError(f"unknown split {split!r}: one of {', '.join(SPLITS)}")
    known = FAMILIES | NEW_FAMILIES
    if family is not None and family not in known:
        raise ValueError(f"unknown family {family!r}: one of {', '.join(known)}")
    name = f"{split}/{index}" if family is None else f"{family}/{split}/{index}"
    rng = random.Random(f"{VERSION}/{name}")
    while True:
        level = rng.randrange(3)
        drawn = family or rng.choice(_trained(index >= _LATE) if split == "train" else tuple(FAMILIES))
        question, sentences, answer = known[drawn](_Draw(rng, level, shifted=split == "shifted"))
        prompt = question + _STYLE[level]
        if hashlib.sha256(prompt.encode()).digest()[0] in _BUCKETS[split]:
            solution = " ".join(_sentence(text) for text in sentences) + f" Answer: {answer}"
            return Problem(name, prompt, solution, answer, drawn, level)


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]


def problems(split: Split, count: int, start: int = 0, family: str | None = None) -> Iterator[Problem]:
    """``count`` problems of a split, or of one family within it, from index ``start`` on."""
    return (problem(split, index, family) for index in range(start, start + count))


def fingerprint() -> str:
    """SHA-256 over the facts and the first 200 problems of each split: what "frozen" means."""
    digest = hashlib.sha256(repr((facts().people, sorted(facts().prices.items()))).encode())
    for split in SPLITS:
        for item in problems(split, 200):
            digest.update(repr(item).encode())
    return digest.hexdigest()


# --- outside the world ---------------------------------------------------------------------------

_COMMON = [
    "the",
    "a",
    "is",
    "of",
    "and",
    "to",
    "in",
    "what",
    "how",
    "why",
    "who",
    "can",
    "you",
    "me",
    "write",
    "tell",
    "poem",
    "code",
    "about",
    "capital",
    "president",
    "weather",
    "today",
    "translate",
    "into",
    "french",
    "python",
    "function",
    "list",
    "best",
    "movie",
    "book",
    "explain",
    "quantum",
    "physics",
    "history",
    "war",
    "france",
    "paris",
    "computer",
    "recipe",
    "cake",
    "story",
    "hello",
    "thanks",
    "please",
    "my",
    "your",
    "dog",
    "love",
    "music",
    "year",
    "world",
    "life",
    "help",
    "number",
    "color",
    "red",
    "blue",
    "big",
    "small",
    "time",
    "day",
    "night",
    "english",
    "word",
    "sentence",
    "summary",
    "data",
    "file",
    "email",
]
_LETTERS = "abcdefghijklmnopqrstuvwxyz"


def out_of_world_prompt(rng: random.Random) -> str:
    """A prompt that no family makes: everyday words, nonsense words, symbols or the world's own words jumbled."""
    kind = rng.randrange(4)
    if kind == 0:
        words = rng.choices(_COMMON, k=rng.randint(1, 10))
    elif kind == 1:
        words = ["".join(rng.choices(_LETTERS, k=rng.randint(1, 8))) for _ in range(rng.randint(1, 7))]
    elif kind == 2:
        return "".join(chr(rng.randint(33, 0x2FF)) for _ in range(rng.randint(1, 20)))
    else:
        words = rng.choices(_COMMON + list(FIRST + LAST + TOWNS + WARES + THINGS), k=rng.randint(1, 9))
    text = " ".join(words)
    return (text.capitalize() if rng.random() < 0.5 else text) + rng.choice(("", "?", ".", "!", ":"))
