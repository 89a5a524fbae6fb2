"""From a source to checked programs: the stages parse, check and lower as one call."""

from __future__ import annotations

from collections.abc import Mapping

from attndsl.diagnostics import ArgumentError, ProgramError, did_you_mean
from attndsl.ir.program import Program
from attndsl.semantics import names
from attndsl.semantics.checker import Checker
from attndsl.semantics.findings import Findings
from attndsl.semantics.lower import lower
from attndsl.semantics.modules import Loader, Module
from attndsl.semantics.parameters import Constant, Parameters, check_consts, missing_const
from attndsl.semantics.scope import Context, Scope
from attndsl.semantics.statements import lower_attention
from attndsl.semantics.types import WRONG
from attndsl.source import Source, Span
from attndsl.syntax.ast import Attention, Let, Select


def analyse(
    source: Source, name: str | None = None, consts: Mapping[str, Constant] | None = None
) -> Program:
    """The program of the attention `name` of a source (the only one, where `name` is None).

    consts  values of `const` parameters, by name

    Raises ProgramError with everything that is wrong, and ArgumentError for a const that is
    unknown, of a wrong kind, or missing without a default.
    """
    findings = Findings()
    module = Loader(findings, source).load(source)
    attention = choose(module, name, findings)
    program, parameters = lower_all(findings, module, [attention], consts or {})[0]
    if parameters.missing:
        raise ArgumentError(missing_const(attention, parameters.missing))
    return program


def check_all(source: Source, consts: Mapping[str, Constant] | None = None) -> list[Program]:
    """The programs of every attention of a source; errors as those of `analyse`.

    `consts` go to every attention that declares them.
    """
    findings = Findings()
    module = Loader(findings, source).load(source)
    if not module.attentions:
        choose(module, None, findings)
    lowered = lower_all(findings, module, module.attentions, consts or {})
    for parameter in (p for _, parameters in lowered for p in parameters.missing):
        name = parameter.name.name
        hint = f"give it a default, or its value: `attndsl check --const {name}=...`"
        findings.report("E113", parameter.span, f"the const `{name}` has no value", hint)
    findings.raise_any()
    return [program for program, _ in lowered]


def lower_all(
    findings: Findings,
    module: Module,
    attentions: list[Attention],
    consts: Mapping[str, Constant],
) -> list[tuple[Program, Parameters]]:
    check_definitions(module, findings)
    lowered = [lower_attention(findings, module, a, consts) for a in attentions]
    findings.raise_any()
    check_consts(attentions, consts)
    return lowered


def choose(module: Module, name: str | None, findings: Findings) -> Attention:
    """The attention that is meant; ProgramError where there is none or more than one."""
    attentions = module.attentions
    known = [a.name.name for a in attentions]
    listed = ", ".join(f"`{word}`" for word in dict.fromkeys(known))
    source = module.tree.source
    if not attentions:
        span = Span(source, 0, 0)
        hint = "write for example `attention causal():` and below it `    mask k <= q`"
        message = "there is no attention in this file"
        if module.own:
            message += ", only definitions"
        findings.report("E112", span, message, hint)
    elif name is None and len(attentions) > 1:
        span = attentions[1].name.span
        message = f"there are {len(attentions)} attentions in this file: {listed}"
        findings.report("E112", span, message, f'say which one: `name="{known[0]}"`')
    elif name is not None and name not in known:
        span = attentions[0].name.span
        message = f"there is no attention called `{name}` in this file"
        hint = did_you_mean(name, known) or f"it has {listed}"
        findings.report("E112", span, message, hint)
    else:
        return attentions[0] if name is None else attentions[known.index(name)]
    findings.raise_any()
    raise ProgramError(findings.found.values())


def check_definitions(module: Module, findings: Findings) -> None:
    """Checks every def of the file by itself, used or not, as far as its arguments allow."""
    elsewhere = {p.name.name for a in module.attentions for p in a.parameters}
    for attention in module.attentions:
        elsewhere |= {s.name.name for s in attention.statements if isinstance(s, Let | Select)}
    checker = Checker(findings, elsewhere=frozenset(elsewhere))
    context = Context(names.DEFINITION, grid=WRONG)
    for definition in module.own:
        if not definition.broken:
            symbols = {p.name: WRONG for p in definition.tree.parameters}
            scope = Scope(context, module, symbols, is_def=True)
            lower(checker, definition.tree.value, scope)
