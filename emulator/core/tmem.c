/* Allocation of tensor memory: tcgen05.alloc, dealloc and relinquish_alloc_permit, and who may touch which column.
 *
 * With cta_group::2 a warp of each CTA of the pair takes part. The first one waits until the other has come, for a
 * deallocation too: the ISA lets it block, so a kernel that hangs when it does is wrong. */
#include "tmem.h"

static TmemState *state_of(Cta *cta)
{
    Machine *m = cta->machine;
    if (!cta->tmem_state) {
        cta->tmem_state = arena_new(m, sizeof(TmemState));
        for (int view = 0; view < 2 && m->policy.races; view++) cta->tmem_state->freed[view] = clock_new(m);
    }
    return cta->tmem_state;
}

static void forget(Cta *cta, uint32_t first, uint32_t columns) /* contents: unset, and a NaN for whoever looks */
{
    memset(cta->tmem[first], 0xff, columns * sizeof *cta->tmem);
    memset(cta->tmem_bad[first], 0xff, columns * sizeof *cta->tmem_bad);
}

static void make_memory(Cta *cta)
{
    if (cta->tmem) return;
    Machine *m = cta->machine;
    cta->tmem = arena_new(m, TMEM_COLUMNS * sizeof *cta->tmem);
    cta->tmem_bad = arena_new(m, TMEM_COLUMNS * sizeof *cta->tmem_bad);
    forget(cta, 0, TMEM_COLUMNS);
    if (m->policy.races) cta->tmem_granules = arena_new(m, TMEM_COLUMNS * 4 * sizeof(Granule));
}

Cta *tcgen05_peer(Warp *w, const Ins *i)
{
    Machine *m = w->machine;
    int rank = w->cta->rank ^ 1;
    if (rank >= m->n_ctas) {
        finding(w, i, 0, NULL, "cta_group", "cta_group::2 in CTA %d of a cluster of %d: there is no peer CTA", w->cta->rank,
                m->n_ctas);
        return NULL;
    }
    if (!m->ctas[rank].live_warps) {
        finding(w, i, 0, NULL, "cta_group", "cta_group::2: the peer CTA %d has already exited", rank);
        return NULL;
    }
    return &m->ctas[rank];
}

void tcgen05_group(Warp *w, const Ins *i, int32_t group)
{
    TmemState *s = state_of(w->cta);
    uint8_t before = s->groups;
    s->groups |= (uint8_t)(1 << group);
    if (before && before != s->groups && before != 6)
        finding(w, i, 0, NULL, "cta_group", "cta_group::%d here, cta_group::%d before: a kernel's tcgen05 must all have the same",
                group, 3 - group);
}

void tcgen05_single(Warp *w, const Ins *i, uint32_t mask, const char *what)
{
    if (mask & (mask - 1))
        finding(w, i, mask, NULL, "not_elected", "%d lanes execute %s, and each of them issues it whole: elect one lane",
                __builtin_popcount(mask), what);
}

int tmem_check(Warp *w, const Ins *i, Cta *cta, uint32_t first, uint32_t n)
{
    if (first + n > TMEM_COLUMNS)
        return stop(w, i, 0, "tmem_access", "columns %u to %u: tensor memory has %d", first, first + n - 1, TMEM_COLUMNS), 0;
    for (uint32_t c = first; c < first + n; c++) {
        if (cta->tmem_owner[c]) continue;
        finding(w, i, 0, NULL, "tmem_access", "columns %u to %u of tensor memory: column %u is not allocated in CTA %d", first,
                first + n - 1, c, cta->rank);
        if (!cta->tmem) w->machine->stopped = 1;
        break;
    }
    return cta->tmem != NULL;
}

/* -------------------------------------------------------------------------------------------------- allocations */

/* First of `columns` neighbours that are free in both CTAs, at a multiple of their number as in a buddy system, or -1.
 * Odd seeds take the highest place: nobody may rely on column 0. */
static int free_columns(const Cta *cta, const Cta *peer, uint32_t columns)
{
    int places = (int)(TMEM_COLUMNS / columns);
    for (int n = 0; n < places; n++) {
        uint32_t first = (uint32_t)(cta->machine->policy.seed & 1 ? places - 1 - n : n) * columns, c = first;
        while (c < first + columns && !cta->tmem_owner[c] && !peer->tmem_owner[c]) c++;
        if (c == first + columns) return (int)first;
    }
    return -1;
}

static void take(Warp *w, const Ins *i, uint32_t first, uint32_t columns)
{
    Cta *cta = w->cta;
    TmemState *s = state_of(cta);
    make_memory(cta);
    int n = 0;
    while (s->allocations[n].columns) n++;
    s->allocations[n] = (TmemAllocation){(uint16_t)first, (uint16_t)columns, w->index, i};
    for (uint32_t c = first; c < first + columns; c++) cta->tmem_owner[c] = (uint16_t)(n + 1);
    forget(cta, first, columns);
    if (s->last_columns && columns > s->last_columns)
        finding(w, i, 0, NULL, "tmem_allocation", "%u columns are allocated after an allocation of %u: sizes must not grow",
                columns, s->last_columns);
    s->last_columns = columns;
    cta->tmem_used = 1;
    if (s->freed[0]) clock_acquire(w, s->freed);
}

int tmem_allocate(Warp *w, const Ins *i, Cta *cta, uint32_t columns)
{
    int first = free_columns(cta, cta, columns);
    if (first >= 0) take(w, i, (uint32_t)first, columns);
    return first;
}

static int find_allocation(Warp *w, const Ins *i, Cta *cta, uint32_t first, uint32_t columns)
{
    TmemState *s = state_of(cta);
    uint32_t owner = first < TMEM_COLUMNS ? cta->tmem_owner[first] : 0;
    if (!owner) {
        finding(w, i, 0, NULL, "tmem_allocation", "column %u is deallocated, but it is not allocated: freed before, or never had",
                first);
        return -1;
    }
    const TmemAllocation *a = &s->allocations[owner - 1];
    if (a->first == first && a->columns == columns) return (int)owner - 1;
    finding(w, i, 0, a->ins, "tmem_allocation", "columns %u to %u are deallocated, but the allocation there is columns %u to %u",
            first, first + columns - 1, a->first, a->first + a->columns - 1u);
    return -1;
}

int tmem_free(Warp *w, const Ins *i, Cta *cta, uint32_t first, uint32_t columns)
{
    int n = find_allocation(w, i, cta, first, columns);
    if (n < 0) return 0;
    /* whoever still reads or writes the columns races with their deallocation */
    Access a = access_of_warp(w, i, ACCESS_WRITE | ACCESS_ASYNC);
    touch_tmem(&a, cta, 0, TMEM_LANES, first, columns);
    TmemState *s = state_of(cta);
    s->allocations[n].columns = 0;
    memset(&cta->tmem_owner[first], 0, columns * sizeof cta->tmem_owner[0]);
    forget(cta, first, columns);
    if (s->freed[0]) clock_release(w, s->freed);
    cta->machine->event++;
    return 1;
}

void tmem_exit_check(Cta *cta)
{
    for (int n = 0; cta->tmem_state && n < TMEM_MAX_ALLOCATIONS; n++) {
        const TmemAllocation *a = &cta->tmem_state->allocations[n];
        if (a->columns)
            finding(&cta->warps[a->warp], a->ins, 0, NULL, "tmem_allocation",
                    "columns %u to %u of tensor memory are never deallocated: the CTA exits with them", a->first,
                    a->first + a->columns - 1u);
    }
}

/* ----------------------------------------------------------------------------------------------- pairs of CTAs */

static int wait_here(Warp *w, const Ins *i, MeetingKind kind, uint32_t columns, uint32_t column)
{
    Meeting *own = &state_of(w->cta)->meeting;
    if (own->kind == MEETING_NONE) *own = (Meeting){kind, w->index, i, columns, column, 0};
    w->wait = (Wait){.kind = WAIT_TMEM, .value = columns, .id = (uint32_t)kind};
    return -1;
}

/* The warp's own meeting when the peer has settled it meanwhile, else NULL. */
static Meeting *settled(Warp *w, const Ins *i)
{
    Meeting *own = &state_of(w->cta)->meeting;
    return own->done && own->warp == w->index && own->ins == i ? own : NULL;
}

/* First column, -1 (wait) or -2 (stop). */
static int allocate_pair(Warp *w, const Ins *i, uint32_t columns)
{
    Meeting *own = settled(w, i);
    if (own) {
        int column = (int)own->column;
        own->kind = MEETING_NONE, own->done = 0;
        return column;
    }
    Cta *peer = tcgen05_peer(w, i);
    if (!peer) return -2;
    Meeting *other = &state_of(peer)->meeting;
    if (other->kind != MEETING_ALLOC || other->done) return wait_here(w, i, MEETING_ALLOC, columns, 0);
    if (other->columns != columns) {
        finding(w, i, 0, other->ins, "tmem_allocation", "CTA %d asks for %u columns, its peer CTA %d for %u", w->cta->rank,
                columns, peer->rank, other->columns);
        return -2;
    }
    int first = free_columns(w->cta, peer, columns);
    if (first < 0) return wait_here(w, i, MEETING_ALLOC, columns, 0);
    take(w, i, (uint32_t)first, columns);
    take(&peer->warps[other->warp], other->ins, (uint32_t)first, columns);
    other->done = 1;
    other->column = (uint32_t)first;
    Meeting *mine = &state_of(w->cta)->meeting;
    if (mine->warp == w->index && mine->ins == i && !mine->done) mine->kind = MEETING_NONE;
    w->machine->event++;
    return first;
}

/* 1 when the peer's warp has come too, -1 (wait) or -2 (stop). */
static int deallocate_pair(Warp *w, const Ins *i, uint32_t first, uint32_t columns)
{
    Meeting *own = settled(w, i);
    if (own) {
        own->kind = MEETING_NONE, own->done = 0;
        return 1;
    }
    Cta *peer = tcgen05_peer(w, i);
    if (!peer) return -2;
    Meeting *other = &state_of(peer)->meeting;
    if (other->kind != MEETING_DEALLOC || other->done) return wait_here(w, i, MEETING_DEALLOC, columns, first);
    if (other->columns != columns || other->column != first) {
        finding(w, i, 0, other->ins, "tmem_allocation", "CTA %d deallocates columns %u to %u, its peer CTA %d columns %u to %u",
                w->cta->rank, first, first + columns - 1, peer->rank, other->column, other->column + other->columns - 1);
        return -2;
    }
    other->done = 1;
    w->machine->event++;
    return 1;
}

/* ----------------------------------------------------------------------------------------------------- handlers */

/* The operand is the same in every lane; false after a finding that ends the run. */
static int is_uniform(Warp *w, const Ins *i, uint32_t mask, int operand, const char *name)
{
    uint32_t bad = BAD(operand) & mask, differing = 0;
    if (bad) return stop(w, i, bad, "undefined_value", "%s was never written", name), 0;
    EACH_LANE(mask, l) differing |= (uint32_t)(R(operand)[l] != R(operand)[first_lane(mask)]) << l;
    if (differing) return stop(w, i, differing, "tmem_allocation", "%s is not the same in all lanes of the warp", name), 0;
    return 1;
}

static int is_column_count(Warp *w, const Ins *i, uint32_t columns)
{
    if (columns >= 32 && columns <= TMEM_COLUMNS && !(columns & (columns - 1))) return 1;
    stop(w, i, 0, "tmem_allocation", "%u columns: the number must be a power of two from 32 to %d", columns, TMEM_COLUMNS);
    return 0;
}

HANDLER(tcgen05_alloc)
{
    if (!is_uniform(w, i, mask, 0, "the shared address for the result")) return EMU_STOP;
    if (!is_uniform(w, i, mask, 1, "the number of columns")) return EMU_STOP;
    uint32_t l = first_lane(mask), columns = R(1)[l], offset;
    Cta *cta = w->cta;
    tcgen05_group(w, i, i->imm[0]);
    if (!is_column_count(w, i, columns)) return EMU_STOP;
    if (cta->tmem_relinquished && w->resume.kind == WAIT_NONE)
        finding(w, i, 0, NULL, "tmem_allocation", "tcgen05.alloc after the CTA has executed tcgen05.relinquish_alloc_permit");
    Cta *target = shared_at(w, i, R(0)[l] + (uint32_t)i->imm[1], 4, 4, &offset);
    if (!target) return EMU_STOP;
    if (target != cta) return stop(w, i, mask, "tmem_allocation", "tcgen05.alloc writes to the shared memory of another CTA");
    int first = i->imm[0] == 2 ? allocate_pair(w, i, columns) : tmem_allocate(w, i, cta, columns);
    if (first == -2) return w->machine->stopped = 1, EMU_STOP;
    if (first < 0) {
        w->wait = (Wait){.kind = WAIT_TMEM, .value = columns, .id = i->imm[0] == 2 ? MEETING_ALLOC : MEETING_NONE};
        return EMU_AGAIN;
    }
    uint32_t address = (uint32_t)first;
    Access a = access_of_warp(w, i, ACCESS_WRITE);
    touch_shared(&a, cta, offset, 4);
    memcpy(cta->smem + offset, &address, 4);
    memset(cta->shadow + offset, SHADOW_DEFINED, 4);
    return EMU_YIELD;
}

HANDLER(tcgen05_dealloc)
{
    if (!is_uniform(w, i, mask, 0, "the tensor memory address")) return EMU_STOP;
    if (!is_uniform(w, i, mask, 1, "the number of columns")) return EMU_STOP;
    uint32_t l = first_lane(mask), columns = R(1)[l];
    TmemAddress at = tmem_address(R(0)[l]);
    tcgen05_group(w, i, i->imm[0]);
    if (!is_column_count(w, i, columns)) return EMU_STOP;
    if (at.lane) finding(w, i, 0, NULL, "tmem_allocation", "the address of a deallocation names lane %u, not 0", at.lane);
    if (i->imm[0] == 2) {
        int status = deallocate_pair(w, i, at.column, columns);
        if (status == -2) return w->machine->stopped = 1, EMU_STOP;
        if (status == -1) return EMU_AGAIN;
    }
    tmem_free(w, i, w->cta, at.column, columns);
    return EMU_YIELD;
}

HANDLER(tcgen05_relinquish)
{
    tcgen05_group(w, i, i->imm[0]);
    w->cta->tmem_relinquished = 1;
    return EMU_NEXT;
}
