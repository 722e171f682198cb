"""The grammar of intervention specs: valid specs, their results, and that parsing a spec executes nothing."""

from __future__ import annotations

import builtins
import contextlib
import keyword
import math
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pliant.agents.clock import Every, Trigger
from pliant.agents.hooks import Compose, Intervention
from pliant.interventions import INTERVENTIONS
from pliant.interventions.core import spec
from pliant.interventions.core.spec import (
    Spec,
    SpecError,
    build,
    check,
    normalise,
    parse,
    signature,
    with_current_names,
)

without_deadline = settings(deadline=None, max_examples=300)


class Redo(Intervention):
    """Recycles dormant units."""

    name = "redo"

    def __init__(self, tau: float = 0.025, every: int = 1000, layers: tuple[str, ...] | None = None) -> None:
        super().__init__()
        if not 0 <= tau < 1:
            raise ValueError(f"tau must lie in [0, 1), not\n{tau}")
        self.tau, self.every, self.layers = tau, every, layers


class Reset(Intervention):
    """Draws layers anew."""

    name = "reset"
    reserves = ("weights",)

    def __init__(
        self,
        layers: tuple[str, ...],
        mode: Literal["hard", "soft"] = "hard",
        when: Trigger | str | None = None,
        *,
        span: tuple[int, float] = (0, 1.0),
        quiet: bool = False,
    ) -> None:
        super().__init__()
        self.layers, self.mode, self.trigger, self.span, self.quiet = layers, mode, when, span, quiet


class LayerNorm(Intervention):
    """Takes no arguments; its signature is that of `nn.Module`."""

    name = "layer_norm"


class OnSchedule(Intervention):
    """Takes only values that a spec cannot express."""

    def __init__(self, trigger: Every) -> None:
        super().__init__()


def scheduled(horizon, *, rate=0.5) -> Intervention:  # type: ignore[no-untyped-def]
    """A function without annotations."""
    return Redo(tau=rate, every=horizon)


def by_name_only(*, rate: float = 0.5) -> Intervention:
    return Redo(tau=rate)


REGISTRY: dict[str, Any] = {
    "redo": Redo,
    "reset": Reset,
    "layer_norm": LayerNorm,
    "on_schedule": OnSchedule,
    "scheduled": scheduled,
}
REGISTRY["by_name_only"] = by_name_only


# Parsing


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("layer_norm", Spec("layer_norm")),
        ("  layer_norm ( ) ", Spec("layer_norm")),
        ("redo(tau=0.1, every=1_000)", Spec("redo", {"tau": 0.1, "every": 1000})),
        ("f(a=-1, b=+2.5, c=-1e-3)", Spec("f", {"a": -1, "b": 2.5, "c": -0.001})),
        ("f(a=True, b=None, c=head)", Spec("f", {"a": True, "b": None, "c": "head"})),
        ("f(a=[x, 1], b=(y,), c=())", Spec("f", {"a": ("x", 1), "b": ("y",), "c": ()})),
        ("f(a=((0, 1.0), (9, 0.5)))", Spec("f", {"a": ((0, 1.0), (9, 0.5))})),
        ("f(when='critic/dormant_fraction > 0.2')", Spec("f", {"when": "critic/dormant_fraction > 0.2"})),
        ("f(a='\\d')", Spec("f", {"a": "\\d"})),
        ("replay_ratio(8)", Spec("replay_ratio", {}, (8,))),
    ],
)
def test_specs_are_parsed(text: str, expected: Spec) -> None:
    assert parse(text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty spec"),
        ("   ", "empty spec"),
        ("redo(tau=0.1", "parentheses do not match; quote the whole spec"),
        ("layer_norm redo", "quote each spec separately: layer_norm redo"),
        ("layer_norm redo(tau=0.1)", "quote each spec separately"),
        ("3", "write a name, or a call like redo"),
        ("a.b(c=1)", "write a name, or a call like redo"),
        ("f(a=1)(b=2)", "write a name, or a call like redo"),
        ("f(when=Every(100))", r"f\(when=...\): the nested call Every\(...\) cannot be a value"),
        ("f(when=critic > 0.2)", "a comparison outside quotes cannot be a value"),
        ("f(at=10**6)", "arithmetic outside quotes"),
        ("f(a=critic.head)", "a dotted name"),
        ("f(a=-head)", "a sign before something that is not a number"),
        ("f(a=--1)", "a sign before something that is not a number"),
        ("f(a=-True)", "a sign before something that is not a number"),
        ("f(a={1: 2})", "dict cannot be a value"),
        ("f(a=f'{b}')", "joinedstr cannot be a value"),
        ("f(a=b'x')", "bytes"),
        ("f(a=2j)", "complex"),
        ("f(a=...)", "ellipsis"),
        ("f(a=[x for x in y])", "listcomp cannot be a value"),
        ("f(a=1e999)", "too large"),
        ("f(a=99999999999999999999)", "too large"),
        ("f(1, 2)", "at most one value may be given without its name"),
        ("f(*a)", "starred cannot be a value"),
        ("f(**a)", r"\*\* is not allowed in a spec"),
        ("f(a=1, a=2)", "'a' is given twice"),
        ("f(" + "(" * 300 + "1" + ")" * 300 + ")", "cannot read"),
        ("f(a=" + "-" * 900 + "1)", "f"),
        ("f(a=" + "1" * 5000 + ")", "longer than"),
        ("f(a=\x00)", "cannot read"),
        ("f(a='\ud800')", "cannot read"),
    ],
)
def test_invalid_specs_are_refused_in_one_line(text: str, message: str) -> None:
    with pytest.raises(SpecError, match=message) as caught:
        parse(text)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("error", [SyntaxError, ValueError, MemoryError, RecursionError])
def test_every_parser_exception_becomes_a_spec_error(error: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    def give_up(*_: object, **__: object) -> None:
        raise error

    with monkeypatch.context() as patch:  # pytest reads tests with `ast` itself
        patch.setattr("pliant.common.specs.ast.parse", give_up)
        with pytest.raises(SpecError, match="cannot read"):
            parse("redo")


def _names() -> st.SearchStrategy[str]:
    return st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,9}", fullmatch=True).filter(lambda name: not keyword.iskeyword(name))


def _values() -> st.SearchStrategy[Any]:
    scalars = (
        st.none()
        | st.booleans()
        | st.integers(-(2**63) + 1, 2**63 - 1)
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(max_size=12)
        | _names()
    )
    return st.recursive(scalars, lambda inner: st.lists(inner, max_size=3).map(tuple), max_leaves=6)


def _specs() -> st.SearchStrategy[Spec]:
    arguments = st.dictionaries(_names(), _values(), max_size=4)
    return st.builds(Spec, _names(), arguments, st.lists(_values(), max_size=1).map(tuple))


def _exactly(value: Any) -> Any:
    """A representation that distinguishes 1, 1.0 and True, and 0.0 from -0.0."""
    if isinstance(value, tuple):
        return tuple(_exactly(item) for item in value)
    return type(value), repr(value)


@without_deadline
@given(_specs())
@example(Spec("f", {"a": "None", "b": "lambda", "c": "inf", "d": -0.0, "e": 'it\'s "so"\n'}))
@example(Spec("f", {"a": ()}, (("x",),)))
def test_the_canonical_text_parses_to_the_same_spec(spec: Spec) -> None:
    back = parse(normalise([str(spec)]))
    assert back.name == spec.name
    assert {k: _exactly(v) for k, v in back.arguments.items()} == {k: _exactly(v) for k, v in spec.arguments.items()}
    assert _exactly(back.positional) == _exactly(spec.positional)
    assert normalise([str(back)]) == normalise([str(spec)])


NOISE = st.text(alphabet="ab_x(),=[]'\"-+. 01e\\\n#{}:*<>@lambdaif\t;!f", max_size=40)


@without_deadline
@given(st.text(max_size=40) | NOISE | NOISE.map(lambda text: f"f({text})") | NOISE.map(lambda text: f"f(a={text})"))
@example("f(a='\\d')")
@example("f(a=1if 1else 2)")
@example("f(a='\\N{')")
def test_any_text_is_a_spec_or_a_spec_error(text: str) -> None:
    for read in (parse, lambda text: build([text], REGISTRY)):
        try:
            read(text)
        except SpecError as error:
            assert "\n" not in str(error)


@pytest.mark.parametrize(
    "attack",
    [
        "__import__('pathlib').Path({path!r}).touch()",
        "redo(tau=__import__('pathlib').Path({path!r}).touch())",
        "redo(tau=open({path!r}, 'w'))",
        "redo(layers=[open({path!r}, 'w')])",
        "redo(tau=(lambda: open({path!r}, 'w'))())",
        "redo(tau=f\"{{open({path!r}, 'w')}}\")",
        "(redo := open({path!r}, 'w'))",
        "open({path!r}, 'w')",
        "open(file={path!r}, mode=w)",
        "exec(\"open({path!r}, 'w')\")",
    ],
)
def test_parsing_and_building_execute_no_code(attack: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "harm"
    text = attack.format(path=str(target))
    with monkeypatch.context() as patch:

        def evaluated(*_: object) -> None:
            raise AssertionError("evaluated")

        patch.setattr(builtins, "eval", evaluated)
        patch.setattr(builtins, "exec", evaluated)
        with contextlib.suppress(SpecError):
            parse(text)
    with pytest.raises(SpecError):
        build([text], REGISTRY)
    assert not target.exists()


# Normalising


def test_normalisation_ignores_spelling_but_not_the_order_of_specs() -> None:
    assert normalise(["layer_norm()", "redo( every = 1_000,tau=.1 )"]) == "layer_norm redo(every=1000, tau=0.1)"
    assert normalise(["reset(layers=['head'])"]) == normalise(["reset( layers=(head,) )"])
    assert normalise(["redo(tau=0.1, every=1)"]) == normalise(["redo(every=1, tau=0.1)"])
    assert normalise(["a", "b"]) != normalise(["b", "a"])
    assert normalise([]) == ""


def test_with_a_registry_position_and_type_are_canonical_too() -> None:
    assert normalise(["redo(0.1)"], REGISTRY) == normalise(["redo(tau=0.1)"], REGISTRY) == "redo(tau=0.1)"
    assert check(["redo(every=1e3, tau=0)"], REGISTRY) == ("redo(every=1000, tau=0.0)",)
    assert check(["reset(head)"], REGISTRY) == check(["reset(layers=[head])"], REGISTRY) == ("reset(layers=(head,))",)


def test_checking_specs_twice_changes_nothing() -> None:
    specs = check(["reset(head, span=[1, 2], when='a > 1', quiet=True)", "scheduled(7)", "layer_norm"], REGISTRY)
    assert check(specs, REGISTRY) == specs


# Building


def test_specs_are_built_in_order() -> None:
    built = build(["layer_norm", "redo(0.1, every=1e3)", "reset(layers=head, span=(1, 2))"], REGISTRY)
    assert isinstance(built, Compose)
    norm, redo, reset = built
    assert isinstance(norm, LayerNorm) and isinstance(redo, Redo) and isinstance(reset, Reset)
    assert (redo.tau, redo.every, redo.layers) == (0.1, 1000, None)
    assert type(redo.every) is int
    assert reset.layers == ("head",)
    assert reset.span == (1, 2.0) and type(reset.span[1]) is float
    assert len(build([], REGISTRY)) == 0
    assert build(["scheduled(7)"], REGISTRY)


USAGE = r"redo\(tau: float = 0.025, every: int = 1000, layers: \(str, ...\) \| None = None\)"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rdo", r"unknown intervention 'rdo'\. Did you mean 'redo'\? known interventions: by_name_only, layer_norm"),
        ("xyz", r"unknown intervention 'xyz'\. known interventions: by_name_only, layer_norm"),
        ("redo(taux=0.1)", rf"redo has no parameter 'taux'\. Did you mean 'tau'\? Usage: {USAGE}"),
        ("redo(self=1)", "redo has no parameter 'self'"),
        ("layer_norm(args=1)", r"layer_norm has no parameter 'args'. Usage: layer_norm\(\)"),
        ("layer_norm(1)", "a value needs its parameter's name"),
        ("redo(tau=abc)", rf"redo\(tau=...\) expects float, not 'abc'\. Usage: {USAGE}"),
        ("redo(tau='0.1')", "expects float, not '0.1'"),
        ("redo(tau=True)", "expects float, not True"),
        ("redo(tau=None)", "expects float, not None"),
        ("redo(every=0.5)", "expects int, not 0.5"),
        ("redo(every=(1, 2))", r"expects int, not \(1, 2\)"),
        ("redo(layers=(1, 2))", r"expects \(str, ...\) \| None, not \(1, 2\)"),
        ("by_name_only(1)", "a value needs its parameter's name: by_name_only"),
        ("redo(0.1, tau=0.2)", "'tau' is given twice"),
        ("redo(tau=1.5)", r"redo\(tau=1.5\): tau must lie in \[0, 1\), not 1.5"),
        ("reset", "reset needs a value for 'layers'"),
        ("reset(mode=soft)", "reset needs a value for 'layers'"),
        ("reset(layers=head, mode=sft)", "expects 'hard' | 'soft', not 'sft'"),
        ("reset(layers=head, span=(1, 2, 3))", r"expects \(int, float\), not \(1, 2, 3\)"),
        ("reset(layers=head, span=1)", r"expects \(int, float\), not 1"),
        ("reset(layers=head, quiet=1)", "expects bool, not 1"),
        ("reset(layers=None)", r"expects \(str, ...\), not None"),
        ("on_schedule(trigger=5)", "expects Every, not 5"),
    ],
)
def test_specs_that_cannot_be_built_are_refused_in_one_line(text: str, message: str) -> None:
    with pytest.raises(SpecError, match=message) as caught:
        build([text], REGISTRY)
    assert "\n" not in str(caught.value)
    if "must lie" not in message:
        with pytest.raises(SpecError, match=message):
            check([text], REGISTRY)


@pytest.mark.parametrize("name", ["redo", "regrama", "continual_backprop", "self_normalized_reset"])
@pytest.mark.parametrize(("former", "value"), [("own", "per_weight"), ("shared", "per_tensor")])
def test_a_renamed_parameter_is_refused_with_its_new_name_and_read_from_earlier_files(
    name: str, former: str, value: str
) -> None:
    old, new = f"{name}(ages={former})", f"{name}(step_counts={value})"
    with pytest.raises(SpecError) as caught:
        check([old], INTERVENTIONS)
    assert str(caught.value) == f"{name}: the parameter 'ages' is called 'step_counts' now; write {new}"
    with pytest.raises(TypeError, match="the parameter 'ages' is called 'step_counts' now"):
        INTERVENTIONS[name](ages=former)
    assert with_current_names([old, "reset", "a b"], INTERVENTIONS) == (new, "reset", "a b")
    (nested,) = with_current_names([f"matched_random('{old}')"], INTERVENTIONS)
    assert nested == f"matched_random('{new}')"


def test_specs_that_exclude_each_other_are_refused() -> None:
    with pytest.raises(SpecError, match="reset and reset exclude each other"):
        build(["reset(head)", "reset(torso)"], REGISTRY)


def test_a_bug_in_an_intervention_is_not_reported_as_a_bad_spec() -> None:
    def broken(tau: float = 1.0) -> Intervention:
        raise TypeError("a bug")

    with pytest.raises(TypeError, match="a bug"):
        build(["broken"], {"broken": broken})


def test_signatures_show_types_and_defaults() -> None:
    assert signature("layer_norm", LayerNorm) == "layer_norm()"
    assert signature("scheduled", scheduled) == "scheduled(horizon, rate=0.5)"
    assert signature("reset", Reset) == (
        "reset(layers: (str, ...), mode: 'hard' | 'soft' = hard, when: Trigger | str | None = None, "
        "span: (int, float) = (0, 1.0), quiet: bool = False)"
    )


# Converting


@pytest.mark.parametrize(
    ("value", "annotation", "expected"),
    [
        (1, float, 1.0),
        (1e3, int, 1000),
        ("a", tuple[str, ...], ("a",)),
        ([1, 2], tuple[float, ...], (1.0, 2.0)),
        ([1, 2], list[int], [1, 2]),
        (1, int | float, 1),
        (1, float | int, 1),
        (1.5, int | float, 1.5),
        ("auto", float | Literal["auto"], "auto"),
        ({"a": 1}, dict[str, float], {"a": 1.0}),
        (None, int | None, None),
        ("x", Any, "x"),
    ],
)
def test_values_are_converted_without_loss(value: Any, annotation: Any, expected: Any) -> None:
    assert _exactly(spec.convert(value, annotation)) == _exactly(expected)


@pytest.mark.parametrize(
    ("value", "annotation"),
    [
        (True, int),
        (1, bool),
        (0.5, int),
        (math.inf, int),
        (math.nan, int),
        ("1", int),
        (1, str),
        (None, str),
        (True, Literal[1]),
        (1, Literal[True]),
        ({}, tuple[int, ...]),
        ([1], tuple[int, int]),
        (3, dict[str, int]),
    ],
)
def test_conversions_with_a_loss_are_refused(value: Any, annotation: Any) -> None:
    with pytest.raises(ValueError, match="expects"):
        spec.convert(value, annotation)


def test_numbers_in_text_are_parsed_only_on_request() -> None:
    assert spec.convert("1e-4", float, text=True) == 1e-4
    assert spec.convert("1e6", int, text=True) == 1_000_000
    assert spec.convert("1e-4", float | Literal["auto"], text=True) == 1e-4
    assert spec.convert("1e-4", str, text=True) == "1e-4"
    assert spec.convert("1e-4", str | float, text=True) == "1e-4"
    for text in ("x", "", "0.5"):
        with pytest.raises(ValueError, match="expects int"):
            spec.convert(text, int, text=True)
