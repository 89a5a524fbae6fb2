"""What the leaves of the weight receive in the backward: which sums there are, and their C++."""

from __future__ import annotations

from dataclasses import dataclass

from attndsl.ir.nodes import is_const
from attndsl.plan.kernel_plan import KernelPlan, Leaf

from ..scope import tensor_name
from .lines import CppLines
from .tile import Tile, row_text
from .values import Values, guards, place_text


@dataclass(frozen=True)
class Sum:
    """A leaf whose adjoint the kernel adds up.

    axis  "row", "column", "distance" for one sum for each of these; "table" where the gradient of
          the table itself is added to, and the query's for a dot
    name  of the array of sums
    """

    leaf: Leaf
    axis: str
    name: str


def sums_of(plan: KernelPlan, tile: Tile) -> list[Sum]:
    """The leaves whose adjoint somebody wants, and how each is added up."""
    found = []
    for number, leaf in enumerate(plan.leaves):
        if is_const(leaf.partial, 0.0):
            continue
        axis: str = leaf.level
        if leaf.node.op == "dot" and axis != "row":
            axis = "table"
        elif axis == "pair":
            axis = "distance" if tile.diagonals.is_of_distance(leaf.node) else "table"
        found.append(Sum(leaf, axis, f"adjoint_{axis}_{number}"))
    return found


def tables_of(plan: KernelPlan, sums: list[Sum]) -> list[str]:
    """The tables whose gradients the kernel adds to."""
    names = {s.leaf.node.name for s in sums if s.axis == "table"}
    return [name for name in plan.request.grads if name in names]


def has_dots(sums: list[Sum]) -> bool:
    """Whether dots pass something to the queries, pair by pair."""
    return any(s.axis == "table" and s.leaf.node.op == "dot" for s in sums)


@dataclass(frozen=True)
class Backward:
    """What is known of a backward while it is written."""

    plan: KernelPlan
    tile: Tile
    sums: list[Sum]

    @property
    def keeps_scores(self) -> bool:
        """Whether raw scores are needed after the weights have taken their place."""
        return any("score" in s.leaf.partial.varies for s in self.sums)

    @property
    def has_slopes(self) -> bool:
        """Whether the derivative by the raw score differs from pair to pair."""
        return not is_const(self.plan.raw_partial)

    @property
    def has_kept(self) -> bool:
        """Whether the pairs that take part are marked: where a weight of 0 does not tell them."""
        drops = self.tile.has_mask or self.plan.may_be_masked_by_score
        return self.plan.form != "softmax" and drops

    @property
    def tiles(self) -> list[str]:
        """Further values of pairs that are kept."""
        flags = {"raw": self.keeps_scores, "slopes": self.has_slopes, "kept": self.has_kept}
        return [name for name, wanted in flags.items() if wanted]


def is_query_whole(made: Backward) -> bool:
    """Whether the library's gradient of the query is all of it: no row's dot adds to it later."""
    leaves = (*made.plan.leaves, *made.plan.sink_partials, *made.plan.output_partials)
    pairs = [s.leaf for s in made.sums if s.axis == "table"]
    return not any(leaf.node.op == "dot" and leaf not in pairs for leaf in leaves)


def query_dtype(made: Backward) -> str:
    return made.plan.request.dtype if is_query_whole(made) else made.plan.accumulator


def query_result(made: Backward) -> str:
    """The Python name of what the library has of the query's gradient."""
    return "grad_query" if is_query_whole(made) else "grad_by_score"


def write_sums(lines: CppLines, made: Backward) -> None:
    """Adds the adjoints of the chunk's pairs to the sums of the leaves."""
    lines.comment("What the leaves of the weight receive.")
    vectors = [s for s in made.sums if s.axis != "table"]
    for group in (vectors, [s for s in made.sums if s.axis == "table"]):
        if group:
            write_sum_loop(lines, made, group)


def write_sum_loop(lines: CppLines, made: Backward, group: list[Sum]) -> None:
    plan, tile = made.plan, made.tile
    is_vector = group[0].axis != "table"
    partials = [s.leaf.partial for s in group]
    indices = [] if is_vector else [arg for s in group for arg in s.leaf.node.args]
    before = ["const A *const adjoint = room.adjoints + r * WIDTH;"]
    if made.keeps_scores:
        before.append("const A *const raw = room.raw + r * WIDTH;")
    rows = [s for s in group if s.axis == "row"]
    before += [f"A {s.name}_sum = 0;" for s in rows]
    for item in group:
        if item.axis == "column":
            before.append(f"A *const {item.name}_at = {item.name} + item * size_Nk + first;")
        elif item.axis == "distance":
            before.append(
                f"A *const {item.name}_at = {item.name} + item * (size_Nq + size_Nk - 1) + "
                "(size_Nq - 1 - start - r) + first;"
            )
    after = [f"{s.name}_of[r] += {s.name}_sum;" for s in rows]
    pragma = "INDEPENDENT" if is_vector else ""
    if rows:
        names = ", ".join(f"{s.name}_sum" for s in rows)
        pragma = f"#pragma omp simd reduction(+ : {names})"
    with tile.pairs(lines, [*partials, *indices], before, after, pragma, has_dots(group)) as values:
        if made.keeps_scores:
            lines.add("const A score = raw[j];")
        values.share(lines, [*partials, *indices])
        for item in group:
            write_addition(lines, plan, values, item)


def write_addition(lines: CppLines, plan: KernelPlan, values: Values, item: Sum) -> None:
    """One leaf's share of a pair's adjoint."""
    node, partial = item.leaf.node, item.leaf.partial
    lines.origin(plan.program, node)
    text = "adjoint[j]"
    if not is_const(partial, 1.0):
        text = f"(adjoint[j] == 0 ? 0 : adjoint[j] * {values.text(partial, 11)})"
    if item.axis == "row":
        lines.add(f"{item.name}_sum += {text};")
        return
    if item.axis in ("column", "distance"):
        lines.add(f"{item.name}_at[j] += {text};")
        return
    args = tuple(values.text(arg) for arg in node.args)
    wanted = node.name in plan.request.grads
    with lines.block(""):
        if node.op == "dot":
            lines.add(f"const int64_t place = {row_text(node, args, plan)};")
        else:
            place = place_text(node, args, len(args))
            lines.add(f"const int64_t place = attn_place<{guards(plan, node)}>({place});")
        name = tensor_name(node.name)
        if wanted:
            lines.add(f"A *const sums = sums_{node.name} + copy * size_of_{node.name};")
        with lines.block("if (place >= 0 && adjoint[j] != 0)"):
            lines.add(f"const A amount = {text};")
            if node.op != "dot":
                lines.add("sums[place] += amount;")
                return
            with lines.block("for (int64_t n = 0; n < D; ++n)"):
                lines.add(f"room.dots[r * D + n] += amount * (A)wide({name}[place + n]);")
                if wanted:
                    lines.add("sums[place + n] += amount * wide(query_line[n]);")
