"""Puts a C++ source together: prelude, functions, the struct of a call, and its entry point."""

from __future__ import annotations

import re

from attndsl.plan.kernel_plan import KernelPlan

from .call import Fields
from .functions import functions_text
from .lines import CppLines
from .prelude import TYPES, prelude_text
from .products import products_text
from .tiles import RUNS
from .values import lookup_function, place_function, row_function

OPERANDS = """\
// The rows of a tile, as the left side of a product.
void load_query(Element *out, int64_t b, int64_t h, int64_t start, int64_t rows, A factor) const {
    for (int64_t r = 0; r < rows; ++r)
        load_row<D>(out + r * DEPTH, query_at(b, h, start + r), factor);
}

const T *query_at(int64_t b, int64_t h, int64_t row) const {
    return query + b * query_b + h * query_h + row * query_n;
}

const T *key_at(int64_t b, int64_t h) const { return key + b * key_b + h * key_h; }

const T *value_at(int64_t b, int64_t h) const { return value + b * value_b + h * value_h; }

// Columns and rows that packed keys and values have.
int64_t packed() const { return rounded_up(size_Nk, PANEL); }

// Blocks of keys that are packed before the tiles: all, or none where few tiles read each.
int64_t blocks() const { return packs ? size_B * size_Hk * (packed() / PANEL) : 0; }

int64_t keys_of(int64_t b) const { return KEYS; }

int64_t q_start(int64_t b) const { return Q_START; }

int64_t k_start(int64_t b) const { return K_START; }
"""

PANELS = """\
// A row of numbers as the left side of a product.
template <int64_t WIDTH> static inline void load_row(Element *out, const T *row, A factor) {
#if defined(HAS_PAIRS)
    // The factor is 1 or -1: it flips the signs.
    const Element sign = factor < 0 ? 0x80008000u : 0;
    for (int64_t n = 0; n < (WIDTH + PER - 1) / PER; ++n)
        out[n] = packed_element<WIDTH>(row, n) ^ sign;
#else
    for (int64_t n = 0; n < WIDTH; ++n) out[n] = wide(row[n]) * factor;
#endif
}

// sums[r][j] for `count` columns from column `skipped` of the first panel on, up to whole vectors.
template <int64_t DEPTH>
static void product_panels(const Element *x, int64_t rows, const Element *panels, int64_t skipped,
                           int64_t count, A *sums) {
    for (int64_t at = 0; at < count;) {
        const int64_t column = (skipped + at) % PANEL;
        const int64_t width = less(PANEL - column, rounded_up(count - at, LANES));
        product(x, DEPTH, 1, rows, panels + (skipped + at) / PANEL * PANEL * DEPTH + column, PANEL,
                width, DEPTH, sums + at, WIDTH, false);
        at += width;
    }
}

// Weights [rows][WIDTH] as the left side of a product: themselves, or in pairs in `room`.
static inline const Element *as_elements(A *weights, Element *room, int64_t rows, int64_t count) {
#if defined(HAS_PAIRS)
    typedef uint16_t Narrow __attribute__((vector_size(VECTOR_BYTES / 2)));
    for (int64_t r = 0; r < rows; ++r)
        for (int64_t j = 0; j < count; j += LANES) {
            Narrow numbers;
            asm("vcvtneps2bf16 %1, %0" : "=v"(numbers) : "v"(load(weights + r * WIDTH + j)));
            memcpy((uint16_t *)room + r * WIDTH + j, &numbers, sizeof(numbers));
        }
    return room;
#else
    return weights;
#endif
}
"""

DOT = """\
// The product of a query and a row of a table; 0 where there is no such row.
template <class E> static inline A attn_dot(const T *row, const E *table, int64_t place) {
    A sum = 0;
    if (place < 0) return 0;
    for (int64_t n = 0; n < D; ++n) sum += wide(row[n]) * (A)wide(table[place + n]);
    return sum;
}
"""

ENTRY = """\
// 0, or 1 where there is no memory.
extern "C" int NAME(const int64_t *ints, const double *floats) {
    Call call;
READING
    if (!call.begin()) {
        call.end();
        return 1;
    }
    int failed = 0;
#pragma omp parallel num_threads((int)call.threads) if (call.threads > 1) reduction(| : failed)
    {
        void *place = nullptr;
        failed = posix_memalign(&place, 64, sizeof(Room)) != 0;
#pragma omp for schedule(dynamic, 4)
        for (int64_t block = 0; block < call.blocks(); ++block) call.pack(block);
#pragma omp for schedule(dynamic)
        for (int64_t item = 0; item < call.items(); ++item)
            if (!failed) failed = !call.run(*(Room *)place, item);
#pragma omp for schedule(dynamic, 4)
        for (int64_t block = 0; block < call.finishes(); ++block) call.finish(block);
        free(place);
    }
    call.end();
    return failed;
}
"""

WIDEST_VECTOR = 16  # numbers in the widest vector of any CPU


def reads_values(plan: KernelPlan) -> bool:
    """Whether products read the values where they are: as many as fill vectors, of the type that
    sums have."""
    request = plan.request
    return request.dtype == plan.accumulator and request.value_dim % WIDEST_VECTOR == 0


def reads_keys(plan: KernelPlan) -> bool:
    """The same of keys, where they are the right side as they lie."""
    request = plan.request
    return request.dtype == plan.accumulator and request.head_dim % WIDEST_VECTOR == 0


def write_source(
    plan: KernelPlan,
    sizes: tuple[int, int],
    fields: Fields,
    result: str,
    name: str,
    helpers: str,
    methods: str,
) -> str:
    """The whole source of a function: `helpers` stand before the struct, `methods` in it."""
    struct = CppLines()
    struct.comment("A call, and what is done for it.")
    with struct.block("struct Call"):
        fields.write_members(struct)
        struct.blank()
        struct.add(operands_text(plan))
        struct.blank()
        struct.add(methods.rstrip("\n"))
    struct.add(";")
    struct_text = struct.text().rstrip("\n").removesuffix("\n;") + ";\n"
    reading = CppLines()
    with reading.indented():
        fields.write_reading(reading)
    entry = ENTRY.replace("NAME", name).replace("READING", reading.text().rstrip("\n"))
    body = helpers + "\n" + struct_text
    request = plan.request
    rows, width = sizes
    numbers = [
        f"typedef {TYPES[result]} R;  // of results",
        f"enum : int64_t {{ ROWS = {rows}, WIDTH = {width} }};  // of a tile",
        f"enum : int64_t {{ D = {request.head_dim}, DV = {request.value_dim} }};",
        "enum : int64_t { DEPTH = (D + PER - 1) / PER };  // elements of a query or key",
        "enum : int64_t { VALUES = (DV + LANES - 1) / LANES * LANES };  // numbers of a value",
        f"const bool READS_KEYS = {'true' if reads_keys(plan) else 'false'};",
        f"const bool READS_VALUES = {'true' if reads_values(plan) else 'false'};",
    ]
    parts = [
        prelude_text(plan),
        products_text(plan),
        "\n".join(numbers) + "\n",
        functions_text(body, plan.accumulator) + "\n",
        RUNS,
        PANELS,
        lookups_text(body, plan),
        body,
        entry,
    ]
    return "\n".join(part for part in parts if part.strip())


def operands_text(plan: KernelPlan) -> str:
    """The methods that read query, key and value."""
    batched = plan.request.per_batch
    return (
        OPERANDS.replace(
            "KEYS", "less(greater(k_lens[b], 0), size_Nk)" if "k_len" in batched else "size_Nk"
        )
        .replace("Q_START", "q_offsets[b]" if "q_offset" in batched else "q_offset")
        .replace("K_START", "k_offsets[b]" if "k_offset" in batched else "k_offset")
        .rstrip("\n")
    )


def lookups_text(body: str, plan: KernelPlan) -> str:
    """The functions by which a body reads tables."""
    ranks = {len(t.dims) for t in plan.program.tensors}
    parts = []
    if "attn_lookup<" in body:
        parts += [lookup_function(rank) for rank in sorted(ranks)]
    if "attn_row<" in body:
        parts += [row_function(rank - 1) for rank in sorted(ranks) if rank > 1]
    if "attn_place<" in body:
        parts += [place_function(rank) for rank in sorted(ranks)]
    if re.search(r"\battn_dot\(", body):
        parts.append(DOT.rstrip("\n"))
    return "\n\n".join(parts) + "\n"
