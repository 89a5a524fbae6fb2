"""The fields of a call: what the generated C++ knows of its arguments, and where Python has it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from attndsl.ir.program import SIZES
from attndsl.plan.kernel_plan import KernelPlan

from ..lines import Lines
from ..scope import scalar_name, size_name, tensor_name
from .lines import CppLines
from .prelude import TYPES

NARROW = "int_"  # prefix of a field's value in 32 bits


@dataclass(frozen=True)
class Field:
    """A member of the C++ struct `Call`: its type, its name, and the Python text of its value."""

    type: str
    name: str
    text: str

    @property
    def declaration(self) -> str:
        """As a declaration without its semicolon."""
        gap = "" if self.type.endswith("*") else " "
        return f"{self.type}{gap}{self.name}"


@dataclass
class Fields:
    """All fields of one function: ints and pointers, and floats."""

    plan: KernelPlan
    members: list[Field] = field(default_factory=list)

    def add(self, type: str, name: str, text: str) -> None:
        self.members.append(Field(type, name, text))

    def add_int(self, name: str, text: str) -> None:
        self.add("int64_t", name, text)

    def add_array(self, type: str, name: str, axes: str = "", text: str = "") -> None:
        """A tensor's address and the strides of its first axes, a letter each."""
        tensor = text or name
        self.add(f"const {type} *", name, f"{tensor}.data_ptr()")
        for at, axis in enumerate(axes):
            self.add_int(f"{name}_{axis}", f"{tensor}.stride({at})")

    def add_shared_array(self, type: str, name: str, axes: str) -> None:
        """A contiguous tensor whose first axes may have an extent of 1 that stands for all."""
        self.add(f"const {type} *", name, f"{name}.data_ptr()")
        for at, axis in enumerate(axes):
            self.add_int(f"{name}_{axis}", f"attn_step({name}, {at})")

    def add_result(self, type: str, name: str) -> None:
        """A contiguous tensor that is written."""
        self.add(f"{type} *", name, f"{name}.data_ptr()")

    def add_call(self) -> None:
        """Sizes, parameters, offsets and lengths."""
        program, batched = self.plan.program, self.plan.request.per_batch
        self.add_int("threads", "torch.get_num_threads()")
        for name in (*SIZES, *program.bound_dims):
            self.add_int(size_name(name), size_name(name))
        self.add_int("size_Dv", "size_Dv")
        self.add("double", "given_scale", "scale")
        for name in ("q_offset", "k_offset"):
            if name in batched:
                self.add("const int64_t *", f"{name}s", f"{name}.data_ptr()")
            else:
                self.add_int(name, name)
        if "k_len" in batched:
            self.add("const int64_t *", "k_lens", "k_len.data_ptr()")
        for scalar in program.scalars:
            name = scalar_name(scalar.name)
            self.add("double" if scalar.kind == "float" else "int64_t", name, name)
        for tensor, dtype in zip(program.tensors, self.plan.request.tensor_dtypes, strict=True):
            self.add_array(TYPES[dtype], tensor_name(tensor.name))
            for axis in range(len(tensor.dims)):
                text = tensor_name(tensor.name)
                self.add_int(f"d{axis}_{tensor.name}", f"{text}.shape[{axis}]")
                self.add_int(f"s{axis}_{tensor.name}", f"{text}.stride({axis})")

    def add_inputs(self) -> None:
        """query, key and value, whose last axes are contiguous."""
        for name in ("query", "key", "value"):
            self.add("const T *", name, f"{name}.data_ptr()")
            for at, axis in enumerate("bhn"):
                self.add_int(f"{name}_{axis}", f"{name}.stride({at})")
        self.add_int("packs", "packs")

    def add_packed(self, *names: str) -> None:
        """Room for packed operands: see `host.write_packed`."""
        for name in names:
            self.add_result("Element", f"packed_{name}")

    @property
    def ints(self) -> list[Field]:
        return [member for member in self.members if member.type != "double"]

    @property
    def floats(self) -> list[Field]:
        return [member for member in self.members if member.type == "double"]

    def write_members(self, lines: CppLines) -> None:
        """The members of the struct."""
        lines.add(*(f"{member.declaration};" for member in self.members))

    def write_reading(self, lines: CppLines) -> None:
        """Sets the members of `call` from `ints` and `floats`."""
        for member in self.ints:
            cast = f"({member.type.strip()})" if member.type.endswith("*") else ""
            lines.add(f"call.{member.name} = {cast}*ints++;")
        lines.add(*(f"call.{member.name} = *floats++;" for member in self.floats))

    def write_call(self, lines: Lines, function: str, source: str) -> None:
        """The Python statements that run a function of a source."""
        for name, members in (("ints", self.ints), ("floats", self.floats)):
            lines.add(f"{name} = (")
            with lines.indented():
                lines.add(*(f"{member.text},  # {member.name}" for member in members))
            lines.add(")")
        lines.add(f'attn_run({source}, "{function}", ints, floats)')

    def aliases(self, body: str) -> list[str]:
        """Declarations of what a body uses of the call: locals, so that a store through a pointer
        cannot change them. `int_<field>` is an int field in 32 bits."""
        kinds = {scalar_name(s.name): s.kind for s in self.plan.program.scalars}
        used = set(re.findall(r"\w+", body))
        found = []
        for member in self.members:
            name = member.name
            if NARROW + name in used:
                found.append(f"const int32_t {NARROW}{name} = (int32_t)this->{name};")
            if name in kinds and name in used:
                if kinds[name] == "bool":
                    found.append(f"const bool {name} = this->{name} != 0;")
                elif kinds[name] == "float":
                    found.append(f"const A {name} = (A)this->{name};")
            elif member.type.endswith("*") and name in used:
                found.append(f"{member.type}const {name} = this->{name};")
        return found
