/* mbarriers: phases, arrivals, transaction bytes, and what those who wait learn. */
#include "emu.h"

static Barrier **place_of(Warp *w, const Ins *i, uint64_t address, Cta **cta)
{
    uint32_t offset;
    *cta = shared_at(w, i, address, 8, 8, &offset);
    return *cta ? &(*cta)->barriers[offset / 8] : NULL;
}

Barrier *barrier_at(Warp *w, const Ins *i, uint64_t address)
{
    Cta *cta;
    Barrier **place = place_of(w, i, address, &cta);
    if (!place) return NULL;
    if (*place && (*place)->live) return *place;
    stop(w, i, 0, "barrier", "there is no mbarrier at shared address 0x%llx of CTA %d%s", (unsigned long long)address, cta->rank,
         *place ? ": it was invalidated" : ": none was initialised");
    return NULL;
}

/* Whoever uses a barrier must be ordered after its initialisation. */
void barrier_check_known(Warp *w, const Ins *i, Barrier *b, int is_async)
{
    if (!w->machine->policy.races) return;
    if (w->known[b->init_agent] < b->init_clock)
        finding(w, i, 0, b->init_ins, "race", "the mbarrier at shared address 0x%x is used without being ordered after its initialisation",
                shared_address(b->cta, b->offset));
    else if (is_async && !b->init_fenced)
        finding(w, i, 0, b->init_ins, "missing_proxy_fence",
                "the mbarrier at shared address 0x%x is signalled asynchronously; no fence follows its initialisation",
                shared_address(b->cta, b->offset));
}

void barriers_fenced(Warp *w)
{
    for (int32_t k = 0; k < w->n_initialised; k++) w->initialised[k]->init_fenced = 1;
    w->n_initialised = 0;
}

static void complete(Machine *m, Barrier *b, const Ins *i)
{
    if (b->flying)
        machine_finding_at(m, b->cta, i, b->init_ins, "transaction_bytes",
                           "phase %u of the mbarrier at shared address 0x%x completes while %u copies that signal it are in flight: too few bytes are expected",
                           b->phase, shared_address(b->cta, b->offset), b->flying);
    trace(m, TRACE_PHASE, b->cta->rank, -1, i, (int)b->offset, m->now, b->phase);
    b->flying = 0;
    b->phase++;
    b->pending = b->count;
    m->stats.barrier_phases++;
    m->event++;
    if (!m->policy.races) return;
    for (int view = 0; view < 2; view++) {
        memcpy(b->passed[view], b->arriving[view], m->clock_length * sizeof(uint32_t));
        memset(b->arriving[view], 0, m->clock_length * sizeof(uint32_t));
    }
    /* Not in the async view: of the operations that complete here only st.async writes through the generic proxy, and a
     * fence behind the wait is what its bytes need. The others belong to the async proxy itself. */
    b->passed[0][b->agent] = b->phase;
}

static void complete_if_done(Machine *m, Barrier *b, const Ins *i)
{
    if (b->pending == 0 && b->tx == 0) complete(m, b, i);
}

void barrier_arrive(Warp *w, const Ins *i, Barrier *b, uint32_t count, int is_release)
{
    Machine *m = w->machine;
    if ((int32_t)count > b->pending) {
        stop(w, i, 0, "barrier", "%u arrivals at the mbarrier at shared address 0x%x, of which phase %u expects only %d more (of %d)", count,
             shared_address(b->cta, b->offset), b->phase, b->pending, b->count);
        return;
    }
    if (is_release) clock_release(w, b->arriving);
    else clock_release_fenced(w, b->arriving);
    trace(m, TRACE_ARRIVE, w->cta->rank, w->index, i, (int)b->offset, m->now, b->phase);
    b->last_arrival = i;
    b->pending -= (int32_t)count;
    complete_if_done(m, b, i);
}

void barrier_expect(Warp *w, const Ins *i, Barrier *b, int64_t bytes)
{
    b->tx += bytes;
    if (b->tx > (1 << 20) - 1 || b->tx < -((1 << 20) - 1))
        finding(w, i, 0, b->init_ins, "transaction_bytes", "the mbarrier at shared address 0x%x would await %lld bytes; its counter holds 2^20 - 1",
                shared_address(b->cta, b->offset), (long long)b->tx);
}

/* An asynchronous operation has landed. */
void barrier_signal(Machine *m, const AsyncOp *op, const Signal *signal)
{
    Cta *cta = &m->ctas[signal->address >> SHARED_RANK_SHIFT];
    uint32_t offset = (signal->address & ((1u << SHARED_RANK_SHIFT) - 1)) - SHARED_BASE;
    Barrier *b = cta->barriers[offset / 8];
    if (!b || !b->live) {
        machine_finding(m, op, "barrier", "the mbarrier at shared address 0x%x was invalidated while an operation that signals it was in flight",
                        signal->address);
        return;
    }
    if (signal->tx_bytes && signal->clock == b->phase + 1 && b->flying) b->flying--;
    b->tx -= signal->tx_bytes;
    if (signal->arrivals) {
        if ((int32_t)signal->arrivals > b->pending) {
            machine_finding(m, op, "barrier", "one arrival too many at the mbarrier at shared address 0x%x in phase %u", signal->address, b->phase);
            m->stopped = 1;
            return;
        }
        b->pending -= (int32_t)signal->arrivals;
        b->last_arrival = op->ins;
        for (int view = 0; view < 2 && op->carried[view]; view++) clock_join(m, b->arriving[view], op->carried[view]);
    }
    complete_if_done(m, b, op->ins);
}

/* ------------------------------------------------------------------------------------------------------- handlers */

#define ADDRESS(n, l) (R(n)[l] + (uint32_t)i->imm[0])

HANDLER(mbarrier_init)
{
    Machine *m = w->machine;
    if ((BAD(0) | BAD(1)) & mask) return stop(w, i, (BAD(0) | BAD(1)) & mask, "undefined_value", "address or count of an mbarrier was never written");
    EACH_LANE(mask, l)
    {
        Cta *cta;
        Barrier **place = place_of(w, i, ADDRESS(0, l), &cta), *b;
        uint32_t count = R(1)[l];
        if (!place) return EMU_STOP;
        if (!count || count >= 1u << 20) return stop(w, i, 1u << l, "barrier", "an mbarrier for %u arrivals: 1 to 2^20 - 1 are possible", count);
        if (!*place) {
            b = *place = arena_new(m, sizeof(Barrier));
            b->agent = (uint16_t)agent_new(m);
            b->cta = cta;
            for (int view = 0; view < 2 && m->policy.races; view++) {
                b->arriving[view] = clock_new(m);
                b->passed[view] = clock_new(m);
            }
        }
        b = *place;
        uint32_t offset = b->offset = (uint32_t)(place - cta->barriers) * 8;
        if (b->live && (b->pending != b->count || b->tx || b->phase))
            finding(w, i, 1u << l, b->init_ins, "barrier", "the mbarrier at shared address 0x%x is initialised again without mbarrier.inval",
                    shared_address(cta, offset));
        m->agents[b->agent].barrier = shared_address(cta, offset);
        Access a = access_of_warp(w, i, ACCESS_WRITE);
        touch_shared(&a, cta, offset, 8);
        b->live = 1;
        b->phase = (b->phase + 1) & ~1u; /* clocks go on where a barrier is made anew */
        b->count = b->pending = (int32_t)count;
        b->tx = 0;
        b->flying = 0;
        b->init_agent = (uint16_t)agent_of(w, CLASS_WARP);
        b->init_clock = a.clock;
        b->init_fenced = 0;
        b->init_ins = i;
        b->last_arrival = NULL;
        memset(cta->shadow + offset, SHADOW_BARRIER, 8);
        if (!w->initialised) w->initialised = arena_new(m, 512 * sizeof(Barrier *));
        if (w->n_initialised < 512) w->initialised[w->n_initialised++] = b;
    }
    return EMU_NEXT;
}

HANDLER(mbarrier_inval)
{
    if (BAD(0) & mask) return stop(w, i, BAD(0) & mask, "undefined_value", "the address of an mbarrier was never written");
    EACH_LANE(mask, l)
    {
        Barrier *b = barrier_at(w, i, ADDRESS(0, l));
        if (!b) return EMU_STOP;
        barrier_check_known(w, i, b, 0);
        Access a = access_of_warp(w, i, ACCESS_WRITE);
        touch_shared(&a, b->cta, b->offset, 8);
        b->live = 0;
        memset(b->cta->shadow + b->offset, SHADOW_BAD, 8);
    }
    return EMU_NEXT;
}

static void put_state(Warp *w, const Ins *i, uint32_t lane, uint32_t phase)
{
    if (i->s[0] < 0) return;
    set64(w, i->s[0], lane, phase);
    set_bad(w, i->s[0], 1u << lane, 0);
    set_bad(w, i->s[0] + 1, 1u << lane, 0);
}

static int arrive_lanes(Warp *w, const Ins *i, uint32_t mask, int expects)
{
    uint32_t bad = (BAD(1) | (i->s[2] >= 0 ? BAD(2) : 0)) & mask;
    if (bad) return stop(w, i, bad, "undefined_value", "address, count or bytes of an mbarrier arrival were never written");
    EACH_LANE(mask, l)
    {
        Barrier *b = barrier_at(w, i, ADDRESS(1, l));
        if (!b) return EMU_STOP;
        barrier_check_known(w, i, b, 0);
        put_state(w, i, l, b->phase);
        if (expects) barrier_expect(w, i, b, (int32_t)R(2)[l]);
        barrier_arrive(w, i, b, !expects && i->s[2] >= 0 ? R(2)[l] : 1, i->imm[1] & MEMORY_RELEASE);
        if (w->machine->stopped) return EMU_STOP;
    }
    return EMU_YIELD;
}

HANDLER(mbarrier_arrive) { return arrive_lanes(w, i, mask, 0); }
HANDLER(mbarrier_arrive_expect_tx) { return arrive_lanes(w, i, mask, 1); }

static int change_bytes(Warp *w, const Ins *i, uint32_t mask, int sign)
{
    if ((BAD(0) | BAD(1)) & mask) return stop(w, i, mask, "undefined_value", "address or bytes of an mbarrier operation were never written");
    EACH_LANE(mask, l)
    {
        Barrier *b = barrier_at(w, i, ADDRESS(0, l));
        if (!b) return EMU_STOP;
        barrier_check_known(w, i, b, 0);
        barrier_expect(w, i, b, sign * (int64_t)(int32_t)R(1)[l]);
        complete_if_done(w->machine, b, i);
    }
    return EMU_YIELD;
}

HANDLER(mbarrier_expect_tx) { return change_bytes(w, i, mask, 1); }
HANDLER(mbarrier_complete_tx) { return change_bytes(w, i, mask, -1); }

/* Lanes whose phase is complete see true. A warp that asks again for the same and would see false blocks instead. */
static int test(Warp *w, const Ins *i, uint32_t mask, int by_state)
{
    Machine *m = w->machine;
    uint32_t done = 0, bad = (BAD(1) | BAD(2)) & mask;
    if (bad) return stop(w, i, bad, "undefined_value", "address or phase of an mbarrier wait were never written");
    Barrier *b = NULL, *learnt = NULL;
    uint32_t parity = 0;
    EACH_LANE(mask, l)
    {
        b = barrier_at(w, i, ADDRESS(1, l));
        if (!b) return EMU_STOP;
        barrier_check_known(w, i, b, 0);
        parity = R(2)[l] & 1;
        if (!by_state && R(2)[l] > 1) return stop(w, i, 1u << l, "barrier", "parity %u: 0 or 1 is needed", R(2)[l]);
        if ((b->phase & 1) == parity) continue;
        done |= 1u << l;
        if (b != learnt && m->policy.races && !(i->imm[1] & MEMORY_RELAXED)) clock_acquire(w, b->passed);
        learnt = b;
    }
    if (done && m->policy.spurious && w->resume.kind != WAIT_BARRIER && machine_random(m) % 8 == 0) done = 0;
    else if (!done) {
        Path *path = &w->paths[w->current];
        uint32_t address = shared_address(b->cta, b->offset);
        if ((path->failed_pc == path->pc && path->failed_address == address && path->failed_parity == parity) ||
            w->resume.kind == WAIT_BARRIER) {
            w->wait = (Wait){.kind = WAIT_BARRIER, .barrier = b, .value = parity};
            return EMU_AGAIN;
        }
        path->failed_pc = path->pc;
        path->failed_address = address;
        path->failed_parity = parity;
    }
    set_pred(w, i->s[0], mask, done, 0);
    return EMU_YIELD;
}

HANDLER(mbarrier_test_parity) { return test(w, i, mask, 0); }
HANDLER(mbarrier_test_state) { return test(w, i, mask, 1); }
