#include "tma_tile.h"

#include <string.h>

static const struct {
    uint8_t elements, global_bytes, shared_bytes;
} GROUPS[TMA_TYPES] = {
    [TMA_U8] = {1, 1, 1},         [TMA_U16] = {1, 2, 2},         [TMA_U32] = {1, 4, 4},
    [TMA_S32] = {1, 4, 4},        [TMA_U64] = {1, 8, 8},         [TMA_S64] = {1, 8, 8},
    [TMA_F16] = {1, 2, 2},        [TMA_F32] = {1, 4, 4},         [TMA_F32_FTZ] = {1, 4, 4},
    [TMA_F64] = {1, 8, 8},        [TMA_BF16] = {1, 2, 2},        [TMA_B4X16] = {16, 8, 8},
    [TMA_B4X16_P64] = {16, 8, 16},[TMA_B6X16_P32] = {16, 12, 16},
};

static uint32_t word(const uint8_t *bytes, int index) {
    uint32_t value;
    memcpy(&value, bytes + 4 * index, 4);
    return value;
}

static void put_word(uint8_t *bytes, int index, uint32_t value) { memcpy(bytes + 4 * index, &value, 4); }

static uint32_t bits(uint32_t value, int low, int count) { return value >> low & ((1u << count) - 1); }

const char *tma_decode(const uint8_t *bytes, TmaDescriptor *out) {
    const uint32_t flags = word(bytes, 2), high = word(bytes, 7), steps = word(bytes, 13), boxes = word(bytes, 14);
    memset(out, 0, sizeof *out);
    if (bits(flags, 0, 1)) return "im2col tensor maps are not supported";
    out->address = word(bytes, 0) | (uint64_t)word(bytes, 1) << 32;
    if (!out->address) return "these bytes are not a tensor map (its address is 0)";
    out->rank = bits(flags, 4, 3) + 1;
    out->type = bits(flags, 7, 4);
    out->swizzle = bits(flags, 13, 2);
    out->fill_nan = bits(flags, 15, 1);
    out->round_to_tf32 = bits(flags, 16, 1);
    out->spans_128kib = bits(flags, 21, 1);
    if (out->rank > TMA_MAX_RANK) return "the tensor map's rank is above 5";
    if (out->type >= TMA_TYPES) return "the tensor map's element type is unknown";
    if (bits(flags, 11, 2)) return "interleaved tensor maps are not supported";
    if (bits(flags, 19, 2) == 2) return "the swizzle atomicity of 32 bytes with flipped halves is not supported";
    if (bits(flags, 19, 2) && out->swizzle != TMA_SWIZZLE_128)
        return "only the 128-byte swizzle has other atomicities than 16 bytes";
    static const uint32_t atoms[] = {16, 32, 0, 64};
    out->atom_bytes = atoms[bits(flags, 19, 2)];
    out->group_elements = GROUPS[out->type].elements;
    out->group_global_bytes = GROUPS[out->type].global_bytes;
    out->group_shared_bytes = GROUPS[out->type].shared_bytes;
    for (uint32_t d = 0; d < TMA_MAX_RANK; d++) {
        out->dims[d] = d < out->rank ? (uint64_t)word(bytes, 8 + (int)d) + 1 : 1;
        out->element_strides[d] = d < out->rank ? bits(steps, 3 * (int)d, 3) + 1 : 1;
        out->box[d] = 1;
        if (d == 0) {
            out->box[0] = bits(steps, 24, 8) + 1;
        } else if (d < out->rank) {
            out->box[d] = bits(boxes, 8 * ((int)d - 1), 8) + 1;
            out->strides[d] = ((uint64_t)word(bytes, 2 + (int)d) | (uint64_t)bits(high, 4 * ((int)d - 1), 4) << 32) * 16;
        }
    }
    return NULL;
}

const char *tma_check(const TmaDescriptor *d) {
    const bool padded = d->group_shared_bytes != d->group_global_bytes;
    const uint32_t inner = d->box[0] / d->group_elements * d->group_shared_bytes;
    static const uint32_t span[] = {~0u, 32, 64, 128};
    if (d->address % (padded ? 32 : 16)) return "the tensor's address is not aligned to 16 bytes (32 for padded types)";
    if (d->box[0] % d->group_elements) return "the inner box is no whole number of 16-element groups";
    if (inner % 16) return "the inner box is no multiple of 16 bytes";
    if (inner > span[d->swizzle]) return "the inner box is longer than the swizzle's span";
    if (padded && d->box[0] != 128 && d->swizzle != TMA_SWIZZLE_NONE)
        return "a padded type's inner box under a swizzle is not 128 elements";
    if (d->fill_nan && d->group_elements != 1) return "packed types have no NaN to fill with";
    if (padded && d->dims[0] % 128) return "a padded type's inner dimension is no multiple of 128 elements";
    for (uint32_t i = 1; i < d->rank; i++) {
        if (padded && d->strides[i] % 32) return "a padded type's stride is no multiple of 32 bytes";
        if (d->box[i] < 1 || d->box[i] > 256) return "a box dimension is above 256";
    }
    return NULL;
}

/* Bits 4.. are XORed with bits 7.. of the same address: a pattern of absolute addresses, not of the tile's offsets. With
 * atoms of 32 or 64 bytes it is fewer bits, from 5 or 6 on. */
uint32_t tma_swizzle(const TmaDescriptor *d, uint32_t address) {
    static const uint32_t mask[] = {0, 0x10, 0x30, 0x70};
    if (d->atom_bytes == 32) return address ^ (address >> 2 & 0x60);
    if (d->atom_bytes == 64) return address ^ (address >> 1 & 0x40);
    return address ^ (address >> 3 & mask[d->swizzle]);
}

uint32_t tma_pattern_bytes(const TmaDescriptor *d) {
    static const uint32_t alignment[] = {128, 256, 512, 1024};
    return alignment[d->swizzle] / (d->atom_bytes / 16);
}

/* With an element stride of s, every s-th element is taken: ceil(box / s) of them. */
static uint32_t count(const TmaDescriptor *d, uint32_t dimension) {
    const uint32_t step = d->element_strides[dimension];
    return (d->box[dimension] + step - 1) / step;
}

uint64_t tma_box_bytes(const TmaDescriptor *d, uint32_t rows) {
    uint64_t total = (uint64_t)d->box[0] / d->group_elements * d->group_global_bytes;
    if (rows) return total * rows;
    for (uint32_t i = 1; i < d->rank; i++) total *= count(d, i);
    return total;
}

static uint32_t row_bytes_of(const TmaDescriptor *d) { return d->box[0] / d->group_elements * d->group_global_bytes; }

/* Bytes from a row of the box to the next one in shared memory: under a swizzle the whole span of the swizzle, however
 * short the row is (measured on an H100). */
static uint32_t row_pitch(const TmaDescriptor *d) {
    static const uint32_t span[] = {0, 32, 64, 128};
    return d->swizzle ? span[d->swizzle] : d->box[0] / d->group_elements * d->group_shared_bytes;
}

bool tma_is_dense(const TmaDescriptor *d) { return row_pitch(d) == row_bytes_of(d); }

uint32_t tma_shared_bytes(const TmaDescriptor *d, uint32_t data_bytes) {
    const uint32_t rows = data_bytes / row_bytes_of(d), last = d->box[0] / d->group_elements * d->group_shared_bytes;
    return rows ? (rows - 1) * row_pitch(d) + last : 0;
}

/* One row: dim 0 from `column` on; `row_address` is that of its column 0, `in_tensor` whether the other coordinates
 * lie in the tensor. False when the visitor ended the walk. */
static bool walk_row(const TmaDescriptor *d, int64_t column, uint64_t row_address, bool in_tensor, uint32_t at,
                     TmaVisit visit, void *context) {
    const int64_t row_bytes = row_bytes_of(d);
    /* bytes of the row that exist, counted from its column 0; sub-byte columns are whole groups or bytes */
    const int64_t bits_each = 8 * (int64_t)d->group_global_bytes / d->group_elements;
    const int64_t first = column * bits_each / 8, end = ((int64_t)d->dims[0] * bits_each + 7) / 8;
    /* before the tensor there is only fill: cut the row where the tensor begins */
    const int64_t before = first >= 0 ? 0 : first + row_bytes > 0 ? -first : row_bytes;
    if (before) {
        const TmaSegment segment = {.at = at, .bytes = (uint32_t)before};
        if (!visit(context, &segment)) return false;
    }
    if (before == row_bytes) return true;
    const int64_t from = first + before;
    TmaSegment segment = {.at = at + (uint32_t)before, .bytes = (uint32_t)(row_bytes - before)};
    if (in_tensor && from < end) {
        segment.inside = end - from < segment.bytes ? (uint32_t)(end - from) : segment.bytes;
        const int64_t unit_end = (end + 15) / 16 * 16; /* what lies between a row's end and this is overwritten (H100) */
        segment.units = unit_end - from < segment.bytes ? (uint32_t)(unit_end - from) : segment.bytes;
        segment.global_address = row_address + (uint64_t)from;
    }
    return visit(context, &segment);
}

bool tma_walk(const TmaDescriptor *d, const int32_t *coordinates, TmaVisit visit, void *context) {
    const uint32_t row_bytes = row_bytes_of(d);
    uint32_t index[TMA_MAX_RANK] = {0}, counts[TMA_MAX_RANK], at = 0;
    for (uint32_t i = 0; i < TMA_MAX_RANK; i++) counts[i] = i < d->rank ? count(d, i) : 1;
    for (;;) {
        bool in_tensor = true;
        uint64_t row = d->address;
        for (uint32_t i = 1; i < d->rank; i++) {
            const int64_t here = (int64_t)coordinates[i] + (int64_t)index[i] * d->element_strides[i];
            in_tensor = in_tensor && here >= 0 && (uint64_t)here < d->dims[i];
            row += (uint64_t)here * d->strides[i];
        }
        if (!walk_row(d, coordinates[0], row, in_tensor, at, visit, context)) return false;
        at += row_bytes;
        uint32_t i = 1;
        for (; i < d->rank; i++) {
            if (++index[i] < counts[i]) break;
            index[i] = 0;
        }
        if (i >= d->rank) return true;
    }
}

bool tma_walk_rows(const TmaDescriptor *d, int32_t column, const int32_t rows[TMA_GATHER_ROWS], TmaVisit visit,
                   void *context) {
    const uint32_t row_bytes = row_bytes_of(d);
    for (uint32_t r = 0; r < TMA_GATHER_ROWS; r++) {
        const bool in_tensor = rows[r] >= 0 && (uint64_t)rows[r] < d->dims[1];
        const uint64_t row = d->address + (uint64_t)(int64_t)rows[r] * d->strides[1];
        if (!walk_row(d, column, row, in_tensor, r * row_bytes, visit, context)) return false;
    }
    return true;
}

/* In shared memory the rows of a box lie a pitch apart; padded types spread their groups, a swizzle moves pieces of 16
 * bytes or more. */
uint32_t tma_shared_address(const TmaDescriptor *d, uint32_t tile, uint32_t at, uint32_t bytes, uint32_t *run) {
    const bool padded = d->group_shared_bytes != d->group_global_bytes;
    const uint32_t row = at / row_bytes_of(d), column = at % row_bytes_of(d);
    const uint32_t place =
        padded ? column / d->group_global_bytes * d->group_shared_bytes + column % d->group_global_bytes : column;
    const uint32_t linear = tile + row * row_pitch(d) + place;
    *run = bytes;
    if (!tma_is_dense(d) && *run > row_bytes_of(d) - column) *run = row_bytes_of(d) - column;
    if (padded && *run > d->group_global_bytes - at % d->group_global_bytes)
        *run = d->group_global_bytes - at % d->group_global_bytes;
    if (d->swizzle != TMA_SWIZZLE_NONE && *run > 16 - linear % 16) *run = 16 - linear % 16;
    return tma_swizzle(d, linear);
}

void tma_fill(const TmaDescriptor *d, uint8_t *to, uint32_t length) {
    const bool floating = d->type == TMA_F16 || d->type == TMA_F32 || d->type == TMA_F32_FTZ || d->type == TMA_F64 ||
                          d->type == TMA_BF16;
    for (uint32_t i = 0; i < length; i++) to[i] = !d->fill_nan || !floating ? 0 : i & 1 ? 0x7f : 0xf7; /* 0x7ff7 on an H100 */
}

void tma_round_to_tf32(uint8_t *values, uint32_t length) {
    for (uint32_t at = 0; at + 4 <= length; at += 4) {
        uint32_t value;
        memcpy(&value, values + at, 4);
        if ((value & 0x7f800000) != 0x7f800000) value += 0xfff + (value >> 13 & 1);
        value &= 0xffffe000;
        memcpy(values + at, &value, 4);
    }
}

static bool put_bits(uint8_t *bytes, int index, int low, int length, uint64_t value) {
    if (length < 32 && value >> length) return false;
    const uint32_t mask = length == 32 ? ~0u : ((1u << length) - 1) << low;
    put_word(bytes, index, (word(bytes, index) & ~mask) | (((uint32_t)value << low) & mask));
    return true;
}

bool tma_replace(uint8_t *bytes, uint32_t field, uint32_t ordinal, uint64_t value) {
    const bool ordinal_ok = ordinal < TMA_MAX_RANK;
    switch (field) {
    case TMA_FIELD_GLOBAL_ADDRESS:
        put_word(bytes, 0, (uint32_t)value);
        put_word(bytes, 1, (uint32_t)(value >> 32));
        return true;
    case TMA_FIELD_RANK: return value < TMA_MAX_RANK && put_bits(bytes, 2, 4, 3, value); /* the value is rank − 1 */
    case TMA_FIELD_BOX_DIM:
        if (!ordinal_ok || value < 1 || value > 256) return false;
        return ordinal == 0 ? put_bits(bytes, 13, 24, 8, value - 1)
                            : put_bits(bytes, 14, 8 * ((int)ordinal - 1), 8, value - 1);
    case TMA_FIELD_GLOBAL_DIM: /* 0 wraps to 2^32 as a dimension; CuTe writes it for unused ordinals */
        return ordinal_ok && put_bits(bytes, 8 + (int)ordinal, 0, 32, (uint32_t)(value - 1));
    case TMA_FIELD_GLOBAL_STRIDE: /* ordinal 0 is dimension 1's stride, in bytes */
        if (ordinal >= TMA_MAX_RANK - 1 || value % 16 || value >> 40) return false;
        put_word(bytes, 3 + (int)ordinal, (uint32_t)(value / 16));
        return put_bits(bytes, 7, 4 * (int)ordinal, 4, value >> 36);
    case TMA_FIELD_ELEMENT_STRIDE:
        return ordinal_ok && value >= 1 && value <= 8 && put_bits(bytes, 13, 3 * (int)ordinal, 3, value - 1);
    case TMA_FIELD_ELEMENT_TYPE: /* the instruction counts tf32 and tf32.ftz as types of their own */
        if (value > 15) return false;
        put_bits(bytes, 2, 16, 1, value == 11 || value == 12);
        return put_bits(bytes, 2, 7, 4, value < 11 ? value : value < 13 ? value - 4 : value - 2);
    case TMA_FIELD_INTERLEAVE: return value < 3 && put_bits(bytes, 2, 11, 2, value);
    case TMA_FIELD_SWIZZLE: return value < 4 && put_bits(bytes, 2, 13, 2, value) && put_bits(bytes, 2, 22, 1, 0);
    case TMA_FIELD_SWIZZLE_ATOMICITY: return value < 4 && put_bits(bytes, 2, 19, 2, value);
    case TMA_FIELD_FILL: return value < 2 && put_bits(bytes, 2, 15, 1, value);
    default: return false;
    }
}

typedef struct {
    const TmaDescriptor *descriptor;
    const uint8_t *from;
    uint8_t *to;
    uint32_t tile;
} PlainMove;

static bool load_segment(void *context, const TmaSegment *segment) {
    const PlainMove *move = context;
    const TmaDescriptor *d = move->descriptor;
    for (uint32_t done = 0, run; done < segment->bytes; done += run) {
        uint8_t *to = move->to + tma_shared_address(d, move->tile, segment->at + done, segment->bytes - done, &run);
        uint32_t inside = segment->inside > done ? segment->inside - done : 0;
        if (inside > run) inside = run;
        if (inside) memcpy(to, move->from + segment->global_address + done, inside);
        if (d->round_to_tf32) tma_round_to_tf32(to, inside);
        if (inside < run) tma_fill(d, to + inside, run - inside);
    }
    return true;
}

static bool store_segment(void *context, const TmaSegment *segment) {
    const PlainMove *move = context;
    for (uint32_t done = 0, run; done < segment->units; done += run) {
        const uint8_t *from =
            move->from + tma_shared_address(move->descriptor, move->tile, segment->at + done, segment->units - done, &run);
        memcpy(move->to + segment->global_address + done, from, run);
    }
    return true;
}

static void move_plain(const uint8_t *bytes, const int32_t *coordinates, const int32_t *rows, PlainMove move, TmaVisit visit) {
    TmaDescriptor descriptor;
    if (tma_decode(bytes, &descriptor)) return;
    descriptor.address = 0;
    move.descriptor = &descriptor;
    if (rows) tma_walk_rows(&descriptor, coordinates[0], rows, visit, &move);
    else tma_walk(&descriptor, coordinates, visit, &move);
}

void tma_load_plain(const uint8_t *bytes, const uint8_t *global, uint8_t *shared, uint32_t shared_address,
                    const int32_t *coordinates, const int32_t *rows) {
    move_plain(bytes, coordinates, rows, (PlainMove){NULL, global, shared, shared_address}, load_segment);
}

void tma_store_plain(const uint8_t *bytes, uint8_t *global, const uint8_t *shared, uint32_t shared_address,
                     const int32_t *coordinates, const int32_t *rows) {
    move_plain(bytes, coordinates, rows, (PlainMove){NULL, shared, global, shared_address}, store_segment);
}
