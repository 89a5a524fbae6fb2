"""C++ of the sums for keys: memory that items of work hand on, and the order they are added up in.

An item adds to sums of its own, and the items of a head of keys are added up in their order, by
whichever thread has the time. What has been added serves other items again: there are about as many
sums in memory as threads, however many items there are, and so few pages that the system must find.
"""

from __future__ import annotations

KEY_SUMS = """\
// Sums for keys lo .. hi - 1, of one item or of several: rows of WHOLE numbers for the gradients of
// keys, of VALUES for those of values.
struct KeySums {
    A *keys, *values;
    int64_t lo, hi;
    KeySums *next;  // among those that nobody uses

    A *keys_at(int64_t n) const { return keys + (n - lo) * WHOLE; }

    A *values_at(int64_t n) const { return values + (n - lo) * VALUES; }

    // Makes room for keys first .. end - 1; whether there are sums to add to. Where there are none,
    // those of all these keys and values have to be written.
    bool open(int64_t first, int64_t end) {
        const bool adds = first < hi;
        extend(adds ? end : first);
        hi = greater(hi, end);
        return adds;
    }

    // Reaches to `end` at the least, by sums of 0.
    void extend(int64_t end) {
        if (end <= hi) return;
        memset(keys_at(hi), 0, (end - hi) * WHOLE * sizeof(A));
        memset(values_at(hi), 0, (end - hi) * VALUES * sizeof(A));
        hi = end;
    }

    // Adds others, which begin no earlier.
    void add(const KeySums &others) {
        if (others.lo == others.hi) return;
        extend(others.hi);
        const int64_t count = others.hi - others.lo;
        A *const key = keys_at(others.lo), *const value = values_at(others.lo);
        for (int64_t n = 0; n < count * WHOLE; ++n) key[n] += others.keys[n];
        for (int64_t n = 0; n < count * VALUES; ++n) value[n] += others.values[n];
    }
};

// How far a head of keys is: `total` is the sum of its items before number `next`. One thread at a
// time is busy with it.
struct Turn {
    KeySums *total;
    int64_t next;
    bool is_busy;
};

// What all threads share: `ended` has the sums of items whose turn has not come yet, by number.
struct Shared {
    KeySums *unused = nullptr, **ended = nullptr;
    Turn *turns = nullptr;
    int64_t waiting = 0;  // items that no thread has begun
};
"""

SHARING = """\
mutable Shared shared;

int64_t all_items() const { return size_B * size_H * parts; }

// Items of a head of keys: their numbers follow each other.
int64_t group() const { return size_G * parts; }

// False where there is no memory.
bool begin() const {
    const int64_t heads = size_B * size_Hk;
    shared.ended = (KeySums **)calloc(all_items() + 1, sizeof(KeySums *));
    shared.turns = (Turn *)calloc(heads + 1, sizeof(Turn));
    shared.waiting = all_items();
    if (!shared.ended || !shared.turns) return false;
    for (int64_t head = 0; head < heads; ++head) shared.turns[head].next = head * group();
    return true;
}

void end() const {
    for (int64_t head = 0; shared.turns && head < size_B * size_Hk; ++head)
        free(shared.turns[head].total);
    for (int64_t number = 0; shared.ended && number < all_items(); ++number)
        free(shared.ended[number]);
    for (KeySums *at = shared.unused; at;) {
        KeySums *const next = at->next;
        free(at);
        at = next;
    }
    free(shared.ended);
    free(shared.turns);
}

// Sums for an item that begins at key `lo`; null where there is no memory.
KeySums *take(int64_t lo) const {
    KeySums *taken = nullptr;
#pragma omp critical(attn_shared)
    {
        --shared.waiting;
        taken = shared.unused;
        if (taken) shared.unused = taken->next;
    }
    if (!taken) {
        enum : size_t { HEADER = (sizeof(KeySums) + 63) / 64 * 64 };
        void *place = nullptr;
        if (posix_memalign(&place, 64, HEADER + size_Nk * (WHOLE + VALUES) * sizeof(A)))
            return nullptr;
        taken = (KeySums *)place;
        taken->keys = (A *)((char *)place + HEADER);
        taken->values = taken->keys + size_Nk * WHOLE;
    }
    taken->lo = taken->hi = lo;
    return taken;
}

void give(KeySums *sums) const {
    if (!sums) return;
#pragma omp critical(attn_shared)
    {
        sums->next = shared.unused;
        shared.unused = sums;
    }
}

// Leaves the sums of item `number`, and adds up those whose turn it is, where other items can use
// what becomes free; in the end `finish` adds up the rest, by all threads.
void leave(int64_t number, KeySums *sums) const {
    const int64_t key_head = number / group(), stop = (key_head + 1) * group();
    Turn &turn = shared.turns[key_head];
    bool adds = false;
#pragma omp critical(attn_shared)
    {
        shared.ended[number] = sums;
        adds = !turn.is_busy && shared.waiting > 0;
        if (adds) turn.is_busy = true;
    }
    while (adds) {
        KeySums *next = nullptr;
#pragma omp critical(attn_shared)
        {
            next = turn.next < stop ? shared.ended[turn.next] : nullptr;
            adds = turn.is_busy = next != nullptr;
        }
        if (next) take_turn(key_head, turn, next, turn.next + 1 == stop);
    }
}

// The sums `next` of the item whose turn it is; after the last one gradients are written.
void take_turn(int64_t key_head, Turn &turn, KeySums *next, bool is_last) const {
    KeySums *total = turn.total, *other = next;
    if (is_last) {
        write_keys(key_head, 0, size_Nk);
        give(total);
        total = nullptr;
    } else if (!total || next->lo < total->lo) {  // x + y is y + x, bit for bit
        total = next;
        other = turn.total;
    }
    if (total && other) total->add(*other);
    turn.total = total;
    shared.ended[turn.next++] = nullptr;
    give(other);
}

// Adds up what is left for one block of keys.
void finish(int64_t block) const {
    const int64_t blocks = (size_Nk + PANEL - 1) / PANEL, key_head = block / blocks;
    const int64_t first = block % blocks * PANEL;
    if (shared.turns[key_head].next < (key_head + 1) * group())
        write_keys(key_head, first, less(first + PANEL, size_Nk));
}

int64_t finishes() const {
    return size_B * size_Hk * ((size_Nk + PANEL - 1) / PANEL);
}

// The gradients of keys first .. end - 1 and of their values, from all that there is of a head.
void write_keys(int64_t key_head, int64_t first, int64_t end) const {
    for (int64_t n = first; n < end; ++n) {
        const int64_t row = key_head * size_Nk + n;
        write_row<D, WHOLE>(grad_key + row * D, &KeySums::keys, key_head, n, (A)given_scale);
        write_row<DV, VALUES>(grad_value + row * DV, &KeySums::values, key_head, n, 1);
    }
}

template <int64_t COUNT, int64_t STRIDE>
void write_row(T *to, A *KeySums::*sums, int64_t key_head, int64_t n, A factor) const {
    A found[STRIDE] = {};
    const auto add = [&](const KeySums *from) {
        if (!from || n < from->lo || n >= from->hi) return;
        const A *const row = from->*sums + (n - from->lo) * STRIDE;
        for (int64_t d = 0; d < STRIDE; ++d) found[d] += row[d];
    };
    const Turn &turn = shared.turns[key_head];
    add(turn.total);
    for (int64_t at = turn.next; at < (key_head + 1) * group(); ++at) add(shared.ended[at]);
    for (int64_t d = 0; d < COUNT; ++d) narrow(to[d], found[d] * factor);
}
"""
