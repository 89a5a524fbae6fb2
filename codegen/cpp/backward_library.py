"""C++ of the backward that is the same for every program."""

from __future__ import annotations

REWEIGH = """\
const A LOG2_E = (A)1.4426950408889634;

// Turns the `count` logits of a row into weights 2 ** (unit * (logit - base)), 0 behind them. Where
// logits are huge, the rounding error of the base may not leave the powers that a float holds.
static inline void reweigh(A *line, int64_t count, A unit, A base) {
    const int64_t whole = rounded_up(count, LANES);
    for (int64_t j = count; j < whole; ++j) line[j] = -INFINITY;
    for (int64_t j = 0; j < whole; j += LANES) {
        const Vector power = (load(line + j) - spread(base)) * unit;
        store(line + j, powers_of_two(power > 126 ? spread(126) : power));
    }
}
"""

COLUMNS = """\
// Weights [rows][WIDTH] as the left side of a product over rows: themselves, or in pairs in `room`.
static inline const Element *as_columns(A *weights, Element *room, int64_t rows, int64_t count) {
#if defined(HAS_PAIRS)
    for (int64_t r = 0; r < rows; r += 2)
        for (int64_t j = 0; j < count; j += LANES) {
            const A *const line = weights + r * WIDTH + j;
            Elements low = (Elements)load(line);
            Elements high = r + 1 < rows ? (Elements)load(line + WIDTH) : Elements{};
            low = (low + 0x7fff + (low >> 16 & 1)) >> 16;  // to the nearest, halves to even
            high = (high + 0x7fff + (high >> 16 & 1)) & 0xffff0000u;
            const Elements both = low | high;
            memcpy(room + r / 2 * WIDTH + j, &both, sizeof(both));
        }
    return room;
#else
    return weights;
#endif
}
"""

WIDTHS = """\
enum : int64_t { WHOLE = (D + LANES - 1) / LANES * LANES, DEPTH_V = (DV + PER - 1) / PER };
"""

ROOM = """\
// What one thread works with: the sums of its item; a tile's queries and gradients of results as
// the left sides of products, and as right sides; weights and adjoints of pairs; what the tile adds
// to the query's gradient.
struct Room {
    KeySums *key_sums;
    Element query[ROWS * DEPTH], grad[ROWS * DEPTH_V];
    Element query_rows[ROWS * WHOLE], grad_rows[ROWS * VALUES];
    A scores[ROWS * WIDTH], adjoints[ROWS * WIDTH];
    A found[ROWS * WHOLE];
    Element left[PER == 1 ? LANES : (ROWS + 1) / 2 * WIDTH];
    Element keys[WIDTH * DEPTH], key_rows[WIDTH * WHOLE], values[WIDTH * DEPTH_V];
TILES
};
"""

RUN = """\
// With one copy of the tables' gradients, one thread has all items.
bool run(Room &room, int64_t first) const {
    for (int64_t number = first; number < all_items(); number += copies)
        if (!run_item(room, number)) return false;
    return true;
}

// The last queries come first: under a causal mask they have the most keys.
bool run_item(Room &room, int64_t number) const {
    const int64_t key_head = number / group(), place = number % group();
    const int64_t head = key_head * size_G + place % size_G, part = parts - 1 - place / size_G;
    const int64_t item = part * size_B * size_H + head, b = head / size_H, h = head % size_H;
    const int64_t tiles = (size_Nq + ROWS - 1) / ROWS;
    const int64_t begin = tiles * part / parts, stop = tiles * (part + 1) / parts;
    int64_t lo = size_Nk;
    const auto widen = [&](int64_t first, int64_t, bool) { lo = less(lo, first); };
    for (int64_t at = begin; at < stop; ++at)
        visit(b, h, at * ROWS, less((at + 1) * ROWS, size_Nq), widen);
    room.key_sums = take(lo);
    if (!room.key_sums) return false;
    for (int64_t at = begin; at < stop; ++at) tile(b, h, at, item, item % copies, room);
    leave(number, room.key_sums);
    return true;
}

int64_t items() const { return copies; }

// Packs PANEL keys, as rows and transposed, and values, transposed.
void pack(int64_t block) const {
    const int64_t blocks = packed() / PANEL, head = block / blocks, first = block % blocks * PANEL;
    const int64_t b = head / size_Hk, h = head % size_Hk, at = head * packed() + first;
    const int64_t limit = keys_of(b), there = less(size_Nk - first, PANEL);
    pack_panels<D>(packed_keys + at * DEPTH, key_at(b, h), key_n, first, PANEL, limit);
    pack_panels<DV>(packed_values + at * DEPTH_V, value_at(b, h), value_n, first, PANEL, limit);
    if (!READS_KEYS)
        pack_rows<D, WHOLE>(packed_key_rows + at / PER * WHOLE, key_at(b, h), key_n, first, there,
                            limit);
}

// Where the packed keys or values from `first` on are, and how many columns stand before them.
struct Operands {
    const Element *keys, *values, *key_rows;
    int64_t skipped, key_stride;
};

Operands operands(Room &room, int64_t b, int64_t h, int64_t first, int64_t end) const {
    const Element *const rows = (const Element *)(key_at(b, h) + first * key_n);
    const int64_t stride = READS_KEYS ? key_n : WHOLE;
    if (packs) {
        const int64_t at = (b * size_Hk + h) * packed(), panel = at + first / PANEL * PANEL;
        return {packed_keys + panel * DEPTH, packed_values + panel * DEPTH_V,
                READS_KEYS ? rows : packed_key_rows + (at + first) / PER * WHOLE, first % PANEL,
                stride};
    }
    const int64_t limit = keys_of(b), count = rounded_up(end - first, PANEL);
    pack_panels<D>(room.keys, key_at(b, h), key_n, first, count, limit);
    pack_panels<DV>(room.values, value_at(b, h), value_n, first, count, limit);
    if (!READS_KEYS)
        pack_rows<D, WHOLE>(room.key_rows, key_at(b, h), key_n, first, end - first, limit);
    return {room.keys, room.values, READS_KEYS ? rows : room.key_rows, 0, stride};
}
"""

DELTA = """\
// The product of a result's row and its gradient's, less the gradient of the row's logarithm.
A delta_of(int64_t b, int64_t h, int64_t row) const {
    const T *const x = raw + b * raw_b + h * raw_h + row * raw_n;
    const T *const y = grad_rows + b * grad_rows_b + h * grad_rows_h + row * grad_rows_n;
    A sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t n = 0; n < DV; ++n) sum += wide(x[n]) * wide(y[n]);
    return grad_lse ? sum - grad_lse[(b * size_H + h) * size_Nq + row] : sum;
}
"""
