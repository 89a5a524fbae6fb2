"""C++ of matrix products: blocks whose sums stay in registers, and operands packed for them."""

from __future__ import annotations

from attndsl.plan.kernel_plan import KernelPlan

ONE_NUMBER = """\
// An element of an operand: one number.
typedef A Element;
typedef Vector Elements;
enum : int64_t { PER = 1 };

static inline Elements spread_element(Element x) { return spread(x); }
static inline void add_products(Vector &sums, Elements x, Elements y) { sums += x * y; }
static inline Element element_of(A x) { return x; }
"""

PAIRS = """\
#if defined(__AVX512BF16__)
// An element of an operand: two neighbours along the axis that a product sums over. The CPU
// multiplies pairs of bfloat16 and adds both products to a float.
#define HAS_PAIRS 1
typedef uint32_t Element;
typedef Element Elements __attribute__((vector_size(VECTOR_BYTES)));
enum : int64_t { PER = 2 };

static inline Elements spread_element(Element x) { return x - Elements{}; }
static inline void add_products(Vector &sums, Elements x, Elements y) {
    asm("vdpbf16ps %2, %1, %0" : "+v"(sums) : "v"(x), "v"(y));
}
static inline Element element_of(BFloat16 x, BFloat16 y) { return x.bits | (uint32_t)y.bits << 16; }
#else
"""

PRODUCTS = """\
static inline Elements load_elements(const Element *from) {
    Elements x;
    memcpy(&x, from, sizeof(x));
    return x;
}

// sums[i][j] = (adds ? sums[i][j] : 0) + the sum over n < count of x[i * x_row + n * x_step] *
// y[n * y_step + j], for ROWS rows i and VECTORS vectors of columns j.
template <int ROWS, int VECTORS>
static inline void product_block(const Element *x, int64_t x_row, int64_t x_step, const Element *y,
                                 int64_t y_step, int64_t count, A *sums, int64_t sums_row,
                                 bool adds) {
    Vector block[ROWS][VECTORS];
    UNROLLED
    for (int i = 0; i < ROWS; ++i) {
        UNROLLED
        for (int j = 0; j < VECTORS; ++j) {
            block[i][j] = Vector{};
            __builtin_prefetch(sums + i * sums_row + j * LANES, 1);
        }
    }
    for (int64_t n = 0; n < count; ++n) {
        Elements columns[VECTORS];
        UNROLLED
        for (int j = 0; j < VECTORS; ++j) columns[j] = load_elements(y + n * y_step + j * LANES);
        UNROLLED
        for (int i = 0; i < ROWS; ++i) {
            const Elements row = spread_element(x[i * x_row + n * x_step]);
            UNROLLED
            for (int j = 0; j < VECTORS; ++j) add_products(block[i][j], row, columns[j]);
        }
    }
    UNROLLED
    for (int i = 0; i < ROWS; ++i) {
        UNROLLED
        for (int j = 0; j < VECTORS; ++j) {
            A *const place = sums + i * sums_row + j * LANES;
            store(place, adds ? load(place) + block[i][j] : block[i][j]);
        }
    }
}

template <int VECTORS>
static void product_columns(const Element *x, int64_t x_row, int64_t x_step, int64_t rows,
                            const Element *y, int64_t y_step, int64_t count, A *sums,
                            int64_t sums_row, bool adds) {
    int64_t i = 0;
    for (; i + 6 <= rows; i += 6)
        product_block<6, VECTORS>(x + i * x_row, x_row, x_step, y, y_step, count,
                                  sums + i * sums_row, sums_row, adds);
    for (; i + 3 <= rows; i += 3)
        product_block<3, VECTORS>(x + i * x_row, x_row, x_step, y, y_step, count,
                                  sums + i * sums_row, sums_row, adds);
    for (; i + 2 <= rows; i += 2)
        product_block<2, VECTORS>(x + i * x_row, x_row, x_step, y, y_step, count,
                                  sums + i * sums_row, sums_row, adds);
    for (; i < rows; ++i)
        product_block<1, VECTORS>(x + i * x_row, x_row, x_step, y, y_step, count,
                                  sums + i * sums_row, sums_row, adds);
}

// The same for any number of rows, and of columns a multiple of LANES.
static inline void product(const Element *x, int64_t x_row, int64_t x_step, int64_t rows,
                           const Element *y, int64_t y_step, int64_t columns, int64_t count,
                           A *sums, int64_t sums_row, bool adds) {
    int64_t j = 0;
    for (; j + PANEL <= columns; j += PANEL)
        product_columns<MOST_VECTORS>(x, x_row, x_step, rows, y + j, y_step, count, sums + j,
                                      sums_row, adds);
    for (; j + 2 * LANES <= columns; j += 2 * LANES)
        product_columns<2>(x, x_row, x_step, rows, y + j, y_step, count, sums + j, sums_row, adds);
    for (; j < columns; j += LANES)
        product_columns<1>(x, x_row, x_step, rows, y + j, y_step, count, sums + j, sums_row, adds);
}
"""

PACKING = """\
// Packed operands, of `count` rows from row `first` on; rows from `end` on count as 0.
// DEPTH: numbers of a row, rounded up to whole elements.

// Transposed: panels of PANEL columns, one behind the other, element [n][row] of each for the
// numbers PER * n ... of a row. `out` is where the panel of row `first` begins.
template <int64_t WIDTH>
static void pack_panels(Element *out, const T *rows, int64_t stride, int64_t first, int64_t count,
                        int64_t end) {
    enum : int64_t { DEPTH = (WIDTH + PER - 1) / PER };
    for (int64_t at = 0; at < count; ++at) {
        Element *const column = out + at / PANEL * PANEL * DEPTH + at % PANEL;
        const T *const row = rows + (first + at) * stride;
        for (int64_t n = 0; n < DEPTH; ++n)
            column[n * PANEL] = first + at < end ? packed_element<WIDTH>(row, n) : Element();
    }
}

// As they lie: element [row / PER][n] holds number n of PER rows; WHOLE numbers to a row, 0 behind.
template <int64_t WIDTH, int64_t WHOLE>
static void pack_rows(Element *out, const T *rows, int64_t stride, int64_t first, int64_t count,
                      int64_t end) {
    for (int64_t at = 0; at < count; at += PER) {
        Element *const line = out + at / PER * WHOLE;
        for (int64_t n = 0; n < WIDTH; ++n)
            line[n] = row_element(rows + (first + at) * stride + n, stride, end - first - at);
        for (int64_t n = WIDTH; n < WHOLE; ++n) line[n] = Element();
    }
}
"""

PACK_ONE = """\
template <int64_t WIDTH> static inline Element packed_element(const T *row, int64_t n) {
    return wide(row[n]);
}

static inline Element row_element(const T *number, int64_t stride, int64_t left) {
    return left > 0 ? wide(number[0]) : Element();
}
"""

PACK_PAIRS = """\
template <int64_t WIDTH> static inline Element packed_element(const T *row, int64_t n) {
    return element_of(row[2 * n], 2 * n + 1 < WIDTH ? row[2 * n + 1] : BFloat16());
}

static inline Element row_element(const T *number, int64_t stride, int64_t left) {
    return element_of(left > 0 ? number[0] : BFloat16(), left > 1 ? number[stride] : BFloat16());
}
"""


def products_text(plan: KernelPlan) -> str:
    """Elements, products and packing for the dtype of a plan."""
    if plan.request.dtype != "bfloat16":
        return "\n".join((ONE_NUMBER, PRODUCTS, PACK_ONE, PACKING))
    packing = "\n".join(("#if defined(HAS_PAIRS)", PACK_PAIRS + "#else", PACK_ONE + "#endif"))
    return "\n".join((PAIRS + ONE_NUMBER + "#endif", PRODUCTS, packing, PACKING))
