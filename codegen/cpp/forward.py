"""Writes the C++ of the forward."""

from __future__ import annotations

from attndsl.ir.nodes import SCORE, Node
from attndsl.plan.kernel_plan import KernelPlan

from .call import Fields
from .lines import CppLines
from .source import write_source
from .tile import Tile
from .tiles import add_tile_fields, write_visit

WEIGH = """\
const A LOG2_E = (A)1.4426950408889634, LN_2 = (A)0.69314718055994531;

// Rows keep what they have summed up until a logit exceeds their largest by so many powers of two.
const A SLACK = 8;

// Turns the `count` logits of a row into weights 2 ** (unit * (logit - most)), 0 behind them up to
// a whole vector, and adds them up. Where `most` rises, what the row has found shrinks. The
// difference is taken first: it is exact near 0 however large the logits are.
static inline void weigh(A *line, int64_t count, A unit, A &most, A *sums, A *found) {
    const int64_t whole = rounded_up(count, LANES);
    for (int64_t j = count; j < whole; ++j) line[j] = -INFINITY;
    Vector highest = load(line);
    for (int64_t j = LANES; j < whole; j += LANES) {
        const Vector other = load(line + j);
        highest = highest < other ? other : highest;
    }
    const A largest = greatest_of(highest);
    if ((largest - most) * unit > SLACK) {
        const Vector factor = powers_of_two(spread((most - largest) * unit));
        for (int64_t n = 0; n < VALUES; n += LANES) store(found + n, load(found + n) * factor);
        store(sums, load(sums) * factor);
        most = largest;
    }
    const Vector base = spread(most == -INFINITY ? 0 : most);
    Vector sum = load(sums);
    for (int64_t j = 0; j < whole; j += LANES) {
        const Vector weight = powers_of_two((load(line + j) - base) * unit);
        store(line + j, weight);
        sum += weight;
    }
    store(sums, sum);
}
"""

ADD_UP = """\
// Adds up the `count` weights of a row; 0 behind them up to a whole vector.
static inline void add_up(A *line, int64_t count, A *sums) {
    const int64_t whole = rounded_up(count, LANES);
    for (int64_t j = count; j < whole; ++j) line[j] = 0;
    Vector sum = load(sums);
    for (int64_t j = 0; j < whole; j += LANES) sum += load(line + j);
    store(sums, sum);
}
"""

ROOM = """\
// What one thread works with.
struct Room {
    Element query[ROWS * DEPTH];
    A scores[ROWS * WIDTH], found[ROWS * VALUES], sums[ROWS * LANES], most[ROWS];
    Element weights[PER == 1 ? LANES : ROWS * WIDTH / PER];
    Element keys[WIDTH * DEPTH], values[WIDTH / PER * VALUES];
};
"""

OPERANDS = """\
// Packs PANEL keys and values.
void pack(int64_t block) const {
    const int64_t blocks = packed() / PANEL, head = block / blocks, first = block % blocks * PANEL;
    const int64_t b = head / size_Hk, h = head % size_Hk;
    const int64_t limit = keys_of(b), there = less(size_Nk - first, PANEL);
    pack_panels<D>(packed_keys + (head * packed() + first) * DEPTH, key_at(b, h), key_n, first,
                   PANEL, limit);
    if (!READS_VALUES)
        pack_rows<DV, VALUES>(packed_values + (head * packed() + first) / PER * VALUES,
                              value_at(b, h), value_n, first, there, limit);
}

// scores[r][j] = query row r times key first + j, [rows][WIDTH].
void multiply_keys(const Element *rows_at, int64_t rows, Element *room, int64_t b, int64_t h,
                   int64_t first, int64_t end, int64_t limit, A *scores) const {
    const Element *panels = room;
    if (packs)
        panels = packed_keys + ((b * size_Hk + h) * packed() + first / PANEL * PANEL) * DEPTH;
    else
        pack_panels<D>(room, key_at(b, h), key_n, first, rounded_up(end - first, PANEL), limit);
    product_panels<DEPTH>(rows_at, rows, panels, packs ? first % PANEL : 0, end - first, scores);
}

// found[r] += the weights of row r times the values first .. end - 1.
void multiply_values(const Element *weights, int64_t rows, Element *room, int64_t b, int64_t h,
                     int64_t first, int64_t end, int64_t limit, A *found) const {
    const Element *rows_at = packed_values + ((b * size_Hk + h) * packed() + first) / PER * VALUES;
    int64_t stride = VALUES;
    if (READS_VALUES) {
        rows_at = (const Element *)(value_at(b, h) + first * value_n);
        stride = value_n;
    } else if (!packs) {
        pack_rows<DV, VALUES>(room, value_at(b, h), value_n, first, end - first, limit);
        rows_at = room;
    }
    product(weights, WIDTH / PER, 1, rows, rows_at, stride, VALUES, (end - first + PER - 1) / PER,
            found, VALUES, true);
}
"""

RUN = """\
bool begin() const { return true; }

void end() const {}

bool run(Room &room, int64_t item) const {
    const int64_t tiles = (size_Nq + ROWS - 1) / ROWS;
    // The last tile comes first: under a causal mask it has the most keys.
    tile(item / tiles / size_H, item / tiles % size_H, tiles - 1 - item % tiles, room);
    return true;
}

int64_t items() const { return size_B * size_H * ((size_Nq + ROWS - 1) / ROWS); }

int64_t finishes() const { return 0; }

void finish(int64_t) const {}
"""


def is_plain(plan: KernelPlan) -> bool:
    """Whether a weight is a power of the score itself."""
    return plan.form == "softmax" and plan.value is SCORE


def is_direct(plan: KernelPlan) -> bool:
    """Whether the result of the kernel is the attention's, without an epilogue by torch."""
    return plan.program.output is None and plan.program.weights.sink is None


def result_dtype(plan: KernelPlan) -> str:
    return plan.request.dtype if is_direct(plan) else plan.accumulator


def forward_roots(plan: KernelPlan) -> list[Node]:
    """What pairs are computed from, besides the mask."""
    if plan.form != "softmax" and plan.may_be_masked_by_score:
        return [plan.value, plan.logit]
    return [plan.value]


def forward_source(plan: KernelPlan, sizes: tuple[int, int]) -> tuple[str, Fields, Tile]:
    """The C++ of the forward, the fields of its call, and the tile that was written."""
    fields = Fields(plan)
    fields.add_call()
    fields.add_inputs()
    fields.add_packed("keys", "values")
    add_tile_fields(fields)
    tile = Tile(plan, fields, forward_roots(plan))
    tile.diagonals.add_fields(fields)
    fields.add_result("R", "result")
    if plan.form != "elementwise":
        fields.add_result("A", "stat")
    helpers = CppLines()
    if plan.form == "softmax":
        helpers.add(WEIGH)
    elif plan.form == "normalize":
        helpers.add(ADD_UP)
    helpers.add(ROOM.rstrip("\n"))
    methods = CppLines()
    methods.add(OPERANDS.rstrip("\n"))
    methods.blank()
    write_visit(methods, plan, fields)
    methods.blank()
    write_tile(methods, tile)
    methods.blank()
    methods.add(RUN.rstrip("\n"))
    source = write_source(
        plan, sizes, fields, result_dtype(plan), "attn_forward", helpers.text(), methods.text()
    )
    return source, fields, tile


def write_tile(lines: CppLines, tile: Tile) -> None:
    """The method that computes one tile of queries."""
    body = CppLines()
    write_body(body, tile)
    with lines.block("void tile(int64_t batch, int64_t head, int64_t number, Room &room) const"):
        lines.add(*tile.fields.aliases(body.text()))
        lines.add(body.text().rstrip("\n"))


def write_body(lines: CppLines, tile: Tile) -> None:
    plan = tile.plan
    plain = is_plain(plan)
    lines.add(
        "const int64_t start = number * ROWS, rows = less(size_Nq - start, ROWS);",
        "const int64_t key_head = head / size_G, limit = keys_of(batch);",
    )
    factor = "given_scale * LOG2_E" if plain else "given_scale"
    lines.comment(
        "Pairs of numbers keep the scores' factor for later: a query is not rounded twice."
    )
    lines.add(
        f"const A factor = (A)({factor});",
        "const A score_factor = PER == 1 ? 1 : factor;",
    )
    if plain:
        lines.add(
            "const A unit = PER == 1 ? 1 : factor == 0 ? (A)1e-37 : attn_abs(factor);",
            "const A sign = factor < 0 ? -1 : 1;",
            "load_query(room.query, batch, head, start, rows, PER == 1 ? factor : sign);",
        )
    else:
        lines.add("load_query(room.query, batch, head, start, rows, PER == 1 ? factor : 1);")
    lines.add("for (int64_t n = 0; n < rows * VALUES; ++n) room.found[n] = 0;")
    if plan.form != "elementwise":
        lines.add("for (int64_t n = 0; n < rows * LANES; ++n) room.sums[n] = 0;")
    if plan.form == "softmax":
        lines.add("for (int64_t r = 0; r < rows; ++r) room.most[r] = -INFINITY;")
    lines.add("(void)score_factor, (void)limit;")
    tile.write_place(lines)
    lines.add(
        "visit(batch, head, start, start + rows, [&](int64_t first, int64_t end, bool is_full) {"
    )
    with lines.indented():
        write_chunk(lines, tile)
    lines.add("});")
    write_end(lines, plan)


def write_chunk(lines: CppLines, tile: Tile) -> None:
    """The work on one chunk of columns."""
    plan = tile.plan
    lines.add(
        "const int64_t count = end - first;",
        "const int32_t k_first = (int32_t)(first + k_start(batch));",
        "(void)k_first, (void)is_full;",
        "multiply_keys(room.query, rows, room.keys, batch, key_head, first, end, limit, "
        "room.scores);",
    )
    write_weights(lines, tile)
    if plan.form == "softmax":
        unit = "unit" if is_plain(plan) else "LOG2_E"
        with lines.block("for (int64_t r = 0; r < rows; ++r)"):
            lines.add(
                f"weigh(room.scores + r * WIDTH, count, {unit}, room.most[r], "
                "room.sums + r * LANES, room.found + r * VALUES);"
            )
    elif plan.form == "normalize":
        with lines.block("for (int64_t r = 0; r < rows; ++r)"):
            lines.add("add_up(room.scores + r * WIDTH, count, room.sums + r * LANES);")
    lines.add(
        "const Element *const weights = as_elements(room.scores, room.weights, rows, count);",
        "multiply_values(weights, rows, room.values, batch, key_head, first, end, limit, "
        "room.found);",
    )


def write_weights(lines: CppLines, tile: Tile) -> None:
    """Scores -> logits where weights are softmax, else weights."""
    plan = tile.plan
    roots = forward_roots(plan)
    plain = is_plain(plan)

    def loop(is_full: bool) -> None:
        needed = [*([] if plain else roots), *([] if is_full else [tile.mask])]
        before = ["A *const line = room.scores + r * WIDTH;"]
        with tile.pairs(lines, needed, before) as values:
            if not plain and any("score" in root.varies for root in roots):
                lines.add("const A score = line[j] * score_factor;")
            if not is_full:
                lines.origin(plan.program, tile.mask)
            lines.origin(plan.program, plan.value)
            texts = iter(values.write(lines, *needed))
            value = "line[j]" if plain else next(texts)
            tests = []
            if len(roots) > 1:
                tests.append(f"(({next(texts)}) != -INFINITY)")
            if not is_full:
                tests.append(f"({next(texts)})")
            least = "-INFINITY" if plan.form == "softmax" else "0"
            kept = f"{' & '.join(tests)} ? {value} : {least}" if tests else value
            lines.add(f"line[j] = {kept};")

    if not tile.has_mask:
        if not plain:
            loop(True)
        return
    with lines.block("if (!is_full)"):
        loop(False)
    if not plain:
        with lines.block("else"):
            loop(True)


def write_end(lines: CppLines, plan: KernelPlan) -> None:
    """Stores the results of the rows."""
    with lines.block("for (int64_t r = 0; r < rows; ++r)"):
        lines.add("const int64_t row = (batch * size_H + head) * size_Nq + start + r;")
        if plan.form == "elementwise":
            lines.add("const A divisor = 1;")
        else:
            lines.add(
                "const A sum = sum_of(load(room.sums + r * LANES));",
                "const A divisor = sum == 0 ? 1 : sum;",
            )
        lines.add(
            "for (int64_t n = 0; n < DV; ++n) "
            "narrow(result[row * DV + n], room.found[r * VALUES + n] / divisor);"
        )
        if plan.form == "softmax":
            lines.comment("A row without a key has the logarithm -inf.")
            if is_plain(plan):
                lines.add("stat[row] = (room.most[r] * unit + attn_log2(sum)) * LN_2;")
            else:
                lines.add("stat[row] = room.most[r] + attn_log2(sum) * LN_2;")
        elif plan.form == "normalize":
            lines.add("stat[row] = sum;")
