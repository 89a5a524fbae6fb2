"""Files with their definitions: imports resolved, definitions that refer to themselves found."""

from __future__ import annotations

import functools
import importlib.resources
import ntpath
import os.path
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from attndsl.diagnostics import ProgramError, did_you_mean
from attndsl.semantics.findings import Findings, place
from attndsl.semantics.names import RESERVED, why_reserved
from attndsl.semantics.walk import names_in
from attndsl.source import Source
from attndsl.syntax.ast import Attention, Define, File, Import, Name

MAX_IMPORT_DEPTH = 32  # files; imports of imports


@dataclass(eq=False)
class Definition:
    """A `def` and the module whose names it sees. A `broken` one
    (it refers to itself, or its import failed) is never expanded: the error is reported already."""

    tree: Define
    module: Module
    broken: bool = False

    @property
    def signature(self) -> str:
        names = ", ".join(p.name for p in self.tree.parameters)
        return f"{self.tree.name.name}({names})" if names else self.tree.name.name


@dataclass(eq=False)
class Module:
    """One file: its tree, its own definitions, and all that it sees, imports included."""

    tree: File
    own: list[Definition] = field(default_factory=list)
    visible: dict[str, Definition] = field(default_factory=dict)
    named_at: dict[str, Name] = field(default_factory=dict)

    @property
    def attentions(self) -> list[Attention]:
        return [item for item in self.tree.items if isinstance(item, Attention)]


@functools.cache
def standard_library() -> dict[str, Definition]:
    """Every definition of `std`, by name."""
    found: dict[str, Definition] = {}
    folder = importlib.resources.files("attndsl").joinpath("std")
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name):
        if entry.name.endswith(".attn"):
            source = Source(f"std/{entry.name}", entry.read_text(encoding="utf-8"))
            findings = Findings()
            module = Loader(findings, source).load(source)
            findings.raise_any()
            found |= module.visible
    return found


class Loader:
    """Reads a program's file and the files that it imports, each once."""

    def __init__(self, findings: Findings, main: Source) -> None:
        self.findings = findings
        # A text without a file has no folder, so it can import nothing from one.
        has_file = not (main.name.startswith("<") and main.name.endswith(">"))
        self.root = os.path.realpath(os.path.dirname(main.name)) if has_file else None
        self.loaded: dict[str, Module | None] = {}
        self.loading: list[str] = [os.path.realpath(main.name)] if has_file else []

    def load(self, source: Source) -> Module:
        """The module of a source. Raises ProgramError where the text cannot be parsed."""
        from attndsl.syntax.parser import parse  # brings lark along: only when something is read

        module = Module(parse(source))
        for item in module.tree.items:
            if isinstance(item, Import):
                self.add_import(module, item)
        for item in module.tree.items:
            if isinstance(item, Define):
                definition = Definition(item, module)
                module.own.append(definition)
                self.add_name(module, item.name, definition)
                self.check_parameters(item)
        self.check_attention_names(module)
        find_recursion(module, self.findings)
        return module

    def add_name(self, module: Module, name: Name, definition: Definition) -> None:
        if name.name in RESERVED:
            report_reserved(self.findings, name)
        elif name.name in module.visible:
            first = module.named_at[name.name]
            self.findings.report(
                "E103",
                name.span,
                f"`{name.name}` is defined twice",
                "give one of them another name (an import can: `import a as b`)",
                [f"the first one is at {place(first.span)}"],
            )
        else:
            module.visible[name.name] = definition
            module.named_at[name.name] = name

    def check_parameters(self, item: Define) -> None:
        seen: set[str] = set()
        for parameter in item.parameters:
            if parameter.name in RESERVED:
                report_reserved(self.findings, parameter)
            elif parameter.name in seen:
                message = f"`{item.name.name}` has two parameters called `{parameter.name}`"
                self.findings.report("E103", parameter.span, message)
            seen.add(parameter.name)

    def check_attention_names(self, module: Module) -> None:
        first: dict[str, Attention] = {}
        for attention in module.attentions:
            earlier = first.setdefault(attention.name.name, attention)
            if earlier is not attention:
                self.findings.report(
                    "E103",
                    attention.name.span,
                    f"there are two attentions called `{attention.name.name}`",
                    notes=[f"the first one is at {place(earlier.name.span)}"],
                )

    # -- imports ----------------------------------------------------------------------------

    def add_import(self, module: Module, item: Import) -> None:
        offered: dict[str, Definition] | None
        attentions: list[str] = []
        if not item.is_path:
            offered = self.from_standard_library(item)
        else:
            other = self.from_path(module, item)
            offered = None if other is None else other.visible
            attentions = [] if other is None else [a.name.name for a in other.attentions]
        for there, here in item.names:
            if offered is None:
                self.add_unresolved(module, here)
            elif there.name in offered:
                self.add_name(module, here, offered[there.name])
            else:
                self.add_unresolved(module, here)
                if there.name in attentions:
                    message = f"`{there.name}` is an attention: only a `def` can be imported"
                    hint = "move what both programs share into a `def`"
                else:
                    message = f"{item.module!r} has no definition called `{there.name}`"
                    names = ", ".join(f"`{n}`" for n in sorted(offered)) or "nothing"
                    hint = did_you_mean(there.name, offered) or f"it has {names}"
                self.findings.report("E108", there.span, message, hint)

    def add_unresolved(self, module: Module, here: Name) -> None:
        """Keeps an import that failed from causing an unknown name wherever it is used."""
        stands_for = Definition(Define(here.span, here, (), here), module, broken=True)
        module.visible.setdefault(here.name, stands_for)
        module.named_at.setdefault(here.name, here)

    def from_standard_library(self, item: Import) -> dict[str, Definition] | None:
        if item.module == "std":
            return standard_library()
        self.findings.report(
            "E108",
            item.span,
            f"there is no library called `{item.module}`",
            'write `from std import ...`, or a file beside the program: `from "./'
            f'{item.module}.attn" import ...`',
        )
        return None

    def from_path(self, module: Module, item: Import) -> Module | None:
        """The module that a path names, relative to the file that imports it."""
        problem, hint, real = self.resolve(module.tree.source.name, item.module)
        if not problem and real in self.loading:
            circle = [*self.loading[self.loading.index(real) :], real]
            names = " -> ".join(os.path.basename(path) for path in circle)
            problem, hint = f"imports go in a circle: {names}", "move the shared `def`s into a file"
        if not problem and len(self.loading) > MAX_IMPORT_DEPTH:
            problem = f"imports are nested more than {MAX_IMPORT_DEPTH} files deep"
        if problem:
            self.findings.report("E108", item.span, problem, hint)
            return None
        if real not in self.loaded:
            self.loading.append(real)
            self.loaded[real] = self.read(module.tree.source.name, item.module)
            self.loading.pop()
        return self.loaded[real]

    def read(self, importer: str, path: str) -> Module | None:
        from attndsl.syntax.parser import load_source

        name = os.path.normpath(os.path.join(os.path.dirname(importer), path))
        try:
            return self.load(load_source(name))
        except ProgramError as error:
            for diagnostic in error.diagnostics:
                self.findings.add(diagnostic)
            return None

    def resolve(self, importer: str, path: str) -> tuple[str, str, str]:
        """(what is wrong or "", hint, real path) of an import."""
        if self.root is None:
            hint = "compile a file instead of `text=`, or write the `def`s into the text"
            return "a program given as text has no folder to import files from", hint, ""
        if not path.endswith(".attn"):
            return f"{path!r} does not end in `.attn`", "only programs can be imported", ""
        if any(ord(char) < 32 or char == "\\" for char in path):
            return f"{path!r} is not a portable path", "separate folders by `/`", ""
        if os.path.isabs(path) or ntpath.isabs(path) or ntpath.splitdrive(path)[0]:
            hint = 'write it relative to this file: `from "./masks.attn" import ...`'
            return f"{path!r} is an absolute path", hint, ""
        try:
            full = os.path.join(os.path.dirname(importer), path)
            real = os.path.realpath(full)
            is_inside = os.path.commonpath([self.root, real]) == self.root
            is_file = is_inside and os.path.isfile(real)
        except (OSError, ValueError) as error:
            return f"{path!r} cannot be resolved: {error}", "", ""
        if not is_inside:
            hint = "a program imports from its own folder and the folders below it"
            return f"{path!r} leaves the folder of the program", hint, ""
        if not is_file:
            return f"there is no file {path!r}", nearest_file(full), ""
        return "", "", real


def nearest_file(full: str) -> str:
    """A hint with the file of the same folder whose name is most like the missing one's."""
    folder = Path(full).parent
    names = [entry.name for entry in folder.glob("*.attn")] if folder.is_dir() else []
    return did_you_mean(Path(full).name, names)


def report_reserved(findings: Findings, name: Name) -> None:
    findings.report(
        "E102",
        name.span,
        f"`{name.name}` is reserved: it is {why_reserved(name.name)}",
        f"choose another name, for example `{name.name}_` or a word that says what it is",
    )


def find_recursion(module: Module, findings: Findings) -> None:
    """Reports definitions that refer to themselves, and marks one of each circle."""
    own = set(module.own)
    done: set[Definition] = set()
    for root in module.own:
        path: dict[Definition, Iterator[Definition]] = {}
        pending = [] if root in done else [root]
        while pending or path:
            if pending:
                top = pending.pop()
                path[top] = iter(referred(top))
            else:
                top = next(reversed(path))
            for target in path[top]:
                if target in path:
                    report_circle(path, target, findings)
                elif target in own and target not in done:
                    pending.append(target)
                    break
            else:
                done.add(top)
                del path[top]


def referred(definition: Definition) -> list[Definition]:
    """The definitions that the body of one mentions."""
    parameters = {p.name for p in definition.tree.parameters}
    names = dict.fromkeys(n.name for n in names_in(definition.tree.value))
    visible = definition.module.visible
    return [visible[n] for n in names if n in visible and n not in parameters]


def report_circle(
    path: dict[Definition, Iterator[Definition]], target: Definition, findings: Findings
) -> None:
    stack = list(path)
    circle = [d.tree.name.name for d in stack[stack.index(target) :]]
    target.broken = True
    shown = circle if len(circle) <= 6 else [*circle[:5], "..."]
    through = " -> ".join([*shown, circle[0]]) if len(circle) > 1 else ""
    findings.report(
        "E107",
        target.tree.name.span,
        f"`{circle[0]}` refers to itself" + (f": {through}" if through else ""),
        "a `def` is expanded where it is used, so it cannot contain itself; there are no loops",
    )
