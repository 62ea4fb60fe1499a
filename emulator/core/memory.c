/* Loads and stores: address checks, poison, and the record of who touched what. */
#include "emu.h"

Cta *shared_at(Warp *w, const Ins *i, uint64_t address, uint32_t bytes, uint32_t alignment, uint32_t *offset)
{
    Machine *m = w->machine;
    uint32_t rank = (uint32_t)(address >> SHARED_RANK_SHIFT), low = (uint32_t)address & ((1u << SHARED_RANK_SHIFT) - 1);
    if (unlikely(address >= SHARED_END || rank >= (uint32_t)m->n_ctas)) {
        stop(w, i, 0, "out_of_bounds", "shared address 0x%llx names CTA %u of a cluster of %d", (unsigned long long)address, rank, m->n_ctas);
        return NULL;
    }
    Cta *cta = &m->ctas[rank];
    if (unlikely(low < SHARED_BASE || low - SHARED_BASE > cta->smem_bytes || bytes > cta->smem_bytes - (low - SHARED_BASE))) {
        stop(w, i, 0, "out_of_bounds", "%u bytes at shared address 0x%llx: offset %lld of %u bytes of shared memory", bytes,
             (unsigned long long)address, (long long)low - SHARED_BASE, cta->smem_bytes);
        return NULL;
    }
    if (unlikely(low % alignment)) {
        stop(w, i, 0, "misaligned", "shared address 0x%llx is not a multiple of %u", (unsigned long long)address, alignment);
        return NULL;
    }
    if (unlikely(cta != w->cta && cta->live_warps == 0)) {
        stop(w, i, 0, "exited_cta", "shared memory of CTA %d is used after that CTA has ended", cta->rank);
        return NULL;
    }
    *offset = low - SHARED_BASE;
    return cta;
}

static Range *find_range(Machine *m, uint64_t address)
{
    Range *last = m->last_range;
    if (likely(last && address >= last->low && address < last->high)) return last;
    for (int k = 0; k < m->memory->n; k++) {
        Range *range = &m->memory->ranges[k];
        if (address >= range->low && address < range->high) return m->last_range = range;
    }
    return NULL;
}

Range *global_at(Warp *w, const Ins *i, uint64_t address, uint32_t bytes, uint32_t alignment, int is_write)
{
    Machine *m = w->machine;
    Range *range = find_range(m, address);
    if (unlikely(!range || bytes > range->high - address)) {
        const Range *near = NULL;
        uint64_t nearest = 1 << 24; /* bytes away: beyond, no argument is meant */
        for (int k = 0; k < m->memory->n; k++) {
            const Range *r = &m->memory->ranges[k];
            uint64_t away = address < r->low ? r->low - address : address >= r->high ? address - r->high : 0;
            if (away < nearest && !(r->flags & RANGE_PARAM)) near = r, nearest = away;
        }
        if (near)
            stop(w, i, 0, "out_of_bounds", "%u bytes at global address 0x%llx: byte %lld of argument %d, which has %llu bytes", bytes,
                 (unsigned long long)address, (long long)(address - near->low), near->name, (unsigned long long)(near->high - near->low));
        else
            stop(w, i, 0, "out_of_bounds", "%u bytes at global address 0x%llx, which belongs to no argument", bytes, (unsigned long long)address);
        return NULL;
    }
    if (unlikely(address % alignment)) {
        stop(w, i, 0, "misaligned", "global address 0x%llx is not a multiple of %u", (unsigned long long)address, alignment);
        return NULL;
    }
    if (unlikely(is_write && (range->flags & RANGE_READ_ONLY))) {
        stop(w, i, 0, "read_only", "a write to byte %llu of argument %d, which is an input", (unsigned long long)(address - range->low), range->name);
        return NULL;
    }
    return range;
}

void local_at(Warp *w, const Ins *i, uint32_t lane, uint64_t address, uint32_t bytes, uint8_t **data, uint8_t **shadow)
{
    uint32_t size = w->program->local_bytes;
    uint64_t first = (uint64_t)(uintptr_t)w->local + (uint64_t)lane * size;
    *data = NULL;
    if (!w->local || address < first || address - first > size || bytes > size - (address - first)) {
        stop(w, i, 1u << lane, "out_of_bounds", "%u bytes at local address 0x%llx: offset %lld of %u bytes", bytes, (unsigned long long)address,
             (long long)(address - first), size);
        return;
    }
    *data = (uint8_t *)(uintptr_t)address;
    *shadow = w->local_shadow + (address - (uint64_t)(uintptr_t)w->local);
}

static int is_local(const Warp *w, uint64_t address)
{
    uint64_t first = (uint64_t)(uintptr_t)w->local;
    return w->local && address >= first && address < first + (uint64_t)w->program->local_bytes * LANES;
}

/* ------------------------------------------------------------------------------------------------ where lanes point */

typedef enum { SPACE_GLOBAL, SPACE_SHARED, SPACE_GENERIC, SPACE_LOCAL, SPACE_PARAM } Space;

typedef struct {
    uint8_t *data[LANES], *shadow[LANES]; /* shadow NULL: defined */
    uint32_t offset[LANES];               /* shared memory */
    uint64_t address[LANES];
    Cta *cta[LANES];
    Range *range[LANES];
    uint32_t shared, global; /* lanes in each */
} Targets;

/* Finds each lane's bytes. False after a finding. */
static int find_targets(Warp *w, const Ins *i, uint32_t mask, int32_t slot, Space space, uint32_t bytes, uint32_t flags, int is_write,
                        Targets *t)
{
    int wide = space != SPACE_SHARED || (flags & MEMORY_WIDE);
    uint32_t bad = (w->bad[slot] | (wide ? w->bad[slot + 1] : 0)) & mask;
    if (unlikely(bad)) {
        stop(w, i, bad, "undefined_value", "the address was never written");
        return 0;
    }
    t->shared = t->global = 0;
    EACH_LANE(mask, l)
    {
        uint64_t address = (wide ? get64(w, slot, l) : w->r[slot][l]) + (uint64_t)(int64_t)i->imm[0];
        t->address[l] = address;
        if (space == SPACE_SHARED || (space == SPACE_GENERIC && address < SHARED_END)) {
            Cta *cta = shared_at(w, i, address & 0xffffffff, bytes, bytes, &t->offset[l]);
            if (unlikely(!cta)) return 0;
            t->cta[l] = cta;
            t->data[l] = cta->smem + t->offset[l];
            t->shadow[l] = cta->shadow + t->offset[l];
            t->shared |= 1u << l;
        } else if (space == SPACE_LOCAL || (space == SPACE_GENERIC && is_local(w, address))) {
            local_at(w, i, l, address, bytes, &t->data[l], &t->shadow[l]);
            if (!t->data[l]) return 0;
        } else {
            Range *range = global_at(w, i, address, bytes, bytes, is_write);
            if (unlikely(!range)) return 0;
            t->range[l] = range;
            t->data[l] = (uint8_t *)(uintptr_t)address;
            t->shadow[l] = range->shadow ? range->shadow + (address - range->low) : NULL;
            if (!(range->flags & RANGE_PARAM)) t->global |= 1u << l;
        }
    }
    return 1;
}

static void touch_targets(Warp *w, const Ins *i, const Targets *t, uint32_t mask, uint32_t bytes, uint8_t flags)
{
    if (!w->machine->policy.races || !mask) return;
    Access a = access_of_warp(w, i, flags);
    uint32_t rest = t->shared & mask;
    while (rest) {
        Cta *cta = t->cta[first_lane(rest)];
        uint32_t same = 0;
        EACH_LANE(rest, l) same |= (uint32_t)(t->cta[l] == cta) << l;
        touch_lanes_shared(&a, cta, t->offset, same, bytes);
        rest &= ~same;
    }
    if (t->global & mask) touch_lanes_global(&a, t->address, t->global & mask, bytes);
}

/* Flags and semaphores: a strong access may order this warp after others, or others after it. */
static void synchronise(Warp *w, const Targets *t, uint32_t mask, uint32_t flags, int is_read, int is_write)
{
    if (!(flags & (MEMORY_RELAXED | MEMORY_ACQUIRE | MEMORY_RELEASE))) return;
    EACH_LANE(mask & (t->shared | t->global), l) sync_location(w, t->address[l], flags, is_read, is_write);
}

static uint8_t access_flags(uint32_t flags, int is_write)
{
    int strong = flags & (MEMORY_RELAXED | MEMORY_ACQUIRE | MEMORY_RELEASE);
    return (uint8_t)((is_write ? ACCESS_WRITE : ACCESS_READ) | (strong ? ACCESS_STRONG : 0));
}

/* ------------------------------------------------------------------------------------------------ loads and stores */

static uint64_t read_element(const uint8_t *data, uint32_t size)
{
    uint64_t value = 0;
    memcpy(&value, data, size);
    return value;
}

static int is_bad(const uint8_t *shadow, uint32_t size)
{
    uint64_t seen = 0;
    memcpy(&seen, shadow, size);
    return (seen & 0x0101010101010101ull) != 0;
}

/* slots dst…, address; imm offset, element bytes, n, flags, bytes of a destination register */
static int load(Warp *w, const Ins *i, uint32_t mask, Space space)
{
    uint32_t size = (uint32_t)i->imm[1], n = (uint32_t)i->imm[2], flags = (uint32_t)i->imm[3], width = (uint32_t)i->imm[4];
    Targets t;
    if (!find_targets(w, i, mask, i->s[n], space, size * n, flags, 0, &t)) return EMU_STOP;
    if (space != SPACE_PARAM) touch_targets(w, i, &t, mask, size * n, access_flags(flags, 0));
    for (uint32_t k = 0; k < n; k++) {
        int32_t slot = i->s[k];
        if (slot < 0) continue;
        uint32_t bad = 0, *low = w->r[slot];
        EACH_LANE(mask, l)
        {
            const uint8_t *at = t.data[l] + k * size;
            if (size == 4) memcpy(&low[l], at, 4);
            else {
                uint64_t value = read_element(at, size);
                if ((flags & MEMORY_SIGNED) && size < 8) value = (uint64_t)((int64_t)(value << (64 - 8 * size)) >> (64 - 8 * size));
                low[l] = width == 2 ? (uint32_t)value & 0xffff : (uint32_t)value;
                if (width == 8) w->r[slot + 1][l] = (uint32_t)(value >> 32);
            }
            if (t.shadow[l] && is_bad(t.shadow[l] + k * size, size)) bad |= 1u << l;
        }
        if (size == 4 && width == 8)
            EACH_LANE(mask, l) w->r[slot + 1][l] = (flags & MEMORY_SIGNED) && (int32_t)low[l] < 0 ? ~0u : 0;
        set_bad(w, slot, mask, bad);
        if (width == 8) set_bad(w, slot + 1, mask, bad);
    }
    if (!(flags & (MEMORY_RELAXED | MEMORY_ACQUIRE))) return EMU_NEXT;
    synchronise(w, &t, mask, flags, 1, 0);
    w->tired = 1; /* it may be polling: others come first */
    return EMU_YIELD;
}

static void check_barrier_overwritten(Warp *w, const Ins *i, uint32_t lane, const uint8_t *shadow, uint32_t bytes)
{
    for (uint32_t b = 0; b < bytes; b++)
        if (shadow[b] & SHADOW_BARRIER) {
            finding(w, i, 1u << lane, NULL, "barrier", "a store overwrites a live mbarrier");
            return;
        }
}

/* Lanes that store what is there already. */
static uint32_t unchanged_lanes(const Warp *w, const Ins *i, uint32_t mask, const Targets *t, uint32_t size, uint32_t n)
{
    uint32_t left = mask & (t->shared | t->global);
    for (uint32_t k = 0; k < n && left; k++) {
        int32_t slot = i->s[1 + k];
        left &= ~(w->bad[slot] | (size == 8 ? w->bad[slot + 1] : 0));
        EACH_LANE(left, l)
        {
            const uint8_t *at = t->data[l] + k * size;
            if (memcmp(at, &w->r[slot][l], size < 4 ? size : 4) || (size == 8 && memcmp(at + 4, &w->r[slot + 1][l], 4)) ||
                (t->shadow[l] && is_bad(t->shadow[l] + k * size, size)))
                left &= ~(1u << l);
        }
    }
    return left;
}

/* slots address, src…; imm offset, element bytes, n, flags */
static int store(Warp *w, const Ins *i, uint32_t mask, Space space)
{
    uint32_t size = (uint32_t)i->imm[1], n = (uint32_t)i->imm[2], flags = (uint32_t)i->imm[3], total = size * n;
    Targets t;
    if (!find_targets(w, i, mask, i->s[0], space, total, flags, 1, &t)) return EMU_STOP;
    synchronise(w, &t, mask, flags, 0, 1);
    uint32_t unchanged = w->machine->policy.races ? unchanged_lanes(w, i, mask, &t, size, n) : 0;
    touch_targets(w, i, &t, mask & ~unchanged, total, access_flags(flags, 1));
    touch_targets(w, i, &t, unchanged, total, access_flags(flags, 1) | ACCESS_UNCHANGED);
    EACH_LANE(t.shared, l) check_barrier_overwritten(w, i, l, t.shadow[l], total);
    for (uint32_t k = 0; k < n; k++) {
        int32_t slot = i->s[1 + k];
        uint32_t bad = w->bad[slot] | (size == 8 ? w->bad[slot + 1] : 0);
        EACH_LANE(mask, l)
        {
            uint64_t value = w->r[slot][l];
            if (size == 8) value |= (uint64_t)w->r[slot + 1][l] << 32;
            memcpy(t.data[l] + k * size, &value, size);
            if (t.shadow[l]) memset(t.shadow[l] + k * size, (int)(bad >> l & 1), size);
        }
        if (unlikely(bad & t.global & mask))
            finding(w, i, bad & t.global & mask, NULL, "undefined_value",
                    "the value that is stored depends on memory or registers that were never written");
    }
    EACH_LANE(t.global & mask, l)
        if (t.range[l]->writer) {
            int32_t *writer = t.range[l]->writer + (t.address[l] - t.range[l]->low);
            for (uint32_t b = 0; b < total; b++) writer[b] = 1 + (int32_t)(i - w->program->ins);
        }
    return flags & (MEMORY_RELAXED | MEMORY_RELEASE) ? EMU_YIELD : EMU_NEXT;
}

HANDLER(ld_global) { return load(w, i, mask, SPACE_GLOBAL); }
HANDLER(ld_shared) { return load(w, i, mask, SPACE_SHARED); }
HANDLER(ld_generic) { return load(w, i, mask, SPACE_GENERIC); }
HANDLER(ld_local) { return load(w, i, mask, SPACE_LOCAL); }
HANDLER(ld_param) { return load(w, i, mask, SPACE_PARAM); }
HANDLER(st_global) { return store(w, i, mask, SPACE_GLOBAL); }
HANDLER(st_shared) { return store(w, i, mask, SPACE_SHARED); }
HANDLER(st_generic) { return store(w, i, mask, SPACE_GENERIC); }
HANDLER(st_local) { return store(w, i, mask, SPACE_LOCAL); }

HANDLER(prefetch) { return EMU_NEXT; }

HANDLER(mapa)
{
    uint32_t bad = BAD(1) | BAD(2);
    EACH_LANE(mask, l)
    {
        R(0)[l] = (R(1)[l] & ((1u << SHARED_RANK_SHIFT) - 1)) | R(2)[l] << SHARED_RANK_SHIFT;
        if (i->imm[0] == 64) RHI(0)[l] = 0;
    }
    set_bad(w, i->s[0], mask, bad);
    if (i->imm[0] == 64) set_bad(w, i->s[0] + 1, mask, bad);
    return EMU_NEXT;
}
