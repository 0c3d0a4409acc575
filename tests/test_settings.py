"""Settings: every accepted form gives the value it says, everything else is refused aloud."""

from __future__ import annotations

import dataclasses
import math
import pickle
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recut.budget import Budget, parse_budget
from recut.errors import RecutError, SettingError
from recut.settings import Settings, check_inductor_options

PEAK = 1000


@contextmanager
def refused(*parts):
    """Expect a refusal whose text holds every part."""
    with pytest.raises(SettingError) as caught:
        yield
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("value", "size"),
    [
        ("12GiB", 12 * 2**30),
        ("800MB", 800 * 10**6),
        ("1.5GiB", 3 * 2**29),
        ("1.GiB", 2**30),
        (".5GiB", 2**29),
        ("0.3KiB", 307),  # whole bytes, rounded down: never over what was asked for
        ("1KiB", 2**10),
        ("1MiB", 2**20),
        ("1TiB", 2**40),
        ("1KB", 10**3),
        ("1GB", 10**9),
        ("1TB", 10**12),
        ("4096B", 4096),
        ("1B", 1),
        ("  12  gib ", 12 * 2**30),
        ("12GIB", 12 * 2**30),
        ("12\tGiB", 12 * 2**30),
        (2, 2),
        (12 * 2**30, 12 * 2**30),
        ("4096", 4096),
        (" 2 ", 2),
        ("100000000000000000000000001B", 10**26 + 1),  # exact, never through a double
    ],
)
def test_bytes(value, size):
    budget = parse_budget(value, "memory_budget")
    assert budget == Budget("bytes", size)
    assert type(budget.value) is int
    assert budget.resolve(PEAK, None) == size


@pytest.mark.parametrize(
    ("value", "fraction"),
    [
        (0.6, 0.6),
        ("0.6", 0.6),
        (".6", 0.6),
        ("60%", 0.6),
        ("60 %", 0.6),
        ("62.5%", 0.625),
        ("100%", 1.0),
        (1.0, 1.0),
        (1, 1.0),
        ("1", 1.0),
        ("1.0", 1.0),
        ("0.5%", 0.005),
        (1e-7, 1e-7),
    ],
)
def test_fractions(value, fraction):
    budget = parse_budget(value, "memory_budget")
    assert budget == Budget("fraction", fraction)
    assert type(budget.value) is float


def test_auto_asks_the_device():
    budget = parse_budget("auto", "memory_budget")
    assert budget == parse_budget(" AUTO ", "memory_budget") == Budget("auto")
    assert budget.resolve(PEAK, lambda: 77) == 77
    assert budget.resolve(PEAK, lambda: -1) == 0
    with refused("memory_budget", "'auto'", "free memory"):
        budget.resolve(PEAK, None)


def test_only_auto_asks_the_device():
    def free():
        raise AssertionError("asked")

    assert parse_budget(0.5, "x").resolve(PEAK, free) == 500
    assert parse_budget(64, "x").resolve(PEAK, free) == 64


@pytest.mark.parametrize(
    ("value", "meant"),
    [
        (0, "0.01"),
        (0.0, "0.01"),
        (-0.0, "0.01"),
        ("0", "0.01"),
        ("0%", "0.01"),
        ("0GiB", "0.01"),
        (-1, "did you mean 1?"),
        (-12884901888, "did you mean 12884901888?"),
        (-(10**400), "positive"),
        (-1.5, "positive; accepted are"),
        ("9" * 5000, "accepted are"),
        (-0.5, "did you mean 0.5?"),
        ("-12GiB", 'did you mean "12GiB"?'),
        ("+0.6", 'did you mean "0.6"?'),
        (math.nan, "finite"),
        (math.inf, "finite"),
        (-math.inf, "finite"),
        ("nan", "finite"),
        ("inf", "finite"),
        (1.5, '"1.5GiB", or a fraction such as 0.015'),
        ("1.5", '"1.5GiB"'),
        (2.0, '"2GiB"'),
        ("60.0", "a fraction such as 0.6"),
        (12e9, "12000000000, an int"),
        ("150%", 'did you mean "100%"?'),
        ("12G", '"12GiB" or "12GB"'),
        ("12Gi", '"12GiB" or "12GB"'),
        ("800 m", '"800MiB" or "800MB"'),
        ("12 gigabytes", '"12GiB" or "12GB"'),
        ("3 parsecs", '"3GiB"'),
        ("0.5B", '"0.5GiB"'),
        ("1.5B", '"1.5GiB"'),
        ("1e9", '"1000000000"'),
        ("0,6", '"," and "_"'),
        ("1_000_000", '"," and "_"'),
        ("atuo", '"auto"'),
        ("", "accepted are"),
        ("   ", "accepted are"),
        ("lots", "accepted are"),
        ("GiB", "accepted are"),
        ("1 2 GiB", "accepted are"),
        ("1.2.3", "accepted are"),
        ("٣GiB", "accepted are"),
        (True, "accepted are"),
        (False, "accepted are"),
        (None, "accepted are"),
        (b"12GiB", "accepted are"),
        ([0.5], "accepted are"),
        (0.5j, "accepted are"),
        (Decimal("0.5"), "accepted are"),
    ],
)
def test_refused_budgets_name_source_value_and_meaning(value, meant):
    with refused("RECUT_MEMORY_BUDGET", repr(value), meant):
        parse_budget(value, "RECUT_MEMORY_BUDGET")


@given(st.one_of(st.text(), st.integers(), st.floats(), st.booleans(), st.none()))
def test_any_value_is_read_or_refused(value):
    try:
        budget = parse_budget(value, "x")
    except SettingError:
        return
    if budget.kind == "fraction":
        assert 0 < budget.value <= 1
    elif budget.kind == "bytes":
        assert budget.value >= 1


@given(st.floats(0, 1, exclude_min=True), st.floats(0, 1, exclude_min=True), st.integers(0, 2**60))
def test_a_lower_fraction_is_never_more_bytes(a, b, peak):
    low, high = sorted((a, b))
    small = parse_budget(low, "x").resolve(peak, None)
    large = parse_budget(high, "x").resolve(peak, None)
    assert 0 <= small <= large <= peak


@given(st.integers(1, 100), st.integers(0, 2**60))
def test_a_percentage_is_exact(percent, peak):
    assert parse_budget(f"{percent}%", "x").resolve(peak, None) == peak * percent // 100


@given(st.integers(2, 2**70))
def test_an_int_is_its_own_text(size):
    assert parse_budget(size, "x") == parse_budget(str(size), "x") == parse_budget(f"{size}B", "x")


@pytest.mark.parametrize(
    ("value", "text"), [(4096, "4096 bytes"), ("60%", "60%"), ("auto", "auto"), (1, "100%")]
)
def test_budget_as_text(value, text):
    assert str(parse_budget(value, "x")) == text


def test_the_error_is_a_value_error_and_survives_pickle():
    error = SettingError("dump", "x", "is a file", "give a folder")
    assert isinstance(error, ValueError)
    assert isinstance(error, RecutError)
    copy = pickle.loads(pickle.dumps(error))
    assert str(copy) == str(error) == "dump='x': is a file; give a folder"
    assert (copy.setting, copy.value, copy.problem, copy.remedy) == error.args


def test_defaults():
    settings = Settings.read(None, {})
    assert settings == Settings() == Settings.read({}, {"PATH": "/bin", "OTHER_RECUT_X": "1"})
    assert settings.memory_budget == Budget("fraction", 1.0)
    assert (settings.dump, settings.plan, settings.solver_seconds) == (None, None, 10.0)
    assert settings.inductor == {}


def test_settings_and_budget_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Settings().dump = None  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        Budget("auto").value = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("value", "on"),
    [
        ("1", True),
        (" True ", True),
        (True, True),
        (1, True),
        ("0", False),
        ("no", False),
        (0, False),
    ],
)
def test_passes_are_dumped_where_a_dump_is(tmp_path, value, on):
    settings = Settings.read({"dump_passes": value, "dump": tmp_path}, {})
    assert settings.dump_passes is settings.dumps_passes is on
    assert Settings.read(None, {"RECUT_DUMP_PASSES": str(value)}).dumps_passes is False


@pytest.mark.parametrize("value", ["2", "maybe", 2, 0.5, None, []])
def test_a_switch_is_on_or_off(value):
    with refused("dump_passes", "neither on nor off"):
        Settings.read({"dump_passes": value}, {})


def test_environment_is_read_and_options_override_it(tmp_path):
    plan = tmp_path / "plan.json"
    plan.write_text("{}")
    environ = {
        "RECUT_MEMORY_BUDGET": "12GiB",
        "RECUT_DUMP": str(tmp_path / "out"),
        "RECUT_PLAN": str(plan),
        "RECUT_SOLVER_SECONDS": "2.5",
    }
    expected = Settings(Budget("bytes", 12 * 2**30), tmp_path / "out", plan, 2.5)
    assert Settings.read(None, environ) == expected
    options = {"memory_budget": 0.5, "dump": None, "plan": None, "solver_seconds": 3}
    assert Settings.read(options, environ) == Settings(Budget("fraction", 0.5), solver_seconds=3.0)


def test_an_overridden_environment_value_is_not_read():
    assert Settings.read({"memory_budget": 1}, {"RECUT_MEMORY_BUDGET": "junk"}) == Settings()


def test_the_process_environment_is_the_default(monkeypatch):
    monkeypatch.setenv("RECUT_SOLVER_SECONDS", "7")
    assert Settings.read(None).solver_seconds == 7.0


@pytest.mark.parametrize("empty", ["", "  "])
def test_an_empty_environment_variable_is_unset(empty):
    names = ("RECUT_MEMORY_BUDGET", "RECUT_DUMP", "RECUT_PLAN", "RECUT_SOLVER_SECONDS")
    assert Settings.read(None, dict.fromkeys(names, empty)) == Settings()


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("memory_buget", "did you mean memory_budget?"),
        ("memory-budget", "did you mean memory_budget?"),
        ("dumps", "did you mean dump?"),
        ("solver_second", "did you mean solver_seconds?"),
        ("Plan", "did you mean plan?"),
        (
            "zzz",
            "known are costs, dump, dump_passes, effort, inductor, machine, memory_budget, plan",
        ),
        (3, "known are"),
    ],
)
def test_unknown_options_are_refused_with_the_nearest(key, nearest):
    with refused("unknown option", str(key), nearest):
        Settings.read({key: 1}, {})


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("RECUT_MEMORY_BUGDET", "did you mean RECUT_MEMORY_BUDGET?"),
        ("RECUT_BUDGET", "did you mean RECUT_MEMORY_BUDGET?"),
        ("RECUT_SOLVER_SECS", "did you mean RECUT_SOLVER_SECONDS?"),
        ("RECUT_", "RECUT_"),
    ],
)
def test_unknown_environment_variables_are_refused_with_the_nearest(name, nearest):
    with refused("unknown environment variable", name, nearest):
        Settings.read(None, {name: "1"})


def test_a_refusal_names_where_the_value_came_from():
    with refused("RECUT_MEMORY_BUDGET='1.5'"):
        Settings.read(None, {"RECUT_MEMORY_BUDGET": "1.5"})
    with refused("memory_budget=1.5"):
        Settings.read({"memory_budget": 1.5}, {})


def test_plan_must_be_a_file(tmp_path):
    with refused("plan", "does not exist"):
        Settings.read({"plan": tmp_path / "none.json"}, {})
    with refused("RECUT_PLAN", "is a folder"):
        Settings.read(None, {"RECUT_PLAN": str(tmp_path)})


def test_dump_must_be_a_possible_folder(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    for path in (file, file / "below" / "it"):
        with refused("dump", f"{file} is a file"):
            Settings.read({"dump": str(path)}, {})
    new = tmp_path / "a" / "b"
    assert Settings.read({"dump": new}, {}).dump == new
    assert not new.exists()
    assert Settings.read({"dump": "~/out"}, {}).dump == Path.home() / "out"


@pytest.mark.parametrize("key", ["dump", "plan"])
@pytest.mark.parametrize("value", [3, True, "", ["x"]])
def test_what_is_no_path(key, value):
    with refused(key, "not a path"):
        Settings.read({key: value}, {})


@pytest.mark.parametrize(("value", "seconds"), [(1, 1.0), (0.25, 0.25), ("30", 30.0)])
def test_solver_seconds(value, seconds):
    assert Settings.read({"solver_seconds": value}, {}).solver_seconds == seconds


@pytest.mark.parametrize("value", ["high", " HIGH ", "normal"])
def test_effort(value):
    assert Settings.read({"effort": value}, {}).effort == value.strip().lower()
    assert Settings.read(None, {"RECUT_EFFORT": value}).effort == value.strip().lower()


@pytest.mark.parametrize("value", ["higher", 2, True, None])
def test_refused_effort(value):
    with refused("effort", 'give "normal", or "high"'):
        Settings.read({"effort": value}, {})


@pytest.mark.parametrize(
    "value", [0, -1, math.nan, math.inf, "nan", "soon", "10s", True, None, [1], 10**400]
)
def test_refused_solver_seconds(value):
    with refused("solver_seconds", "positive number of seconds"):
        Settings.read({"solver_seconds": value}, {})


def test_inductor_options_are_copied():
    given_options = {"max_autotune": True, "triton.cudagraphs": False}
    settings = Settings.read({"inductor": given_options}, {})
    assert settings.inductor == given_options
    assert settings.inductor is not given_options


@pytest.mark.parametrize("value", [None, "max_autotune", [("max_autotune", True)], 1])
def test_inductor_must_be_a_mapping(value):
    with refused("inductor", "no mapping"):
        Settings.read({"inductor": value}, {})


def test_unknown_inductor_options_are_refused_with_the_nearest():
    with refused("inductor", "max_autotuning", "did you mean max_autotune?"):
        Settings.read({"inductor": {"max_autotuning": True}}, {})
    with refused("no known name is near"):
        check_inductor_options({"qqqqqqqq": 1})
    with refused("no known name is near"):
        check_inductor_options({7: 1})  # type: ignore[dict-item]


def test_the_partitioner_hook_is_recuts_own():
    with refused("inductor", "custom_partitioner_fn"):
        Settings.read({"inductor": {"custom_partitioner_fn": None}}, {})


def test_key_changes_with_what_changes_a_plan(tmp_path):
    plan = tmp_path / "plan.json"
    plan.write_text("1")
    base = Settings(plan=plan)
    keys = [
        base.key(),
        Settings().key(),
        Settings(Budget("fraction", 0.5)).key(),
        Settings(Budget("bytes", 1)).key(),
        Settings(Budget("auto")).key(),
        Settings(solver_seconds=1.0).key(),
        Settings(effort="high").key(),
    ]
    plan.write_text("2")
    keys.append(base.key())
    assert len(set(keys)) == len(keys)


def test_key_is_equal_for_equal_plans(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    for path in (one, two):
        path.write_text("same")
    assert Settings(plan=one).key() == Settings(plan=two).key()
    assert Settings(dump=tmp_path).key() == Settings(inductor={"max_autotune": True}).key()
    half = (Settings.read({"memory_budget": value}, {}).key() for value in (0.5, "0.5", "50%"))
    assert len(set(half)) == 1


def test_key_is_the_same_in_every_process():
    assert Settings().key() == DEFAULT_KEY


# Caches on disk are looked up by it: a change here drops them, which is right only on purpose.
DEFAULT_KEY = "63c6a793f430c2234dc1879471635f93d8f6969fb611918a81c42b2cf2f93aa9"
