/* Queues of asynchronous operations: when they take effect is the policy's choice, within what the rules allow. */
#include "emu.h"
#include <stdlib.h>

static Groups *groups_of(Warp *w, Class class)
{
    Groups *g = &w->groups[class];
    if (!g->pending) {
        g->pending = arena_new(w->machine, GROUP_RING * sizeof(uint32_t));
        g->commits = arena_new(w->machine, GROUP_RING * sizeof(uint32_t));
    }
    return g;
}

static void groups_advance(Machine *m, Groups *g)
{
    uint32_t before = g->oldest;
    while (g->oldest < g->open && !g->pending[g->oldest % GROUP_RING]) g->oldest++;
    if (g->oldest != before) m->event++;
}

uint32_t group_milestone(Warp *w, Class class)
{
    Groups *g = groups_of(w, class);
    uint32_t closed = g->open++;
    if (g->open - g->oldest >= GROUP_RING) g->oldest = g->open - GROUP_RING + 1;
    g->joined = 0;
    groups_advance(w->machine, g);
    return closed;
}

void group_commit(Warp *w, Class class)
{
    Groups *g = groups_of(w, class);
    g->commits[g->committed++ % GROUP_RING] = group_milestone(w, class);
}

static void learn(Warp *w, Class class, uint32_t clock)
{
    if (w->n_pending_slots) pending_clear(w, class, clock - 1);
    if (!w->machine->policy.races) return;
    uint32_t agent = agent_of(w, class);
    if (w->known[agent] < clock) w->known[agent] = clock;
    if (class == CLASS_CP_ASYNC) return; /* generic proxy: what it wrote the async proxy sees after a fence behind this wait */
    if (w->visible[agent] < clock) w->visible[agent] = clock;
}

static int wait_for(Warp *w, Class class, uint32_t target)
{
    Groups *g = groups_of(w, class);
    if (g->oldest > target) {
        learn(w, class, target + 1);
        return EMU_NEXT;
    }
    w->wait = (Wait){.kind = WAIT_GROUP, .value = target, .id = class};
    return EMU_AGAIN;
}

int group_wait(Warp *w, const Ins *i, Class class, uint32_t keep)
{
    (void)i;
    Groups *g = groups_of(w, class);
    if (g->committed <= keep) return EMU_NEXT;
    return wait_for(w, class, g->commits[(g->committed - 1 - keep) % GROUP_RING]);
}

int group_wait_all(Warp *w, const Ins *i, Class class)
{
    (void)i;
    Groups *g = groups_of(w, class);
    if (g->joined) group_milestone(w, class);
    return g->open ? wait_for(w, class, g->open - 1) : EMU_NEXT;
}

/* --------------------------------------------------------------------------------------------------- operations */

static const Class engine_class[N_ENGINES] = {
    [ENGINE_CP_ASYNC] = CLASS_CP_ASYNC,         [ENGINE_WGMMA] = CLASS_WGMMA, [ENGINE_MMA] = CLASS_MMA,
    [ENGINE_TMEM_LOAD] = CLASS_TMEM_LOAD,       [ENGINE_TMEM_STORE] = CLASS_TMEM_STORE,
    [ENGINE_TMA_STORE] = CLASS_BULK_WRITE,
};

static void join_group(AsyncOp *op, Class class, int at_read)
{
    Groups *g = groups_of(op->warp, class);
    g->pending[g->open % GROUP_RING]++;
    g->joined++;
    op->groups[op->n_groups].class = (uint8_t)class;
    op->groups[op->n_groups].at_read = (uint8_t)at_read;
    op->groups[op->n_groups++].group = g->open;
}

AsyncOp *async_new(Warp *w, const Ins *i, uint32_t mask, Engine engine, int class, size_t payload_bytes)
{
    AsyncOp *op = aligned_alloc(64, (sizeof(AsyncOp) + payload_bytes + 63) & ~(size_t)63);
    memset(op, 0, sizeof(AsyncOp) + payload_bytes);
    op->machine = w->machine;
    op->warp = w;
    op->cta = w->cta;
    op->ins = i;
    op->engine = engine;
    op->mask = mask;
    op->after_class = -1;
    op->payload_bytes = payload_bytes;
    int ordered = engine == ENGINE_WGMMA || engine == ENGINE_MMA || engine == ENGINE_TMEM_LOAD || engine == ENGINE_TMEM_STORE;
    if (ordered) op->queue = agent_of(w, engine_class[engine]);
    if (class >= 0) {
        op->agent = op->agent_read = (uint16_t)agent_of(w, (Class)class);
        op->clock = op->clock_read = groups_of(w, (Class)class)->open + 1;
        if (class == CLASS_BULK_WRITE) {
            w->bulk_lanes |= mask;
            op->agent_read = (uint16_t)agent_of(w, CLASS_BULK_READ);
            op->clock_read = groups_of(w, CLASS_BULK_READ)->open + 1;
            w->bulk_source = i;
            w->bulk_source_clock = op->clock_read;
            join_group(op, CLASS_BULK_READ, 1);
        }
        if (class == CLASS_CP_ASYNC) {
            w->copy = i;
            w->copy_clock = op->clock;
        }
        join_group(op, (Class)class, 0);
    }
    return op;
}

void async_join_bulk_read(AsyncOp *op) { join_group(op, CLASS_BULK_READ, 1); }

int async_on_barrier(AsyncOp *op, uint32_t barrier_address, int32_t tx_bytes, uint32_t arrivals)
{
    Barrier *b = barrier_at(op->warp, op->ins, barrier_address);
    if (!b) return 0;
    barrier_check_known(op->warp, op->ins, b, 1);
    if (op->n_signals == MAX_CTAS) return 0;
    if (tx_bytes) b->flying++;
    if (op->after_class < 0) {
        op->agent = op->agent_read = b->agent;
        op->clock = op->clock_read = b->phase + 1;
    }
    op->signals[op->n_signals++] = (Signal){barrier_address, tx_bytes, arrivals, b->agent, b->phase + 1};
    return 1;
}

static Access access_of(AsyncOp *op, int is_write)
{
    uint8_t flags = (uint8_t)(ACCESS_ASYNC | (is_write ? ACCESS_WRITE | (is_write & ACCESS_ATOMIC) : ACCESS_READ));
    if (op->engine == ENGINE_CP_ASYNC) flags &= (uint8_t)~ACCESS_ASYNC; /* cp.async writes through the generic proxy */
    return (Access){op->warp, op->ins, is_write ? op->agent : op->agent_read, is_write ? op->clock : op->clock_read, flags};
}

void async_touch_shared(AsyncOp *op, Cta *cta, uint32_t offset, uint32_t bytes, int is_write)
{
    Access a = access_of(op, is_write);
    touch_shared(&a, cta, offset, bytes);
}

void async_touch_tmem(AsyncOp *op, Cta *cta, uint32_t lane, uint32_t n_lanes, uint32_t column, uint32_t n_columns, int is_write)
{
    Access a = access_of(op, is_write);
    touch_tmem(&a, cta, lane, n_lanes, column, n_columns);
}

void async_touch_global(AsyncOp *op, uint64_t address, uint32_t bytes, int is_write)
{
    Access a = access_of(op, is_write);
    touch_global(&a, address, bytes);
}

void async_pending_slot(AsyncOp *op, int32_t slot)
{
    Warp *w = op->warp;
    if (!w->pending_slots) w->pending_slots = arena_new(w->machine, (size_t)w->program->n_registers * sizeof(uint32_t));
    if (!w->pending_slots[slot]) w->n_pending_slots++;
    w->pending_slots[slot] = (op->groups[0].group + 1) << 4 | op->groups[0].class;
}

void pending_clear(Warp *w, Class class, uint32_t up_to_group)
{
    for (int32_t slot = 0; slot < w->program->n_registers && w->n_pending_slots; slot++) {
        uint32_t pending = w->pending_slots[slot];
        if (pending && (pending & 15) == class && (pending >> 4) - 1 <= up_to_group) {
            w->pending_slots[slot] = 0;
            w->n_pending_slots--;
        }
    }
}

static void tell_groups(AsyncOp *op, int at_read)
{
    for (int k = 0; k < op->n_groups; k++)
        if (op->groups[k].at_read == at_read) {
            Groups *g = &op->warp->groups[op->groups[k].class];
            g->pending[op->groups[k].group % GROUP_RING]--;
            groups_advance(op->machine, g);
        }
}

static void do_read(AsyncOp *op)
{
    if (op->is_read) return;
    if (op->read) op->read(op);
    op->is_read = 1;
    tell_groups(op, 1);
}

static void unlink_op(AsyncOp *op)
{
    Machine *m = op->machine;
    if (op->previous) op->previous->next = op->next;
    else m->first = op->next;
    if (op->next) op->next->previous = op->previous;
    else m->last = op->previous;
    m->n_waiting--;
}

/* An operation may take effect when nothing of its queue, and nothing that it must follow, is still waiting. */
static int eligible(const AsyncOp *op)
{
    if (op->after_class >= 0 && op->warp->groups[op->after_class].oldest <= op->after_group) return 0;
    if (op->queue)
        for (const AsyncOp *o = op->previous; o; o = o->previous)
            if (o->queue == op->queue) return 0;
    return 1;
}

static void land(AsyncOp *op);

static void run_early_arrivals(Machine *m)
{
    for (AsyncOp *op = m->first, *next; op; op = next) {
        next = op->next;
        if (op->engine == ENGINE_ARRIVE && m->policy.delay[ENGINE_ARRIVE] == DELAY_EARLY && eligible(op)) {
            land(op);
            next = m->first;
        }
    }
}

static void land(AsyncOp *op)
{
    Machine *m = op->machine;
    unlink_op(op);
    do_read(op);
    if (op->write) op->write(op);
    tell_groups(op, 0);
    for (int k = 0; k < op->n_signals; k++) barrier_signal(m, op, &op->signals[k]);
    trace(m, TRACE_LAND, op->cta->rank, op->warp->index, op->ins, op->engine, op->issued_at, op->serial);
    m->event++;
    int is_arrival = op->engine == ENGINE_ARRIVE;
    free(op->carried[0]);
    free(op->carried[1]);
    free(op);
    if (!is_arrival && m->first) run_early_arrivals(m);
}

void async_issue(AsyncOp *op)
{
    Machine *m = op->machine;
    op->serial = m->next_serial++;
    op->issued_at = m->now;
    op->previous = m->last;
    if (m->last) m->last->next = op;
    else m->first = op;
    m->last = op;
    m->n_waiting++;
    m->stats.async_ops++;
    trace(m, TRACE_ISSUE, op->cta->rank, op->warp->index, op->ins, op->engine, m->now, op->serial);
    int delay = m->policy.delay[op->engine];
    if (delay == DELAY_EARLY && eligible(op)) land(op);
    else if (op->engine != ENGINE_ARRIVE && op->engine != ENGINE_MMA && op->engine != ENGINE_WGMMA &&
             (m->policy.split_read > 0 || (delay == DELAY_MIXED && m->policy.split_read == 0 && (machine_random(m) & 3) == 0)) &&
             eligible(op))
        do_read(op);
}

static void step(AsyncOp *op)
{
    Machine *m = op->machine;
    if (!op->is_read && op->read && op->n_groups == 2 && m->policy.split_read == 0 && (machine_random(m) & 1)) do_read(op);
    else land(op);
}

int async_step_any(Machine *m)
{
    AsyncOp *chosen = NULL;
    uint32_t seen = 0;
    for (AsyncOp *op = m->first; op; op = op->next) {
        if (!eligible(op)) continue;
        seen++;
        if (m->policy.pick == 0) {
            chosen = op;
            break;
        }
        if (m->policy.pick == 1 || machine_random(m) % seen == 0) chosen = op;
    }
    if (!chosen) return 0;
    step(chosen);
    return 1;
}

void async_step_mixed(Machine *m)
{
    for (AsyncOp *op = m->first; op; op = op->next)
        if (m->policy.delay[op->engine] == DELAY_MIXED && (machine_random(m) & 7) == 0 && eligible(op)) {
            step(op);
            return;
        }
}

void async_finish_class(Warp *w, Class class)
{
    Machine *m = w->machine;
    for (AsyncOp *op = m->first, *next; op; op = next) {
        next = op->next;
        int mine = 0;
        for (int k = 0; k < op->n_groups; k++) mine |= op->groups[k].class == class;
        if (mine && op->warp == w) {
            land(op);
            next = m->first;
        }
    }
    Groups *g = groups_of(w, class);
    if (g->joined) group_milestone(w, class);
    if (g->open) learn(w, class, g->open);
}

int async_arrive_after(Warp *w, const Ins *i, uint32_t mask, Class class, const uint32_t *addresses, int n, uint32_t arrivals)
{
    Machine *m = w->machine;
    AsyncOp *op = async_new(w, i, mask, ENGINE_ARRIVE, -1, 0);
    op->after_class = class;
    op->agent = op->agent_read = (uint16_t)agent_of(w, class);
    op->after_group = group_milestone(w, class);
    op->clock = op->clock_read = op->after_group + 1;
    if (m->policy.races) {
        /* Whoever waits on the arrival is ordered after what the issuer had learnt from others when it issued, but not
         * after the issuer's own generic accesses: those need a release of their own. Arrivals for cp.async are the
         * exception, since known-right kernels store what their copies leave out in front of them. */
        uint32_t self = agent_of(w, CLASS_WARP);
        for (int view = 0; view < 2; view++) {
            op->carried[view] = malloc(m->clock_length * sizeof(uint32_t));
            memcpy(op->carried[view], view ? w->visible : w->known, m->clock_length * sizeof(uint32_t));
        }
        if (class == CLASS_CP_ASYNC) w->released = w->known[self]++;
        else op->carried[0][self] = w->released;
        for (int view = 0; view < (class == CLASS_CP_ASYNC ? 1 : 2); view++) /* cp.async: see learn() */
            if (op->carried[view][op->agent] < op->clock) op->carried[view][op->agent] = op->clock;
    }
    for (int k = 0; k < n; k++)
        if (!async_on_barrier(op, addresses[k], 0, arrivals)) {
            free(op->carried[0]);
            free(op->carried[1]);
            free(op);
            return 0;
        }
    async_issue(op);
    return 1;
}

/* ----------------------------------------------------------------------------------------------------- handlers */

typedef struct { uint32_t bytes; struct { Cta *cta; uint32_t offset, source_bytes; uint64_t source; } lane[LANES]; uint8_t data[LANES][16], bad[LANES][16]; } Copy;

static void cp_async_read(AsyncOp *op)
{
    Copy *copy = (Copy *)op->payload;
    EACH_LANE(op->mask, l)
    {
        memset(copy->data[l], 0, 16);
        memset(copy->bad[l], 0, 16);
        uint32_t n = copy->lane[l].source_bytes;
        if (!n) continue;
        Range *range = global_at(op->warp, op->ins, copy->lane[l].source, n, 1, 0);
        if (!range) continue;
        memcpy(copy->data[l], (const void *)copy->lane[l].source, n);
        if (range->shadow) memcpy(copy->bad[l], range->shadow + (copy->lane[l].source - range->low), n);
    }
}

static void cp_async_write(AsyncOp *op)
{
    Copy *copy = (Copy *)op->payload;
    EACH_LANE(op->mask, l)
    {
        memcpy(copy->lane[l].cta->smem + copy->lane[l].offset, copy->data[l], copy->bytes);
        memcpy(copy->lane[l].cta->shadow + copy->lane[l].offset, copy->bad[l], copy->bytes);
    }
}

/* True when a lower lane copies the same bytes to the same place: whichever of them lands last, the result is the same. */
static int is_repeated(const Copy *copy, uint32_t mask, uint32_t lane)
{
    EACH_LANE(mask & ((1u << lane) - 1), l)
        if (copy->lane[l].cta == copy->lane[lane].cta && copy->lane[l].offset == copy->lane[lane].offset &&
            copy->lane[l].source == copy->lane[lane].source && copy->lane[l].source_bytes == copy->lane[lane].source_bytes)
            return 1;
    return 0;
}

HANDLER(cp_async)
{
    uint32_t bytes = (uint32_t)i->imm[0];
    uint32_t bad = (BAD(0) | BAD(1) | BADHI(1) | (i->s[2] >= 0 ? BAD(2) : 0)) & mask;
    if (bad) return stop(w, i, bad, "undefined_value", "an address or size of cp.async was never written");
    AsyncOp *op = async_new(w, i, mask, ENGINE_CP_ASYNC, CLASS_CP_ASYNC, sizeof(Copy));
    Copy *copy = (Copy *)op->payload;
    copy->bytes = bytes;
    EACH_LANE(mask, l)
    {
        uint32_t n = i->s[2] >= 0 ? R(2)[l] : bytes;
        if (i->n_slots > 3 && i->s[3] >= 0 && (P(3) >> l & 1)) n = 0; /* ignore-src */
        if (n > bytes) n = bytes;
        uint64_t source = get64(w, i->s[1], l) + (int64_t)i->imm[2];
        copy->lane[l].cta = shared_at(w, i, R(0)[l] + (uint32_t)i->imm[1], bytes, bytes, &copy->lane[l].offset);
        if (!copy->lane[l].cta) {
            op->mask &= ~(1u << l);
            continue;
        }
        copy->lane[l].source = source;
        if (n && !global_at(w, i, source, n, bytes, 0)) n = 0;
        copy->lane[l].source_bytes = n;
        if (is_repeated(copy, mask, l)) continue;
        async_touch_shared(op, copy->lane[l].cta, copy->lane[l].offset, bytes, 1);
        if (n) async_touch_global(op, source, n, 0);
    }
    op->read = cp_async_read;
    op->write = cp_async_write;
    async_issue(op);
    return EMU_NEXT;
}

HANDLER(cp_async_commit) { group_commit(w, CLASS_CP_ASYNC); return EMU_NEXT; }

HANDLER(cp_async_wait)
{
    if (i->imm[0] < 0) return group_wait_all(w, i, CLASS_CP_ASYNC);
    return group_wait(w, i, CLASS_CP_ASYNC, (uint32_t)i->imm[0]);
}

HANDLER(cp_async_mbarrier_arrive)
{
    uint32_t bad = BAD(0) & mask;
    if (bad) return stop(w, i, bad, "undefined_value", "the mbarrier address was never written");
    EACH_LANE(mask, l)
    {
        uint32_t address = R(0)[l] + (uint32_t)i->imm[0];
        if (!i->imm[1]) { /* without .noinc the arrival is counted in first */
            Barrier *b = barrier_at(w, i, address);
            if (b) b->pending++;
        }
        /* the lanes of a warp share a group, so lanes with the same barrier arrive together */
        uint32_t same = 0;
        EACH_LANE(mask, k) same |= (uint32_t)(R(0)[k] == R(0)[l]) << k;
        if (first_lane(same) != l) continue;
        if (!async_arrive_after(w, i, same, CLASS_CP_ASYNC, &address, 1, (uint32_t)__builtin_popcount(same))) return EMU_NEXT;
    }
    return EMU_YIELD;
}

/* Bulk groups belong to threads: lanes that issued nothing neither close nor await the groups of those that did. */
HANDLER(bulk_commit)
{
    if (w->bulk_lanes && !(w->bulk_lanes & mask)) return EMU_NEXT;
    group_commit(w, CLASS_BULK_READ);
    group_commit(w, CLASS_BULK_WRITE);
    return EMU_NEXT;
}

HANDLER(bulk_wait)
{
    if (w->bulk_lanes & ~mask) return EMU_NEXT;
    int status = group_wait(w, i, CLASS_BULK_READ, (uint32_t)i->imm[0]);
    if (status != EMU_NEXT || i->imm[1]) return status;
    return group_wait(w, i, CLASS_BULK_WRITE, (uint32_t)i->imm[0]);
}
