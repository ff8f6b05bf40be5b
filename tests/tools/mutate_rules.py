"""Remove every clause of every rule, one at a time: at least one promtool test must fail.

    python -m tests.tools.mutate_rules                     # all of them, some minutes; ends with 1 if one survives
    python -m tests.tools.mutate_rules --only CMLWorkerIdle

A clause is an operand of and, or, unless or of arithmetic, a comparison, a matcher or one alternative of its regular
expression, an aggregation or one of its labels, a range (the newest value instead), an offset, `on`, `group_left`, `bool` and
`for`.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import promql_parser as promql
import yaml

PROMETHEUS = Path(__file__).parents[2] / "prometheus"
SETTINGS = "settings.yml"
"""Constants have no clauses."""

EQUIVALENT: Mapping[tuple[str, str], str] = {}
"""(rule, removed clause) → why no test can notice."""


@dataclass(frozen=True, slots=True)
class Mutant:
    """A rule with one clause less."""

    file: str
    rule: str
    what: str
    change: Mapping[str, str | None]
    """Keys of the rule and their new values; None removes one."""


# -- clauses that can be removed from an expression ------------------------------------------------------------------------

Variant = tuple[str, str]
"""The removed clause, and the expression without it."""


def text(node: Any) -> str:  # noqa: ANN401  # the parser's nodes have no useful common type
    """Write a node as PromQL, explicitly enough that it can stand in any place."""
    match node:
        case promql.BinaryExpr():
            return f"({text(node.lhs)} {operator(node)} {text(node.rhs)})"
        case promql.AggregateExpr():
            return f"{aggregation(node, labels(node))}({parameter(node)}{text(node.expr)})"
        case promql.Call():
            return call(node, [text(argument) for argument in node.args])
        case promql.ParenExpr():
            return text(node.expr)
        case promql.SubqueryExpr():
            return f"({text(node.expr)}){suffix(node)}"
        case promql.MatrixSelector():
            return selector(node.vector_selector, node.range)
        case promql.VectorSelector():
            return selector(node)
        case promql.NumberLiteral():
            return repr(node.val)
        case promql.StringLiteral():
            return json.dumps(node.val)
    raise NotImplementedError(f"{type(node).__name__} in {node.prettify()}: teach tests/tools/mutate_rules.py about it")


def parameter(node: promql.AggregateExpr) -> str:
    """Return the parameter of an aggregation, such as the label of count_values, with the comma behind it."""
    return "" if node.param is None else f"{text(node.param)}, "


def variants(node: Any) -> Iterator[Variant]:  # noqa: ANN401
    """Yield the expression without each of its clauses in turn."""
    match node:
        case promql.BinaryExpr():
            yield from without_parts(node)
            yield from ((what, f"({new} {operator(node)} {text(node.rhs)})") for what, new in variants(node.lhs))
            yield from ((what, f"({text(node.lhs)} {operator(node)} {new})") for what, new in variants(node.rhs))
        case promql.AggregateExpr():
            whole = labels(node)
            yield f"{aggregation(node, whole)}(…)", text(node.expr)
            for label in whole:
                less = [each for each in whole if each != label]
                yield f"by {label}", f"{aggregation(node, less)}({parameter(node)}{text(node.expr)})"
            yield from ((what, f"{aggregation(node, whole)}({parameter(node)}{new})") for what, new in variants(node.expr))
        case promql.Call():
            yield from without_range(node)
            for place, argument in enumerate(node.args):
                for what, new in variants(argument):
                    yield what, call(node, [new if n == place else text(each) for n, each in enumerate(node.args)])
        case promql.ParenExpr():
            yield from variants(node.expr)
        case promql.SubqueryExpr():
            yield from ((what, f"({new}){suffix(node)}") for what, new in variants(node.expr))
        case promql.MatrixSelector():
            yield from without_matchers(node.vector_selector, node.range)
        case promql.VectorSelector():
            yield from without_matchers(node)


def without_parts(node: promql.BinaryExpr) -> Iterator[Variant]:
    """Yield what is left of an operation without one of its sides, or without one of its modifiers."""
    left, right, sign = text(node.lhs), text(node.rhs), str(node.op)
    yield f"{sign} {right}", left
    if sign not in ("==", "!=", "<", "<=", ">", ">="):  # a comparison is one clause, its left side is what it is about
        yield f"{left} {sign}", right
    modifier = node.modifier
    if modifier and modifier.return_bool:
        yield f"bool of {sign}", f"({left} {sign} {right})"
    if modifier and modifier.matching:
        yield f"{on(node)} of {sign}", f"({left} {sign} {right})"
        if group(node):
            yield f"{group(node)} of {sign}", f"({left} {sign} {on(node)} {right})"


def without_range(node: promql.Call) -> Iterator[Variant]:
    """Yield the newest value in place of what a function makes of a range."""
    for argument in node.args:
        if isinstance(argument, promql.MatrixSelector):
            yield f"{text(node)} over its range", selector(argument.vector_selector)
        elif isinstance(argument, promql.SubqueryExpr):
            yield f"{text(node)} over its range", text(argument.expr)


def without_matchers(node: promql.VectorSelector, range_: Any = None) -> Iterator[Variant]:  # noqa: ANN401
    """Yield a selector without each matcher, each alternative of a regular expression, and the offset."""
    matchers = [(each.name, each.op, each.value) for each in node.matchers.matchers]
    for place, (name, op, value) in enumerate(matchers):
        others = [*matchers[:place], *matchers[place + 1 :]]
        yield f"{name}{OPERATORS[str(op)]}{value}", selector(node, range_, matchers=others)
        alternatives = value.split("|") if "Re" in str(op) else []
        for alternative in alternatives if len(alternatives) > 1 else ():
            less = "|".join(each for each in alternatives if each != alternative)
            changed = [*matchers[:place], (name, op, less), *matchers[place + 1 :]]
            yield f"{name}: |{alternative}", selector(node, range_, matchers=changed)
    if node.offset:
        yield f"offset of {node.name or 'all'}", selector(node, range_, offset=False)


# -- how the parser's nodes are written --------------------------------------------------------------------------------

OPERATORS = {"MatchOp.Equal": "=", "MatchOp.NotEqual": "!=", "MatchOp.Re": "=~", "MatchOp.NotRe": "!~"}


def selector(
    node: promql.VectorSelector,
    range_: Any = None,  # noqa: ANN401
    *,
    matchers: Sequence[tuple[str, Any, str]] | None = None,
    offset: bool = True,
) -> str:
    """Write a selector, perhaps with other matchers, or without its offset."""
    if matchers is None:
        matchers = [(each.name, each.op, each.value) for each in node.matchers.matchers]
    inside = ",".join(f"{name}{OPERATORS[str(op)]}{json.dumps(value)}" for name, op, value in matchers)
    range_text = f"[{promql.display_duration(range_)}]" if range_ else ""
    offset_text = f" offset {promql.display_duration(node.offset)}" if node.offset and offset else ""
    braces = f"{{{inside}}}" if inside else ""
    return f"{node.name or ''}{braces}{range_text}{offset_text}"


def suffix(node: promql.SubqueryExpr) -> str:
    """Write the range of a subquery."""
    step = promql.display_duration(node.step) if node.step else ""
    assert node.range, "the parser knows no subquery without a range"
    return f"[{promql.display_duration(node.range)}:{step}]"


def operator(node: promql.BinaryExpr) -> str:
    """Write an operator with its modifiers."""
    bool_ = "bool" if node.modifier and node.modifier.return_bool else ""
    return " ".join(part for part in (str(node.op), bool_, on(node), group(node)) if part)


def on(node: promql.BinaryExpr) -> str:
    """Write the labels an operation matches on, if it names any."""
    if not node.modifier or not node.modifier.matching:
        return ""
    assert str(node.modifier.matching.type).endswith("Include"), "say what is matched on, not what is ignored"
    return f"on ({', '.join(node.modifier.matching.labels)})"


def group(node: promql.BinaryExpr) -> str:
    """Write group_left or group_right."""
    side = {"ManyToOne": "group_left", "OneToMany": "group_right"}.get(str(node.modifier and node.modifier.card).split(".")[-1])
    return f"{side} ({', '.join(node.modifier.group_labels or ())})" if side and node.modifier else ""


def labels(node: promql.AggregateExpr) -> list[str]:
    """Return the labels an aggregation keeps."""
    return list(node.modifier.labels) if node.modifier else []


def aggregation(node: promql.AggregateExpr, by: Sequence[str]) -> str:
    """Write an aggregation up to its argument."""
    return f"{node.op} by ({', '.join(by)})" if by else str(node.op)


def call(node: promql.Call, arguments: Sequence[str]) -> str:
    """Write a function with these arguments."""
    return f"{node.func.name}({', '.join(arguments)})"


# -- the mutants, and whether the tests notice -------------------------------------------------------------------------


def mutants(folder: Path = PROMETHEUS) -> list[Mutant]:
    """Return all of them, in the order of the rules."""
    found = []
    for file in sorted(path for path in (folder / "rules").glob("*.yml") if path.name != SETTINGS):
        for rule in rules(file):
            name = rule.get("alert") or rule["record"]
            found += [Mutant(file.name, name, what, {"expr": new}) for what, new in variants(promql.parse(rule["expr"]))]
            if "for" in rule:
                found.append(Mutant(file.name, name, f"for {rule['for']}", {"for": None}))
    return found


def rules(file: Path) -> list[dict[str, Any]]:
    """Return the rules of a file."""
    # By libyaml, as everywhere here: ten times faster than Python's own parser, and each process of a test run reads them.
    return [rule for group in yaml.load(file.read_text(), yaml.CSafeLoader)["groups"] for rule in group["rules"]]


def rewritten(folder: Path, mutant: Mutant | None, at: Path) -> None:
    """Copy rules and tests to `at`: with the mutant's clause taken away, or each expression only written anew."""
    shutil.copytree(folder / "rules", at / "rules")
    shutil.copytree(folder / "tests", at / "tests")
    for file in (at / "rules").glob("*.yml") if mutant is None else [at / "rules" / mutant.file]:
        content = yaml.load(file.read_text(), yaml.CSafeLoader)
        for group in content["groups"]:
            for rule in group["rules"]:
                if mutant is None:
                    rule["expr"] = text(promql.parse(rule["expr"]))
                elif mutant.rule in (rule.get("alert"), rule.get("record")):
                    rule.update({key: value for key, value in mutant.change.items() if value is not None})
                    for key in [key for key, value in mutant.change.items() if value is None]:
                        del rule[key]
        file.write_text(yaml.dump(content, Dumper=yaml.CSafeDumper, sort_keys=False))


def tests_about(rule: str, folder: Path) -> list[Path]:
    """Write the tests that name a rule into files of their own and return these: the likeliest to notice, and quick."""
    written = []
    for file in sorted((folder / "tests").glob("*.yml")):
        content = yaml.load(file.read_text(), yaml.CSafeLoader)
        content["tests"] = [test for test in content["tests"] if rule in json.dumps(test)]
        if content["tests"]:
            written.append(file.with_name(f"about-{file.name}"))
            written[-1].write_text(yaml.dump(content, Dumper=yaml.CSafeDumper, sort_keys=False))
    return written


def accepts(promtool: str, command: str, files: Sequence[Path]) -> bool:
    """Whether promtool finds nothing wrong."""
    done = subprocess.run([promtool, *command.split(), *map(str, files)], capture_output=True, timeout=300, check=False)
    return done.returncode == 0


def outcome(mutant: Mutant, promtool: str, folder: Path = PROMETHEUS) -> str:
    """Return "killed", "survived", or "invalid" where Prometheus would not even load it."""
    with tempfile.TemporaryDirectory() as temporary:
        at = Path(temporary)
        rewritten(folder, mutant, at)
        if not accepts(promtool, "check rules", [at / "rules" / mutant.file]):
            return "invalid"
        first = tests_about(mutant.rule, at)
        names = [file.name.removeprefix("about-") for file in first]
        every = sorted(
            (file for file in (at / "tests").glob("*.yml") if file not in first), key=lambda file: file.name not in names
        )
        for file in (*first, *every):
            if not accepts(promtool, "test rules", [file]):
                return "killed"
    return "survived"


def main() -> int:
    """Try all mutants and print the result of each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="part of a rule's name")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--promtool", default="promtool")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        rewritten(PROMETHEUS, None, Path(temporary))
        if not accepts(arguments.promtool, "test rules", sorted((Path(temporary) / "tests").glob("*.yml"))):
            sys.exit("the tests fail with every clause in place; run them first: promtool test rules prometheus/tests/*.yml")
    chosen = [mutant for mutant in mutants() if arguments.only in mutant.rule]
    counts = dict.fromkeys(("killed", "survived", "equivalent", "invalid"), 0)
    with ThreadPoolExecutor(arguments.jobs) as pool:
        for mutant, result in zip(chosen, pool.map(partial(outcome, promtool=arguments.promtool), chosen), strict=True):
            reason = EQUIVALENT.get((mutant.rule, mutant.what), "") if result == "survived" else ""
            result = "equivalent" if reason else result
            counts[result] += 1
            print(f"{result:10}  {mutant.rule:45}  {mutant.what}{f'  ({reason})' if reason else ''}", flush=True)
    print(", ".join(f"{count} {name}" for name, count in counts.items()))
    return 1 if counts["survived"] else 0


if __name__ == "__main__":
    sys.exit(main())
