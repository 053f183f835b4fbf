from __future__ import annotations

import math

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import QuotedString
from hypothesis import example, given, settings
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from speechtrain.config.overrides import override_text
from speechtrain.errors import ConfigError
from speechtrain.sweep.space.space import Choice, NumberType, Range, choice_of, parse_space, typed
from speechtrain.sweep.study.study import distribution

parser = OverridesParser.create()


def read(text: str):
    """A value as Hydra puts it into a config."""

    def plain(value):
        if isinstance(value, QuotedString):
            return value.text
        if isinstance(value, dict):
            return {plain(key): plain(item) for key, item in value.items()}
        return [plain(item) for item in value] if isinstance(value, list) else value

    return plain(parser.parse_override(f"key={text}").value())


texts = st.text(st.characters(blacklist_categories=["Cs", "Cc"]), max_size=12)
scalars = st.none() | st.booleans() | st.integers(-(10**12), 10**12) | st.floats(allow_nan=False) | texts
names = st.from_regex(r"[a-zA-Z_][a-zA-Z0-9_]{0,6}", fullmatch=True).filter(
    lambda name: name.lower() not in ("null", "true", "false", "nan", "inf")
)
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3), max_leaves=6)


@settings(max_examples=400, deadline=None)
@given(values)
@example('it\'s "quoted"')
@example("a,b=c d")
@example("null")
@example("1e-3")
@example("\\'")
@example("")
@example(" leading")
@example("ends in \\")
@example([None, "x,y", {"a": [1, "2"]}])
@example(5e-324)
def test_a_value_comes_back_from_its_override_text_as_it_was(value):
    back = read(override_text(value))

    assert back == value
    assert type(back) is type(value)


@settings(max_examples=100, deadline=None)
@given(st.lists(values, min_size=1, max_size=5))
def test_choices_survive_config_to_override_to_config(items):
    space = parse_space([], {"key": items})

    choice = space.parameters[0].domain
    assert isinstance(choice, Choice)
    back = [read(choice.text(label)) for label in choice.labels]
    assert all(item in back for item in items)
    assert len(set(map(repr, choice.labels))) == len(choice.labels)
    CategoricalDistribution(choice.labels)
    for label in choice.labels:  # what the study stores leads back to the same choice
        stored = distribution(choice)
        assert stored.to_external_repr(stored.to_internal_repr(label)) == label


@pytest.mark.parametrize(
    ("expression", "expected"),
    [  # the cases that the official plugin publishes for override to distribution
        ("choice(1,2)", CategoricalDistribution([1, 2])),
        ("choice(true, false)", CategoricalDistribution([True, False])),
        ("choice('hello', 'world')", CategoricalDistribution(["hello", "world"])),
        ("range(1,3)", IntDistribution(1, 2)),
        ("interval(1, 5)", FloatDistribution(1, 5)),
        ("int(interval(1, 5))", IntDistribution(1, 5)),
        ("tag(log, interval(1, 5))", FloatDistribution(1, 5, log=True)),
        ("tag(log, int(interval(1, 5)))", IntDistribution(1, 5, log=True)),
        ("range(0.5, 5.5, step=1)", FloatDistribution(0.5, 4.5, step=1)),
        ("range(0,8,3)", IntDistribution(0, 6, step=3)),
        ("range(3,0,-1)", IntDistribution(1, 3)),
        ("range(0,1,0.5)", FloatDistribution(0.0, 0.5, step=0.5)),
        ("range(2,3,4)", IntDistribution(2, 2, step=4)),
        ("1,2", CategoricalDistribution([1, 2])),
        ("a,b", CategoricalDistribution(["a", "b"])),
        ("[1,2],[3]", CategoricalDistribution(["[1,2]", "[3]"])),
        ("{a:1},{a:2}", CategoricalDistribution(["{a:1}", "{a:2}"])),
        ("null,1", CategoricalDistribution([None, 1])),
        ("true,1", CategoricalDistribution(["true", "1"])),
        ("'a,b','c=d'", CategoricalDistribution(["a,b", "c=d"])),
    ],
)
def test_an_override_becomes_the_distribution_it_says(expression, expected):
    (parameter,) = parse_space([f"key={expression}"], {}).parameters

    assert distribution(parameter.domain) == expected


@pytest.mark.parametrize(
    ("expression", "numbers"),
    [
        ("range(1,3)", [1, 2]),
        ("range(0,1,0.3)", [0.0, 0.3, 0.6, 0.9]),
        ("range(1,0,-0.3)", [0.1, 0.4, 0.7, 1.0]),
        ("range(0,1,0.1)", [i / 10 for i in range(10)]),
        ("sort(range(1,0,-0.25))", [0.25, 0.5, 0.75, 1.0]),
        ("shuffle(range(1,3))", [1, 2]),
    ],
)
def test_a_range_enumerates_exactly_the_numbers_hydra_does(expression, numbers):
    space = parse_space([f"key={expression}"], {})

    points = [point["key"] for point in space.points()]
    assert sorted(points) == numbers
    assert [type(point) for point in sorted(points)] == [type(number) for number in numbers]


@pytest.mark.parametrize(
    "expression",
    ["range(0,1,0)", "range(0,0)", "range(3,1)", "range(0,1,-0.5)", "interval(5,1)", "tag(log,interval(0,1))", "interval(0,inf)"],
)
def test_a_range_that_cannot_be_searched_is_refused_by_name(expression):
    with pytest.raises(ConfigError, match=r"model\.width"):
        parse_space([f"model.width={expression}"], {})


def test_an_interval_of_a_key_that_holds_whole_numbers_stays_whole():
    space = parse_space(["model.d_model=interval(64,256)", "optimizer.lr=interval(1,2)"], {})

    space = typed(space, {"model.d_model": NumberType(whole=True), "optimizer.lr": NumberType(whole=False)})

    width, rate = (parameter.domain for parameter in space.parameters)
    assert distribution(width) == IntDistribution(64, 256)
    assert distribution(rate) == FloatDistribution(1, 2)
    assert width.text(96.0) == "96"
    assert rate.text(1) == "1.0"


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("interval(0.0,1.0)", FloatDistribution(0, 1)),
        ("interval(1,64.0)", FloatDistribution(1, 64)),
        ("tag(log,interval(1e0,64))", FloatDistribution(1, 64, log=True)),
        ("range(0.0,2.0,0.5)", FloatDistribution(0, 1.5, step=0.5)),
        ("interval(1,64)", IntDistribution(1, 64)),
        ("tag(log,interval(start=1,end=64))", IntDistribution(1, 64, log=True)),
        ("range(0,8,2)", IntDistribution(0, 6, step=2)),
    ],
)
def test_a_key_without_a_type_that_happens_to_hold_a_whole_number_is_searched_as_its_bounds_are_written(expression, expected):
    space = typed(parse_space([f"alpha={expression}"], {}), {"alpha": NumberType(whole=True, declared=False)})

    assert distribution(space.parameters[0].domain) == expected


def test_the_same_number_written_twice_is_one_value_of_a_key_of_floats():
    space = parse_space(["x=1,1.0,null,2e0,2.0"], {})

    (x,) = typed(space, {"x": NumberType(whole=False)}).parameters
    (as_written,) = typed(space, {}).parameters

    assert x.domain == Choice(("1", "null", "2.0"), (1, None, 2.0))
    assert len(as_written.domain) == 4


def test_a_broken_bound_of_a_key_that_holds_whole_numbers_is_refused():
    with pytest.raises(ConfigError, match=r"model\.d_model: takes whole numbers, the range has 0\.5, 2"):
        typed(parse_space(["model.d_model=interval(0.5,2)"], {}), {"model.d_model": NumberType(whole=True)})


def test_the_command_line_wins_over_the_presets():
    space = parse_space(["lr=0.1", "seed=1,2"], {"lr": "interval(0,1)", "seed": "choice(5,6,7)", "depth": [1, 2]})

    assert space.fixed == ("lr=0.1",)
    assert {p.name: p.domain.labels for p in space.parameters} == {"depth": (1, 2), "seed": (1, 2)}


def test_a_branch_exists_only_where_its_condition_holds():
    when = [
        {"if": {"model": "conformer"}, "params": {"model.kernel_size": "choice(7,15)", "model.d_model": "choice(96,144)"}},
        {"if": {"model": ["crdnn", "tdnn"]}, "params": {"model.d_model": "choice(256,320)"}},
        {"if": {"model": "conformer", "model.kernel_size": 15}, "params": {"model.heads": [2, 4]}},
    ]
    space = parse_space(["model=conformer,crdnn"], {}, when)

    lines = [space.overrides(point) for point in space.points()]

    assert len(lines) == 2 + 4 + 2
    assert ["model=crdnn", "model.d_model=256"] in lines
    assert ["model=conformer", "model.kernel_size=15", "model.d_model=144", "model.heads=4"] in lines
    assert all(("model.heads" in " ".join(line)) == ("kernel_size=15" in " ".join(line)) for line in lines)
    assert len({parameter.name for parameter in space.all_parameters()}) == 5  # the two widths are told apart


def test_points_come_in_the_order_of_hydras_own_sweeps():
    space = parse_space(["a=1,2", "b=x,y"], {})

    assert [space.overrides(point) for point in space.points()] == [["a=1", "b=x"], ["a=1", "b=y"], ["a=2", "b=x"], ["a=2", "b=y"]]


def test_every_entry_that_cannot_be_read_is_told_at_once():
    with pytest.raises(ConfigError) as caught:
        parse_space(["a=choice(1,", "b=range(1,0)"], {}, [{"if": {"model": "x"}}])

    assert len(caught.value.problems) == 3


def test_a_large_range_is_not_enumerated():
    space = parse_space(["key=range(0,1000000000000)"], {})

    assert space.size() is None
    assert distribution(space.parameters[0].domain) == IntDistribution(0, 999_999_999_999)


def test_numbers_of_a_range_are_in_it_and_others_are_not():
    domain = Range(0.0, 0.9, step=0.3)

    assert 0.6 in domain
    assert 0.5 not in domain
    assert 1.2 not in domain
    assert True not in domain
    assert math.nan not in domain


def test_a_choice_of_nothing_is_refused():
    with pytest.raises(ValueError, match="nothing to choose"):
        choice_of([])


def test_a_job_has_its_overrides_in_the_order_in_which_they_were_typed():
    space = parse_space(["b=1,2", "c=3", "~d", "a=4,5"], {"e": 6}, [{"if": {"b": 1}, "params": {"f": [7, 8]}}])

    assert space.overrides({"a": 5, "b": 1, "f": 8}) == ["e=6", "b=1", "c=3", "~d", "a=5", "f=8"]
