"""Answers to questions of the reference pair's world, worked out from their words and its facts alone.

It shares no code with the generator, so it can say of any text whether it is a question of that world, and
what the right answer is.
"""

from __future__ import annotations

import re

from fsgen_router.reference import world

_NAME, _PERSON, _NUMBER = r"[A-Z]\w+", r"[A-Z]\w+ [A-Z]\w+", r"\d+"
_ATTRIBUTES = {"home": "town", "trade": "trade", "pet": "pet"}


def solve(prompt: str) -> str | None:
    """The answer to a question of the world; None for any other text."""
    text = re.sub(r" (Be brief|Explain freely)\.$", "", prompt)
    for solver in (_chain, _shopping, _running_total, _sharing, _about, _ages_together, _age_relation, _market):
        answer = solver(text)
        if answer is not None:
            return answer
    return None


def _chain(text: str) -> str | None:
    *told, question = re.split(r"(?<=\.) ", text)
    asked = re.fullmatch(rf"How many (\w+) does ({_NAME}) have\?", question)
    if not asked or asked[1] not in world.THINGS:
        return None
    thing, has = asked[1], dict[str, int]()
    for sentence in told:
        if found := re.fullmatch(rf"({_NAME}) has ({_NUMBER}) {thing}\.", sentence):
            has[found[1]] = int(found[2])
        elif found := re.fullmatch(rf"({_NAME}) has twice as many {thing} as ({_NAME})\.", sentence):
            if found[2] not in has:
                return None
            has[found[1]] = 2 * has[found[2]]
        elif found := re.fullmatch(rf"({_NAME}) has ({_NUMBER}) (more|fewer) {thing} than ({_NAME})\.", sentence):
            if found[4] not in has:
                return None
            has[found[1]] = has[found[4]] + int(found[2]) * (1 if found[3] == "more" else -1)
        else:
            return None
    return str(has[asked[2]]) if len(told) > 2 and asked[2] in has and set(has) <= set(world.FIRST) else None


def _shopping(text: str) -> str | None:
    found = re.fullmatch(rf"({_NAME}) buys (.+)\. How many coins does \1 pay\?", text)
    if not found or found[1] not in world.FIRST:
        return None
    lines = [re.fullmatch(rf"({_NUMBER}) (\w+)s at ({_NUMBER}) coins each", part) for part in found[2].split(" and ")]
    if len(lines) < 2 or not all(line and line[2] in world.WARES for line in lines):
        return None
    return str(sum(int(line[1]) * int(line[3]) for line in lines if line))


def _running_total(text: str) -> str | None:
    found = re.fullmatch(rf"A (box|jar|sack) holds ({_NUMBER}) (\w+)\. (.+) How many \3 does the \1 hold now\?", text)
    if not found or found[3] not in world.THINGS:
        return None
    value = int(found[2])
    for sentence in re.split(r"(?<=\.) ", found[4]):
        step = re.fullmatch(rf"({_NAME}) (takes|puts) ({_NUMBER}) (out|in)\.", sentence)
        if not step or step[1] not in world.FIRST:
            return None
        value += int(step[3]) * (1 if step[2] == "puts" else -1)
    return str(value)


def _sharing(text: str) -> str | None:
    found = re.fullmatch(
        rf"({_NAME}) shares ({_NUMBER}) (\w+) equally among ({_NUMBER}) friends\. ({_NAME}) is one of them, had "
        rf"({_NUMBER}) \3 before and finds ({_NUMBER}) later\. How many \3 does \5 have now\?",
        text,
    )
    if not found or found[3] not in world.THINGS or int(found[2]) % int(found[4]):
        return None
    return str(int(found[2]) // int(found[4]) + int(found[6]) + int(found[7]))


def _person(name: str) -> world.Person | None:
    return next((person for person in world.facts().people if person.name == name), None)


def _about(text: str) -> str | None:
    found = re.fullmatch(
        rf"Tell me the (\w+), (\w+), (\w+) of (.+)\. What is the (home|trade|pet) of ({_PERSON})\?", text
    )
    if not found or set(found.group(1, 2, 3)) != set(_ATTRIBUTES):
        return None
    people = [_person(name) for name in found[4].split(" and ")]
    asked = people[0]
    if None in people or asked is None or asked.name != found[6]:
        return None
    return str(getattr(asked, _ATTRIBUTES[found[5]]))


def _ages_together(text: str) -> str | None:
    found = re.fullmatch(r"How many years do the ages of (.+) add up to\?", text)
    people = [_person(name) for name in found[1].split(" and ")] if found else []
    if len(people) < 2:
        return None
    ages = [person.age for person in people if person is not None]
    return str(sum(ages)) if len(ages) == len(people) else None


def _age_relation(text: str) -> str | None:
    found = re.fullmatch(
        rf"({_NAME}) has ({_NUMBER}) more coins than ({_PERSON}) has years\. ({_NAME}) has "
        rf"(twice as many coins as|10 fewer coins than) \1\. How many coins does \4 have\?",
        text,
    )
    person = _person(found[3]) if found else None
    if not found or person is None:
        return None
    first = person.age + int(found[2])
    return str(2 * first if found[5].startswith("twice") else first - 10)


def _market(text: str) -> str | None:
    found = re.fullmatch(r"How many coins do (.+) cost in (\w+)\?", text)
    if not found or found[2] not in world.TOWNS:
        return None
    lines = [re.fullmatch(rf"({_NUMBER}) (\w+)s", part) for part in found[1].split(" and ")]
    if len(lines) < 2 or not all(line and line[2] in world.WARES for line in lines):
        return None
    return str(sum(int(line[1]) * world.facts().prices[line[2], found[2]] for line in lines if line))
