"""Writes how a tile of queries finds its keys: runs of columns, and tiles of them told apart."""

from __future__ import annotations

from attndsl.ir.nodes import constant
from attndsl.plan.kernel_plan import KernelPlan, Segment, Summary

from ..summaries import parts_of, used_leaves, used_summaries
from .call import Fields
from .lines import CppLines
from .values import Leaves, Values

NOTHING = Segment(*(constant(0),) * 4)
BLOCK = "block_"  # prefix of the summaries of blocks of ROWS rows or WIDTH columns

RUNS = """\
enum : int64_t { STEP = 2 * LANES };  // runs of columns begin at multiples of it

static inline int64_t less(int64_t x, int64_t y) { return x < y ? x : y; }

static inline int64_t greater(int64_t x, int64_t y) { return x > y ? x : y; }

// A few runs of columns: in order, apart.
struct Runs {
    int64_t first[4], end[4];
    int count = 0;

    void add(int64_t lo, int64_t hi) {
        if (lo >= hi) return;
        int at = count++;
        for (; at > 0 && first[at - 1] > lo; --at) {
            first[at] = first[at - 1];
            end[at] = end[at - 1];
        }
        first[at] = lo;
        end[at] = hi;
    }

    void join() {
        int kept = 0;
        for (int at = 0; at < count; ++at) {
            if (kept > 0 && first[at] <= end[kept - 1]) {
                end[kept - 1] = greater(end[kept - 1], end[at]);
            } else {
                first[kept] = first[at];
                end[kept++] = end[at];
            }
        }
        count = kept;
    }
};

// Adds a segment of positions: what it reaches, as whole steps, and whole steps of its full part.
static inline void add_segment(Runs &reached, Runs &full, int64_t lo, int64_t hi, int64_t full_lo,
                               int64_t full_hi, int64_t shift, int64_t limit) {
    lo = greater(lo - shift, 0) / STEP * STEP;
    hi = less(rounded_up(greater(hi - shift, 0), STEP), limit);
    full_lo = rounded_up(greater(full_lo - shift, 0), STEP);
    full_hi = full_hi - shift >= limit ? limit : greater(full_hi - shift, 0) / STEP * STEP;
    reached.add(lo, hi);
    full.add(full_lo, full_hi);
}
"""

CHUNKS = """\
reached.join();
full.join();
int next = 0;  // the first full run that ends behind `first`
for (int at = 0; at < reached.count; ++at) {
    for (int64_t first = reached.first[at], end; first < reached.end[at]; first = end) {
        end = less(END, reached.end[at]);
        while (next < full.count && full.end[next] <= first) ++next;
        bool is_full = false;
        if (next < full.count) {
            is_full = full.first[next] <= first;
            end = less(end, is_full ? full.end[next] : greater(full.first[next], first));
        }
"""


def add_tile_fields(fields: Fields) -> None:
    """What a tile needs to find its keys, besides the call's own arguments."""
    plan = fields.plan
    if plan.strategy != "lists":
        return
    for summary in used_summaries(plan):
        for part in parts_of(plan, summary):
            axes = "bhq" if len(summary.axes) == 2 else "bh"
            fields.add_shared_array(part_type(summary, part), part_name(summary, part), axes)


def part_name(summary: Summary, part: str) -> str:
    return f"{BLOCK}{summary.number}_{part}"


def part_type(summary: Summary, part: str) -> str:
    """The C++ type of what blocks have of a summary."""
    if part == "signature":
        return "int64_t"
    return {"bool": "uint8_t", "int": "int64_t", "float": "A"}[summary.node.kind]


def write_visit(lines: CppLines, plan: KernelPlan, fields: Fields) -> None:
    """The method that calls `work(first, end, is_full)` for all chunks of columns of a tile."""
    lines.comment(
        "Calls work(first, end, is_full) for the columns that rows start .. stop - 1 of a head can",
        "meet, in order and at most WIDTH at a time.",
    )
    lines.add("template <class Work>")
    lines.add("void visit(int64_t b, int64_t h, int64_t start, int64_t stop, Work work) const {")
    body = CppLines()
    write_body(body, plan)
    with lines.indented():
        lines.add(*fields.aliases(body.text()))
        lines.add(body.text().rstrip("\n"))
    lines.add("}")


def write_body(lines: CppLines, plan: KernelPlan) -> None:
    """The body of `visit`."""
    lines.add(
        "const int64_t limit = keys_of(b), k_shift = k_start(b);",
        "const int64_t lo = start + q_start(b), hi = stop - 1 + q_start(b);",
        "Runs reached, full;",
    )
    lines.origin(plan.program, plan.program.mask)
    leaves = {
        ("bound", "lo"): "lo",
        ("bound", "hi"): "hi",
        ("index", "b"): "b",
        ("index", "h"): "h",
    }
    values = Values(plan, Leaves(leaves), is_wide=True, prefix="end_")
    segments = plan.keys or (NOTHING,)
    ends = [end for s in segments for end in (s.lo, s.hi, s.full_lo, s.full_hi)]
    texts = values.write(lines, *ends)
    for at in range(0, len(texts), 4):
        lines.add(f"add_segment(reached, full, {', '.join(texts[at : at + 4])}, k_shift, limit);")
    end = "(first / WIDTH + 1) * WIDTH" if plan.strategy == "lists" else "first + WIDTH"
    lines.add(CHUNKS.replace("END", end).rstrip("\n"))
    with lines.indented(), lines.indented():
        if plan.strategy == "lists":
            with lines.block("if (!is_full)"):
                write_facts(lines, plan)
        lines.add("work(first, end, is_full);")
    lines.add("    }", "}")


def write_facts(lines: CppLines, plan: KernelPlan) -> None:
    """Goes on where no pair of a chunk can take part; sets `is_full` where all do."""
    lines.add("const int64_t k_lo = first + k_shift, k_hi = end - 1 + k_shift;")
    names = {("bound", "q_lo"): "lo", ("bound", "q_hi"): "hi"}
    names |= {("bound", "k_lo"): "k_lo", ("bound", "k_hi"): "k_hi"}
    names |= {("index", "b"): "b", ("index", "h"): "h"}
    for summary in used_summaries(plan):
        for part in parts_of(plan, summary):
            name = f"tile_{summary.number}_{part}"
            text = read_text(summary, part)
            lines.add(f"const {part_type(summary, part)} {name} = {text};")
            is_bool = summary.node.kind == "bool"
            leaf = f"({name} != 0)" if is_bool else name
            names["summary", f"{summary.number}_{part}"] = leaf
    for leaf in sorted(used_leaves(plan)):
        if "_meets_" in leaf:
            x, y = leaf.split("_meets_")
            name = f"meets_{x}_{y}"
            lines.add(f"const bool {name} = (tile_{x}_signature & tile_{y}_signature) != 0;")
            names["summary", leaf] = name
    values = Values(plan, Leaves(names), is_wide=True, prefix="fact_")
    possible, certain = values.write(lines, plan.tile.possible, plan.tile.certain)
    lines.add(f"if (!({possible})) continue;", f"is_full = {certain};")


def read_text(summary: Summary, part: str) -> str:
    """What a tile takes of a summary."""
    name = part_name(summary, part)
    place = f"{name}[b * {name}_b + h * {name}_h + "
    if summary.axes == ("q",):
        return place + "start / ROWS]"
    if summary.axes == ("k",):
        return place + "first / WIDTH]"
    return place + f"start / ROWS * {name}_q + first / WIDTH]"
