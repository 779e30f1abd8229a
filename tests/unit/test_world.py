"""The invented world: reproducible, consistent, checkable, and split without overlap."""

from __future__ import annotations

import random
import re
from collections import Counter
from fractions import Fraction
from pathlib import Path

import pytest

from fsgen_router import reference
from fsgen_router.reference import world

COUNT = 1500


@pytest.fixture(scope="module")
def samples() -> dict[world.Split, list[world.Problem]]:
    return {split: list(world.problems(split, COUNT)) for split in world.SPLITS}


def test_a_problem_is_a_function_of_split_and_index() -> None:
    assert world.problem("test", 17) == world.problem("test", 17)
    assert list(world.problems("fit", 5, start=3)) == [world.problem("fit", index) for index in range(3, 8)]
    assert world.problem("test", 17) != world.problem("test", 18)
    assert world.problem("test", 17).id == "test/17"
    with pytest.raises(ValueError, match=r"unknown split 'tset'.*shifted"):
        world.problem("tset", 0)


def test_splits_are_disjoint(samples: dict[world.Split, list[world.Problem]]) -> None:
    prompts = {split: {problem.prompt for problem in found} for split, found in samples.items()}
    # ``shifted`` shares its buckets with ``test``, and has other numbers.
    for one in world.SPLITS:
        for other in world.SPLITS:
            if one < other:
                assert not prompts[one] & prompts[other], (one, other)


def test_every_solution_passes_its_own_check(samples: dict[world.Split, list[world.Problem]]) -> None:
    for found in samples.values():
        for problem in found:
            assert problem.check(problem.solution)
            assert world.extract_answer(problem.solution) == problem.answer
            assert not problem.check(problem.solution.replace("Answer:", "Result:"))
            assert not problem.check(problem.solution + " Answer: something else")
            assert not problem.check("")


def test_every_family_and_level_occurs(samples: dict[world.Split, list[world.Problem]]) -> None:
    for split, found in samples.items():
        assert {problem.family for problem in found} == set(world.FAMILIES), split
        assert {problem.level for problem in found} == {0, 1, 2}


def test_training_shows_more_of_the_facts_and_every_other_split_all_alike(
    samples: dict[world.Split, list[world.Problem]],
) -> None:
    for split, found in samples.items():
        seen = Counter(problem.family for problem in found)
        even = COUNT / len(world.FAMILIES)
        if split == "train":
            assert seen["about"] > 2 * even > 2 * seen["sharing"]
        else:
            assert all(0.6 * even < count < 1.5 * even for count in seen.values()), (split, seen)
    late = Counter(world.problem("train", index).family for index in range(560_000, 560_400))
    assert late["ages_together"] + late["age_relation"] > 120


def test_every_family_is_told_at_every_level(samples: dict[world.Split, list[world.Problem]]) -> None:
    found = {(problem.family, problem.level) for problem in samples["test"]}
    assert found == {(family, level) for family in world.FAMILIES for level in range(3)}


def test_a_new_family_is_in_no_split_and_split_alike() -> None:
    """What a model is tuned on for proxy: unseen in training, with its own disjoint splits, of the world's words."""
    drawn = {split: list(world.problems(split, 300, family="ages_apart")) for split in world.SPLITS}
    assert {problem.family for found in drawn.values() for problem in found} == {"ages_apart"}
    assert not {p.prompt for p in drawn["train"]} & {p.prompt for p in drawn["test"]}
    ages = {person.name: person.age for person in world.facts().people}
    for problem in drawn["test"]:
        older, younger = re.findall(r"[A-Z]\w+ [A-Z]\w+(?= than|\?|$)", problem.prompt.split("?")[0])
        assert problem.answer == f"{ages[older] - ages[younger]}"
        assert problem.check(problem.solution)
    assert "ages_apart" not in world.FAMILIES
    assert world.problem("test", 3, "market").family == "market"
    with pytest.raises(ValueError, match=r"unknown family 'ages'.*ages_apart"):
        world.problem("test", 0, "ages")


_SUM = re.compile(r"(?<![\d+*/-])(\d+)([-+*/])(\d+)(?:=| (?:gives|makes|leaves us with|comes to) )(\d+)")
_OPERATIONS = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": lambda a, b: Fraction(a, b),
}


def test_all_arithmetic_is_right(samples: dict[world.Split, list[world.Problem]]) -> None:
    seen = 0
    for found in samples.values():
        for problem in found:
            operators = len(re.findall(r"\d[-+*/]\d", problem.solution))
            steps = _SUM.findall(problem.solution)
            assert len(steps) == operators, problem.solution
            for left, operator, right, result in steps:
                assert _OPERATIONS[operator](int(left), int(right)) == int(result), problem.solution
                assert int(result) > 0
            seen += operators
    assert seen > COUNT


def test_the_answer_of_a_sum_is_its_last_step(samples: dict[world.Split, list[world.Problem]]) -> None:
    for problem in samples["test"] + samples["shifted"]:
        steps = _SUM.findall(problem.solution)
        if steps:
            assert problem.answer == steps[-1][3]


def test_facts_are_consistent(samples: dict[world.Split, list[world.Problem]]) -> None:
    """What a solution states of a person or a price is what the world holds."""
    facts = world.facts()
    people = {person.name: person for person in facts.people}
    assert len(people) == len(facts.people) == world.N_PEOPLE
    assert len(facts) == 4 * len(people) + len(world.WARES) * len(world.TOWNS)
    assert 1000 <= len(facts) <= 4000
    assert f"{len(facts):,} of them" in " ".join(str(world.__doc__).split())
    patterns = {
        "town": r"(?:lives in|has a home in|is at home in) (?P<value>\w+)\.",
        "trade": r"(?:works as a|is by trade a|earns a living as a) skilled (?P<value>\w+)\.",
        "pet": r"(?:keeps|looks after|cares for) a tame (?P<value>\w+)\.",
        "age": r"(?:is|must be|is said to be) aged (?P<value>\d+) years\.",
    }
    stated: Counter[str] = Counter()
    for found in samples.values():
        for problem in found:
            for attribute, pattern in patterns.items():
                for match in re.finditer(rf"(?P<name>[A-Z]\w+ [A-Z]\w+) {pattern}", problem.solution):
                    name = match["name"]
                    person = people.get(name)
                    assert person is not None, problem.solution
                    assert str(getattr(person, attribute)) == match["value"], problem.solution
                    stated[attribute] += 1
            for ware, town, price in re.findall(
                r"one (\w+) in (\w+) (?:costs|sells for|goes for) (\d+) coins", problem.solution, re.IGNORECASE
            ):
                assert facts.prices[ware, town] == int(price)
                stated["price"] += 1
    # The patterns above still say what the world says.
    assert set(stated) == {*patterns, "price"}
    assert min(stated.values()) > 300


def test_brief_solutions_have_one_wording_and_free_ones_many() -> None:
    """Level 0 leaves nothing open; level 2 uses connectives and a free order."""
    openings: dict[int, set[str]] = {0: set(), 1: set(), 2: set()}
    for problem in world.problems("train", 3000):
        if problem.family == "sharing":
            openings[problem.level].add(
                re.sub(r"\d+|[A-Z]\w+|shells|beads|coins|apples|marbles|buttons", "", problem.solution)
                .split(".")[1]
                .split()[0]
            )
    assert len(openings[0]) <= len(openings[1]) <= len(openings[2])
    assert len(openings[2]) > len(openings[0])


def test_shifted_problems_are_harder(samples: dict[world.Split, list[world.Problem]]) -> None:
    def mean_length(split: world.Split) -> float:
        return sum(len(problem.solution) for problem in samples[split]) / COUNT

    assert mean_length("shifted") > mean_length("test")
    rare = {person.name for person in world.facts().people[-64:]}
    known = {person.name for person in world.facts().people}
    for problem in samples["shifted"]:
        if problem.family in ("about", "ages_together"):
            named = set(re.findall(r"[A-Z]\w+ [A-Z]\w+", problem.prompt)) & known
            assert named
            assert named <= rare, problem.prompt


def test_the_last_answer_counts() -> None:
    assert world.extract_answer("Answer: 3. Or rather Answer: 12") == "12"
    assert world.extract_answer("Answer: Ada Cobb.") == "Ada Cobb"
    assert world.extract_answer("Answer:7\nand more") == "7"
    assert world.extract_answer("no answer") is None


def test_prompts_from_elsewhere_are_text() -> None:
    rng = random.Random(0)
    prompts = {world.out_of_world_prompt(rng) for _ in range(500)}
    assert len(prompts) > 400
    for prompt in prompts:
        assert prompt.encode()
    assert world.extract_answer(world.OUT_OF_WORLD) == "unknown"


def test_no_generated_file_is_over_16_megabytes() -> None:
    folder = Path(reference.path("fast")).parent
    assert all(path.stat().st_size < 16 * 2**20 for path in folder.iterdir() if path.is_file())
