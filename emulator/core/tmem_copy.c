/* tcgen05.cp (shared memory to tensor memory) and tcgen05.shift.
 *
 * The source is a K-major tile of 8-bit elements: rows are lanes, and 16-byte units along K are four columns. With
 * cta_group::2 each CTA of the pair copies its own shared memory into its own tensor memory. */
#include "tcgen05.h"

enum { COPY_128X256B, COPY_4X256B, COPY_128X128B, COPY_64X128B, COPY_32X128B };
enum { MULTICAST_NONE, MULTICAST_X4, MULTICAST_02_13, MULTICAST_01_23 };
enum { SOURCE_PLAIN, SOURCE_6_BITS, SOURCE_4_BITS };

#define SHIFT_COLUMNS 8

static const struct { uint8_t rows, bytes; } shapes[] = {
    [COPY_128X256B] = {128, 32}, [COPY_4X256B] = {4, 32}, [COPY_128X128B] = {128, 16}, [COPY_64X128B] = {64, 16},
    [COPY_32X128B] = {32, 16},
};

typedef struct {
    TmemAddress at;
    uint8_t shape, multicast, source;
    int32_t n_ctas;
    Cta *ctas[2];
    SmemMatrix from;
} Copy;

/* Lanes that row r goes to; returns their number. */
static uint32_t lanes_of(const Copy *copy, uint32_t row, uint32_t lanes[4])
{
    lanes[0] = copy->at.lane + row;
    switch (copy->shape) {
    case COPY_4X256B: lanes[0] = copy->at.lane + 32 * row; return 1;
    case COPY_32X128B:
        for (uint32_t quarter = 0; quarter < 4; quarter++) lanes[quarter] = 32 * quarter + row;
        return 4;
    case COPY_64X128B:
        lanes[0] = copy->multicast == MULTICAST_02_13 ? row : row / 32 * 64 + row % 32;
        lanes[1] = lanes[0] + (copy->multicast == MULTICAST_02_13 ? 64 : 32);
        return 2;
    default: return 1;
    }
}

/* 16 elements of 4 or 6 bits and their padding become a byte each, as an A of f8f6f4 in tensor memory has them: 4 bits in
 * bits 5..2, 6 bits in bits 5..0. */
static void decompress(uint32_t *bytes, uint8_t *bad, uint32_t n, int source)
{
    if (source == SOURCE_PLAIN) return;
    for (uint32_t at = 0; at < n; at += 16) tcgen05_unpack16(bytes + at, bad + at, 1, source == SOURCE_4_BITS ? 4 : 6);
    for (uint32_t at = 0; source == SOURCE_4_BITS && at < n; at++) bytes[at] <<= 2;
}

static void copy_write(AsyncOp *op)
{
    const Copy *copy = (const Copy *)op->payload;
    uint32_t rows = shapes[copy->shape].rows, n = shapes[copy->shape].bytes, lanes[4];
    uint32_t bytes[128 * 32];
    uint8_t bad[128 * 32];
    for (int c = 0; c < copy->n_ctas; c++) {
        Cta *cta = copy->ctas[c];
        if (!matrix_read(op->warp, op->ins, cta, &copy->from, rows, n, 8, bytes, bad)) return;
        decompress(bytes, bad, rows * n, copy->source);
        for (uint32_t row = 0; row < rows; row++) {
            uint32_t copies = lanes_of(copy, row, lanes);
            for (uint32_t word = 0; word < n / 4; word++) {
                const uint32_t *b = bytes + row * n + 4 * word;
                uint32_t value = b[0] | b[1] << 8 | b[2] << 16 | b[3] << 24, unset, column = copy->at.column + word;
                memcpy(&unset, bad + row * n + 4 * word, 4);
                for (uint32_t d = 0; d < copies; d++) {
                    uint32_t *bits = &cta->tmem_bad[column][lanes[d] / 32], bit = 1u << lanes[d] % 32;
                    cta->tmem[column][lanes[d]] = value;
                    *bits = unset ? *bits | bit : *bits & ~bit;
                }
            }
        }
    }
}

static int touch(AsyncOp *op, const Copy *copy)
{
    uint32_t rows = shapes[copy->shape].rows, bytes = shapes[copy->shape].bytes;
    for (int c = 0; c < copy->n_ctas; c++) {
        Cta *cta = copy->ctas[c];
        if (!matrix_touch(op, cta, &copy->from, rows, bytes, 8)) return 0;
        if (copy->shape != COPY_4X256B) async_touch_tmem(op, cta, 0, TMEM_LANES, copy->at.column, bytes / 4, 1);
        for (uint32_t row = 0; copy->shape == COPY_4X256B && row < 4; row++)
            async_touch_tmem(op, cta, copy->at.lane + 32 * row, 1, copy->at.column, bytes / 4, 1);
    }
    return 1;
}

/* The CTAs of the instruction: its own, or the pair. 0 after a finding. */
static int ctas_of(Warp *w, const Ins *i, int32_t group, Cta **ctas)
{
    tcgen05_group(w, i, group);
    ctas[0] = w->cta;
    if (group == 1) return 1;
    return (ctas[1] = tcgen05_peer(w, i)) ? 2 : 0;
}

static const char *copy_problem(const Copy *copy)
{
    int wanted = copy->shape == COPY_32X128B ? MULTICAST_X4 : MULTICAST_NONE;
    if (copy->shape == COPY_64X128B ? copy->multicast < MULTICAST_02_13 : copy->multicast != wanted)
        return "the shape does not go with the multicast";
    int inside = copy->shape == COPY_4X256B ? copy->at.lane < 32 : copy->at.lane == 0;
    return inside ? NULL : "the destination begins in a lane that the shape can't have";
}

static int issue_copy(Warp *w, const Ins *i, uint32_t l)
{
    Copy copy = {.at = tmem_address(R(0)[l] + (uint32_t)i->imm[4]), .shape = (uint8_t)i->imm[1], .multicast = (uint8_t)i->imm[2],
                 .source = (uint8_t)i->imm[3]};
    if (!(copy.n_ctas = ctas_of(w, i, i->imm[0], copy.ctas))) return EMU_STOP;
    if (!tcgen05_matrix(w, i, get64(w, i->s[1], l), 0, "source", &copy.from)) return EMU_STOP;
    const char *problem = copy_problem(&copy);
    if (problem) return stop(w, i, 1u << l, "tmem_access", "tcgen05.cp to 0x%08x: %s", R(0)[l], problem);
    for (int c = 0; c < copy.n_ctas; c++)
        if (!tmem_check(w, i, copy.ctas[c], copy.at.column, shapes[copy.shape].bytes / 4u)) return EMU_STOP;
    AsyncOp *op = async_new(w, i, 1u << l, ENGINE_MMA, CLASS_MMA, sizeof copy);
    memcpy(op->payload, &copy, sizeof copy);
    int fits = touch(op, &copy);
    op->write = fits ? copy_write : NULL;
    async_issue(op);
    return fits ? EMU_NEXT : EMU_STOP;
}

HANDLER(tcgen05_cp)
{
    uint32_t bad = (BAD(0) | BAD(1) | BADHI(1)) & mask;
    if (bad) return stop(w, i, bad, "undefined_value", "an address or descriptor of tcgen05.cp was never written");
    tcgen05_single(w, i, mask, "tcgen05.cp");
    EACH_LANE(mask, l)
    {
        int status = issue_copy(w, i, l);
        if (status != EMU_NEXT) return status;
    }
    return EMU_NEXT;
}

/* ------------------------------------------------------------------------------------------------------- shift */

/* Of 32 lanes and 8 columns: lane l receives lane l + 1, the last one keeps what it holds (a 4x256b copy refreshes it). */
static void shift_write(AsyncOp *op)
{
    const Copy *shift = (const Copy *)op->payload;
    for (int c = 0; c < shift->n_ctas; c++) {
        Cta *cta = shift->ctas[c];
        for (uint32_t column = shift->at.column; column < shift->at.column + SHIFT_COLUMNS; column++) {
            uint32_t *words = &cta->tmem[column][shift->at.lane], *unset = &cta->tmem_bad[column][shift->at.lane / 32];
            memmove(words, words + 1, 31 * sizeof *words);
            *unset = *unset >> 1 | (*unset & 0x80000000u);
        }
    }
}

HANDLER(tcgen05_shift)
{
    uint32_t bad = BAD(0) & mask;
    if (bad) return stop(w, i, bad, "undefined_value", "the address of tcgen05.shift was never written");
    tcgen05_single(w, i, mask, "tcgen05.shift");
    EACH_LANE(mask, l)
    {
        Copy shift = {.at = tmem_address(R(0)[l] + (uint32_t)i->imm[1])};
        if (!(shift.n_ctas = ctas_of(w, i, i->imm[0], shift.ctas))) return EMU_STOP;
        if (shift.at.lane % 32 || shift.at.lane >= TMEM_LANES)
            return stop(w, i, 1u << l, "tmem_access", "tcgen05.shift of lane %u: it must be 0, 32, 64 or 96", shift.at.lane);
        for (int c = 0; c < shift.n_ctas; c++)
            if (!tmem_check(w, i, shift.ctas[c], shift.at.column, SHIFT_COLUMNS)) return EMU_STOP;
        AsyncOp *op = async_new(w, i, 1u << l, ENGINE_MMA, CLASS_MMA, sizeof shift);
        memcpy(op->payload, &shift, sizeof shift);
        for (int c = 0; c < shift.n_ctas; c++)
            async_touch_tmem(op, shift.ctas[c], shift.at.lane, 32, shift.at.column, SHIFT_COLUMNS, 1);
        op->write = shift_write;
        async_issue(op);
    }
    return EMU_NEXT;
}
