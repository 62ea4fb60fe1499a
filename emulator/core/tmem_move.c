/* tcgen05.ld and tcgen05.st: between registers and the lanes of tensor memory that a warp may reach.
 *
 * Both are asynchronous. A load is known to be complete at wait::ld or at the first use of one of its registers (that is
 * what kernels rely on, and what the ISA grants for the registers); a store is known to be complete at wait::st. A store
 * over what an earlier load of the same warp reads comes after it: known-right kernels swap registers and columns so. */
#include "tmem.h"

enum { SHAPE_32X32B, SHAPE_16X64B, SHAPE_16X128B, SHAPE_16X256B, SHAPE_16X32BX2 };

/* Lanes, columns and registers of a repetition; the two halves of 16x32bx2 have a column each. */
static const struct { uint8_t lanes, columns, registers; } shapes[] = {
    [SHAPE_32X32B] = {32, 1, 1}, [SHAPE_16X64B] = {16, 2, 1}, [SHAPE_16X128B] = {16, 4, 2}, [SHAPE_16X256B] = {16, 8, 4},
    [SHAPE_16X32BX2] = {16, 1, 1},
};

typedef struct {
    uint32_t lane, column; /* of the first word */
    uint8_t shape, packed; /* packed: a register holds the low halves of two columns */
    uint32_t n, split;     /* registers; columns from the first to the second half */
} Move;

typedef struct { uint32_t lane, column; } Place;

/* Where register r of a thread lies (in words that are not packed): lane and column from the base. */
static inline Place place_of(const Move *move, uint32_t r, uint32_t thread)
{
    switch (move->shape) {
    case SHAPE_32X32B: return (Place){thread, r};
    case SHAPE_16X64B: return (Place){thread / 4 + thread % 2 * 8, 2 * r + thread / 2 % 2};
    case SHAPE_16X128B: return (Place){thread / 4 + r % 2 * 8, r / 2 * 4 + thread % 4};
    case SHAPE_16X256B: return (Place){thread / 4 + r / 2 % 2 * 8, r / 4 * 8 + thread % 4 * 2 + r % 2};
    default: return (Place){thread % 16, r};
    }
}

/* Lane and column in tensor memory; of packed registers, the first of their two columns. */
static inline Place word_of(const Move *move, uint32_t r, uint32_t thread)
{
    Place p = place_of(move, r, thread);
    p.column = move->column + p.column * (move->packed ? 2 : 1);
    if (move->shape == SHAPE_16X32BX2 && thread >= 16) p.column += move->split;
    p.lane += move->lane;
    return p;
}

static inline uint32_t bad_at(const Cta *cta, Place p) { return cta->tmem_bad[p.column][p.lane / 32] >> p.lane % 32 & 1; }

static void set_word(Cta *cta, Place p, uint32_t value, uint32_t bad)
{
    uint32_t *bits = &cta->tmem_bad[p.column][p.lane / 32], bit = 1u << p.lane % 32;
    cta->tmem[p.column][p.lane] = value;
    *bits = bad ? *bits | bit : *bits & ~bit;
}

/* Address, window and allocation of the instruction; -1: go on, else the status to return. The ISA wants the same address
 * in all lanes. Known-right kernels name each lane's own lane of tensor memory, and that works: the first one counts. */
static int prepare(Warp *w, const Ins *i, uint32_t mask, int operand, Move *move)
{
    uint32_t bad = BAD(operand) & mask, first = R(operand)[first_lane(mask)], differing = 0;
    if (bad) return stop(w, i, bad, "undefined_value", "the tensor memory address was never written");
    EACH_LANE(mask, l) differing |= (uint32_t)(((R(operand)[l] ^ first) & ~0x1f0000u) != 0) << l;
    if (differing) return stop(w, i, differing, "tmem_access", "the lanes of the warp give different tensor memory addresses");
    TmemAddress at = tmem_address(first + (uint32_t)i->imm[5]);
    uint32_t shape = (uint32_t)i->imm[0], repetitions = (uint32_t)i->imm[1];
    *move = (Move){at.lane, at.column, (uint8_t)shape, (uint8_t)(i->imm[2] != 0), (uint32_t)i->imm[4], (uint32_t)i->imm[3]};
    uint32_t registers = repetitions * shapes[shape].registers;
    if (move->n != registers) return stop(w, i, mask, "tmem_access", "%u registers where the shape has %u", move->n, registers);
    uint32_t window = (uint32_t)w->index % 4 * 32, columns = repetitions * shapes[shape].columns << move->packed;
    if (at.lane / 32 * 32 != window || at.lane % shapes[shape].lanes)
        return stop(w, i, mask, "tmem_access", "address 0x%08x: warp %d reaches lanes %u to %u only, from a multiple of %u on",
                    first, w->index, window, window + 31, shapes[shape].lanes);
    if (!tmem_check(w, i, w->cta, at.column, columns)) return EMU_STOP;
    if (shape == SHAPE_16X32BX2 && !tmem_check(w, i, w->cta, at.column + move->split, columns)) return EMU_STOP;
    return -1;
}

static void touch(AsyncOp *op, const Move *move, uint32_t repetitions, int is_write)
{
    uint32_t columns = repetitions * shapes[move->shape].columns << move->packed;
    async_touch_tmem(op, op->cta, move->lane, shapes[move->shape].lanes, move->column, columns, is_write);
    if (move->shape == SHAPE_16X32BX2)
        async_touch_tmem(op, op->cta, move->lane, 16, move->column + move->split, columns, is_write);
}

/* -------------------------------------------------------------------------------------------------------- loads */

static void load_write(AsyncOp *op)
{
    const Move *move = (const Move *)op->payload;
    const Cta *cta = op->cta;
    Warp *w = op->warp;
    for (uint32_t r = 0; r < move->n; r++) {
        int32_t slot = op->ins->s[r];
        if (slot < 0) continue;
        if (move->shape == SHAPE_32X32B && !move->packed && op->mask == FULL) {
            memcpy(w->r[slot], &cta->tmem[move->column + r][move->lane], LANES * sizeof(uint32_t));
            w->bad[slot] = cta->tmem_bad[move->column + r][move->lane / 32];
            continue;
        }
        uint32_t bad = 0;
        EACH_LANE(op->mask, l)
        {
            Place p = word_of(move, r, l), next = {p.lane, p.column + 1};
            uint32_t value = cta->tmem[p.column][p.lane];
            bad |= bad_at(cta, p) << l;
            if (move->packed) {
                value = (value & 0xffff) | cta->tmem[next.column][next.lane] << 16;
                bad |= bad_at(cta, next) << l;
            }
            w->r[slot][l] = value;
        }
        set_bad(w, slot, op->mask, bad);
    }
}

HANDLER(tcgen05_ld)
{
    Move move;
    int status = prepare(w, i, mask, i->imm[4], &move);
    if (status >= 0) return status;
    AsyncOp *op = async_new(w, i, mask, ENGINE_TMEM_LOAD, CLASS_TMEM_LOAD, sizeof move);
    memcpy(op->payload, &move, sizeof move);
    touch(op, &move, (uint32_t)i->imm[1], 0);
    for (uint32_t r = 0; r < move.n; r++)
        if (i->s[r] >= 0) async_pending_slot(op, i->s[r]);
    op->write = load_write;
    async_issue(op);
    return EMU_NEXT;
}

/* ------------------------------------------------------------------------------------------------------- stores */

typedef struct { Move move; uint32_t bad[128], value[]; /* [register][lane] */ } Store;

static void store_write(AsyncOp *op)
{
    const Store *store = (const Store *)op->payload;
    const Move *move = &store->move;
    Cta *cta = op->cta;
    for (uint32_t r = 0; r < move->n; r++) {
        const uint32_t *value = store->value + r * LANES;
        if (move->shape == SHAPE_32X32B && !move->packed && op->mask == FULL) {
            memcpy(&cta->tmem[move->column + r][move->lane], value, LANES * sizeof(uint32_t));
            cta->tmem_bad[move->column + r][move->lane / 32] = store->bad[r];
            continue;
        }
        EACH_LANE(op->mask, l)
        {
            Place p = word_of(move, r, l);
            uint32_t bad = store->bad[r] >> l & 1;
            if (!move->packed) set_word(cta, p, value[l], bad);
            else {
                set_word(cta, p, value[l] & 0xffff, bad);
                p.column++;
                set_word(cta, p, value[l] >> 16, bad);
            }
        }
    }
}

/* Some load of the warp that is not known to be complete reads these columns. */
static int loads_overlap(const Warp *w, const Move *move, uint32_t first, uint32_t columns)
{
    const Cta *cta = w->cta;
    uint32_t agent = w->agents[CLASS_TMEM_LOAD];
    if (!agent || !cta->tmem_granules) return agent != 0;
    uint32_t lanes = shapes[move->shape].lanes == 32 ? FULL : 0xffffu << move->lane % 32;
    for (uint32_t c = first; c < first + columns; c++) {
        const Granule *granule = &cta->tmem_granules[c * 4 + move->lane / 32];
        for (int k = 0; k < granule->n; k++) {
            const Record *r = &granule->records[k];
            if (r->agent == agent && (r->mask & lanes) && w->known[agent] < r->clock) return 1;
        }
    }
    return 0;
}

HANDLER(tcgen05_st)
{
    Move move;
    int status = prepare(w, i, mask, 0, &move);
    if (status >= 0) return status;
    uint32_t columns = (uint32_t)i->imm[1] * shapes[move.shape].columns << move.packed;
    if (loads_overlap(w, &move, move.column, columns) ||
        (move.shape == SHAPE_16X32BX2 && loads_overlap(w, &move, move.column + move.split, columns)))
        async_finish_class(w, CLASS_TMEM_LOAD);
    AsyncOp *op = async_new(w, i, mask, ENGINE_TMEM_STORE, CLASS_TMEM_STORE, sizeof(Store) + move.n * LANES * sizeof(uint32_t));
    Store *store = (Store *)op->payload;
    store->move = move;
    for (uint32_t r = 0; r < move.n; r++) {
        memcpy(store->value + r * LANES, R(1 + r), LANES * sizeof(uint32_t));
        store->bad[r] = BAD(1 + r);
    }
    touch(op, &move, (uint32_t)i->imm[1], 1);
    op->write = store_write;
    async_issue(op);
    return EMU_NEXT;
}

HANDLER(tcgen05_wait)
{
    Class class = i->imm[0] ? CLASS_TMEM_STORE : CLASS_TMEM_LOAD;
    int status = group_wait_all(w, i, class);
    return status == EMU_NEXT ? EMU_YIELD : status;
}

/* Orders tcgen05 operations of different threads together with a barrier. The barrier's own edge carries that order
 * here, and known-right kernels do without these fences: nothing to do, nothing to report. */
HANDLER(tcgen05_fence) { return EMU_NEXT; }
