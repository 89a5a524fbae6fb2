"""Writes the C++ of the backward: the weights again, and five products for each tile.

An item is a head of a sequence and one of `parts` runs of its tiles of queries. It owns its rows of
the query's gradient, and sums of its own for the keys that they meet, which are added up in a fixed
order at the end: no result depends on the number of threads or on their timing.
"""

from __future__ import annotations

from attndsl.ir.nodes import is_const
from attndsl.plan.kernel_plan import KernelPlan

from ..scope import tensor_name
from .backward_library import COLUMNS, DELTA, REWEIGH, ROOM, RUN, WIDTHS
from .call import Fields
from .forward import forward_roots, is_plain
from .key_sums import KEY_SUMS, SHARING
from .lines import CppLines
from .source import write_source
from .sums import Backward, has_dots, query_dtype, query_result, sums_of, tables_of, write_sums
from .tile import Tile
from .tiles import add_tile_fields, write_visit
from .values import Values


def finds_delta(plan: KernelPlan) -> bool:
    """Whether the library computes delta from the results: nobody else needs it."""
    return plan.program.output is None and plan.program.weights.sink is None


def add_delta_fields(fields: Fields) -> None:
    """delta, or what it is computed from."""
    if not finds_delta(fields.plan):
        fields.add("const A *", "delta", "delta.data_ptr()")
        return
    fields.add("const T *", "raw", "raw.data_ptr()")
    for at, axis in enumerate("bhn"):
        fields.add_int(f"raw_{axis}", f"raw.stride({at})")
    address = "0 if grad_lse is None else grad_lse.data_ptr()"
    fields.add("const A *", "grad_lse", address)


def delta_text(plan: KernelPlan) -> str:
    """What the adjoint of every weight of row r is lowered by."""
    if not finds_delta(plan):
        return "delta[first_row + r]"
    return "delta_of(batch, head, start + r)"


def has_raw_gradient(plan: KernelPlan) -> bool:
    """Whether the weights depend on the raw score at all."""
    return not is_const(plan.raw_partial, 0.0)


def backward_source(plan: KernelPlan, sizes: tuple[int, int]) -> tuple[str, Fields, Backward]:
    """The C++ of the backward, the fields of its call, and what was written."""
    fields = Fields(plan)
    fields.add_call()
    fields.add_inputs()
    for name in ("keys", "values", "key_rows"):
        fields.add_packed(name)
    add_tile_fields(fields)
    wanted = [leaf for leaf in plan.leaves if not is_const(leaf.partial, 0.0)]
    indices = [arg for leaf in wanted for arg in leaf.node.args]
    roots = [*forward_roots(plan), plan.raw_partial, *(leaf.partial for leaf in wanted)]
    tile = Tile(plan, fields, [*roots, *indices])
    made = Backward(plan, tile, sums_of(plan, tile))
    tile.diagonals.add_fields(fields)
    fields.add("const T *", "grad_rows", "grad_rows.data_ptr()")
    for at, axis in enumerate("bhn"):
        fields.add_int(f"grad_rows_{axis}", f"grad_rows.stride({at})")
    if plan.form != "elementwise":
        fields.add("const A *", "stat", "stat.data_ptr()")
        add_delta_fields(fields)
    for name in ("parts", "copies"):
        fields.add_int(name, name)
    fields.add("R *", "grad_query", f"{query_result(made)}.data_ptr()")
    fields.add_result("T", "grad_key")
    fields.add_result("T", "grad_value")
    for item in made.sums:
        if item.axis != "table":
            fields.add_result("A", item.name)
    for name in tables_of(plan, made.sums):
        fields.add_result("A", f"sums_{name}")
        fields.add_int(f"size_of_{name}", f"{tensor_name(name)}.numel()")
    helpers = CppLines()
    if plan.form == "softmax":
        helpers.add(REWEIGH)
    helpers.add(COLUMNS, WIDTHS, KEY_SUMS)
    tiles = "".join(f"    A {name}[ROWS * WIDTH];\n" for name in made.tiles)
    dots = "    A dots[ROWS * D];\n" if has_dots(made.sums) else ""
    helpers.add(ROOM.replace("TILES\n", tiles + dots).rstrip("\n"))
    methods = CppLines()
    methods.add(SHARING)
    if plan.form != "elementwise" and finds_delta(plan):
        methods.add(DELTA)
    write_visit(methods, plan, fields)
    methods.blank()
    write_tile(methods, made)
    methods.blank()
    methods.add(RUN.rstrip("\n"))
    source = write_source(
        plan, sizes, fields, query_dtype(made), "attn_backward", helpers.text(), methods.text()
    )
    return source, fields, made


def write_tile(lines: CppLines, made: Backward) -> None:
    """The method that computes one tile of queries."""
    body = CppLines()
    write_body(body, made)
    header = (
        "void tile(int64_t batch, int64_t head, int64_t number, int64_t item, int64_t copy, "
        "Room &room) const"
    )
    with lines.block(header):
        lines.add(*made.tile.fields.aliases(body.text()))
        lines.add(body.text().rstrip("\n"))


def write_body(lines: CppLines, made: Backward) -> None:
    plan, tile = made.plan, made.tile
    plain = is_plain(plan)
    lines.add(
        "const int64_t start = number * ROWS, rows = less(size_Nq - start, ROWS);",
        "const int64_t key_head = head / size_G;",
        "const int64_t first_row = (batch * size_H + head) * size_Nq + start;",
        f"const A factor = (A)({'given_scale * LOG2_E' if plain else 'given_scale'});",
        "const A score_factor = PER == 1 ? 1 : factor;",
    )
    sign = "1"
    if plain:
        lines.add("const A unit = PER == 1 ? 1 : factor == 0 ? (A)1e-37 : attn_abs(factor);")
        sign = "factor < 0 ? -1 : 1"
    lines.add(
        f"load_query(room.query, batch, head, start, rows, PER == 1 ? factor : {sign});",
        "const T *const grad_at = grad_rows + batch * grad_rows_b + head * grad_rows_h;",
        "for (int64_t r = 0; r < rows; ++r)",
        "    load_row<DV>(room.grad + r * DEPTH_V, grad_at + (start + r) * grad_rows_n, 1);",
        "pack_rows<D, WHOLE>(room.query_rows, query_at(batch, head, 0), query_n, start, rows, "
        "size_Nq);",
        "pack_rows<DV, VALUES>(room.grad_rows, grad_at, grad_rows_n, start, rows, size_Nq);",
        "for (int64_t n = 0; n < rows * WHOLE; ++n) room.found[n] = 0;",
        "(void)score_factor, (void)item, (void)copy, (void)first_row;",
    )
    if has_dots(made.sums):
        lines.add("for (int64_t n = 0; n < rows * D; ++n) room.dots[n] = 0;")
    if plan.form == "softmax":
        base = "lse * LOG2_E / unit" if plain else "lse"
        lines.add("A bases[ROWS], deltas[ROWS];")
        with lines.block("for (int64_t r = 0; r < rows; ++r)"):
            lines.comment("A row without a key: 2 ** (logit - infinity) is 0.")
            lines.add(
                "const A lse = stat[first_row + r];",
                f"bases[r] = lse == -INFINITY ? INFINITY : {base};",
                f"deltas[r] = {delta_text(plan)};",
            )
    elif plan.form == "normalize":
        lines.add("A shares[ROWS], deltas[ROWS];")
        with lines.block("for (int64_t r = 0; r < rows; ++r)"):
            lines.add(
                "const A sum = stat[first_row + r];",
                "shares[r] = sum == 0 ? 0 : 1 / sum;",
                f"deltas[r] = {delta_text(plan)};",
            )
    for item in made.sums:
        if item.axis == "row":
            lines.add(f"A {item.name}_of[ROWS] = {{}};")
    tile.write_place(lines)
    lines.add(
        "visit(batch, head, start, start + rows, [&](int64_t first, int64_t end, bool is_full) {"
    )
    with lines.indented():
        write_chunk(lines, made)
    lines.add("});")
    write_end(lines, made)


def write_chunk(lines: CppLines, made: Backward) -> None:
    """The work on one chunk of columns."""
    plan = made.plan
    lines.add(
        "const int64_t count = end - first, whole = rounded_up(count, LANES);",
        "const int32_t k_first = (int32_t)(first + k_start(batch));",
        "(void)k_first, (void)is_full;",
        "KeySums &key_sums = *room.key_sums;",
        "const bool adds = key_sums.open(first, end);",
        "const Operands with = operands(room, batch, key_head, first, end);",
        "product_panels<DEPTH>(room.query, rows, with.keys, with.skipped, count, room.scores);",
    )
    write_values(lines, made)
    lines.add(
        "product_panels<DEPTH_V>(room.grad, rows, with.values, with.skipped, count, room.adjoints);"
    )
    write_adjoints(lines, made)
    lines.add(
        "const Element *left = as_columns(room.scores, room.left, rows, count);",
        "product(left, 1, WIDTH, count, room.grad_rows, VALUES, VALUES, (rows + PER - 1) / PER, "
        "key_sums.values_at(first), VALUES, adds);",
    )
    if made.sums:
        write_sums(lines, made)
    if not has_raw_gradient(plan):
        lines.add("if (!adds) memset(key_sums.keys_at(first), 0, count * WHOLE * sizeof(A));")
        return
    write_slopes(lines, made)
    lines.add(
        "left = as_columns(room.adjoints, room.left, rows, count);",
        "product(left, 1, WIDTH, count, room.query_rows, WHOLE, WHOLE, (rows + PER - 1) / PER, "
        "key_sums.keys_at(first), WHOLE, adds);",
        "left = as_elements(room.adjoints, room.left, rows, count);",
        "product(left, WIDTH / PER, 1, rows, with.key_rows, with.key_stride, WHOLE, "
        "(count + PER - 1) / PER, "
        "room.found, WHOLE, true);",
    )


def write_values(lines: CppLines, made: Backward) -> None:
    """Scores -> weights, and what else is kept of pairs."""
    plan, tile = made.plan, made.tile
    roots = forward_roots(plan)
    is_bare = is_plain(plan) and not made.tiles

    def loop(is_full: bool) -> None:
        slopes = [plan.raw_partial] if made.has_slopes else []
        needed = [*([] if is_bare else roots), *slopes, *([] if is_full else [tile.mask])]
        before = ["A *const line = room.scores + r * WIDTH;"]
        before += [f"A *const {name} = room.{name} + r * WIDTH;" for name in made.tiles]
        with tile.pairs(lines, needed, before) as values:
            if not is_bare:
                lines.add("const A score = line[j] * score_factor;")
            if not is_full:
                lines.origin(plan.program, tile.mask)
            lines.origin(plan.program, plan.value)
            texts = values.write(lines, *needed)
            write_pair(lines, made, values, texts, is_full, is_bare)

    if not tile.has_mask:
        if not is_bare:
            loop(True)
    else:
        with lines.block("if (!is_full)"):
            loop(False)
        if not is_bare:
            with lines.block("else"):
                loop(True)
    if plan.form == "softmax":
        unit = "unit" if is_plain(plan) else "LOG2_E"
        lines.add(
            "for (int64_t r = 0; r < rows; ++r) "
            f"reweigh(room.scores + r * WIDTH, count, {unit}, bases[r]);"
        )


def write_pair(
    lines: CppLines,
    made: Backward,
    values: Values,
    texts: list[str],
    is_full: bool,
    is_bare: bool,
) -> None:
    """What is stored for one pair; `texts` are those of the value, the logit where that is needed,
    the slope where there is one, and the mask of a chunk that is not full."""
    plan = made.plan
    rest = iter(texts)
    value = "line[j]" if is_bare else next(rest)
    if is_plain(plan) and not is_bare:
        value = "line[j]"
    logit = next(rest) if len(forward_roots(plan)) > 1 else value
    slope = next(rest) if made.has_slopes else ""
    tests = [] if is_full else [f"({next(rest)})"]
    if plan.may_be_masked_by_score and (made.has_slopes or plan.form != "softmax"):
        tests.append(f"(({logit}) != -INFINITY)")
    keep = " & ".join(tests)
    if tests:
        lines.add(f"const bool keep = {keep};")
    if made.keeps_scores:
        lines.add("raw[j] = score;")
    if made.has_slopes:
        lines.add(f"slopes[j] = keep ? {slope} : 0;" if tests else f"slopes[j] = {slope};")
    if made.has_kept:
        lines.add(f"kept[j] = {'keep' if tests else '1'};")
    least = "-INFINITY" if plan.form == "softmax" else "0"
    if plan.form == "normalize":
        value = f"({value}) * shares[r]"
    lines.add(f"line[j] = keep ? {value} : {least};" if tests else f"line[j] = {value};")


def write_adjoints(lines: CppLines, made: Backward) -> None:
    """What every pair's value passes on: room.adjoints, 0 where the pair takes no part."""
    plan = made.plan
    with lines.block("for (int64_t r = 0; r < rows; ++r)"):
        lines.add("A *const adjoint = room.adjoints + r * WIDTH;")
        if plan.form == "softmax":
            lines.add(
                "const A *const weight = room.scores + r * WIDTH;",
                "for (int64_t j = 0; j < whole; j += LANES)",
                "    store(adjoint + j, load(weight + j) * (load(adjoint + j) - deltas[r]));",
            )
            return
        text = (
            "adjoint[j]" if plan.form == "elementwise" else "(adjoint[j] - deltas[r]) * shares[r]"
        )
        if made.has_kept:
            lines.add("const A *const kept = room.kept + r * WIDTH;")
            text = f"kept[j] != 0 ? {text} : 0"
        lines.add(
            f"for (int64_t j = 0; j < count; ++j) adjoint[j] = {text};",
            "for (int64_t j = count; j < whole; ++j) adjoint[j] = 0;",
            "for (int64_t j = count; j < whole; ++j) room.scores[r * WIDTH + j] = 0;",
        )


def write_slopes(lines: CppLines, made: Backward) -> None:
    """room.adjoints as those of the raw scores."""
    partial = made.plan.raw_partial
    if is_const(partial, 1.0):
        return
    lines.origin(made.plan.program, partial)
    with lines.block("for (int64_t r = 0; r < rows; ++r)"):
        lines.add("A *const adjoint = room.adjoints + r * WIDTH;")
        if made.has_slopes:
            lines.add("const A *const slopes = room.slopes + r * WIDTH;")
        factor = "slopes[j]" if made.has_slopes else made.tile.values.text(partial)
        lines.add(f"for (int64_t j = 0; j < count; ++j) adjoint[j] *= {factor};")


def write_end(lines: CppLines, made: Backward) -> None:
    """Stores what belongs to the rows."""
    with lines.block("for (int64_t r = 0; r < rows; ++r)"):
        dots = " + room.dots[r * D + n]" if has_dots(made.sums) else ""
        lines.add(
            "for (int64_t n = 0; n < D; ++n) narrow(grad_query[(first_row + r) * D + n], "
            f"room.found[r * WHOLE + n] * (A)given_scale{dots});"
        )
        for item in made.sums:
            if item.axis == "row":
                lines.add(f"{item.name}[first_row + r] = {item.name}_of[r];")
