/* Named barriers, the cluster barrier, and fences. */
#include "emu.h"

static void reset_clocks(const Machine *m, Clock arriving[2], Clock passed[2])
{
    if (!m->policy.races) return;
    for (int view = 0; view < 2; view++) {
        memcpy(passed[view], arriving[view], m->clock_length * sizeof(uint32_t));
        memset(arriving[view], 0, m->clock_length * sizeof(uint32_t));
    }
}

/* ------------------------------------------------------------------------------------------------- named barriers */

static uint32_t cta_threads(const Cta *cta) { return (uint32_t)cta->n_warps * LANES; }

static void complete(Machine *m, NamedBarrier *b)
{
    b->generation++;
    b->arrived = b->expected = 0;
    memcpy(b->red_done, b->red, sizeof b->red);
    memset(b->red, 0, sizeof b->red);
    reset_clocks(m, b->arriving, b->passed);
    m->event++;
}

static uint32_t exited_threads(const Cta *cta, const NamedBarrier *b)
{
    uint32_t exited = 0;
    if (!b->whole_cta) return 0;
    for (int k = 0; k < cta->n_warps; k++) exited += cta->warps[k].done ? LANES : 0;
    return exited;
}

/* An arrival of the warp's lanes. NULL after a finding that ends the run. */
static NamedBarrier *arrive(Warp *w, const Ins *i, uint32_t mask, int32_t id_slot, int32_t threads_slot, uint32_t *id)
{
    Cta *cta = w->cta;
    uint32_t l = first_lane(mask), bad = w->bad[id_slot] | (threads_slot >= 0 ? w->bad[threads_slot] : 0);
    if (bad & mask) {
        stop(w, i, bad & mask, "undefined_value", "the number or the count of a named barrier was never written");
        return NULL;
    }
    *id = w->r[id_slot][l];
    uint32_t threads = threads_slot >= 0 ? w->r[threads_slot][l] : cta_threads(cta);
    if (*id > 15 || threads % LANES || !threads || threads > cta_threads(cta)) {
        stop(w, i, mask, "barrier", "named barrier %u for %u threads: 0 to 15, and a multiple of 32 up to %u, are possible", *id,
             threads, cta_threads(cta));
        return NULL;
    }
    NamedBarrier *b = &cta->named[*id];
    if (!b->expected) {
        b->expected = threads;
        b->whole_cta = threads_slot < 0;
        b->first_ins = i;
        b->first_warp = w->index;
    } else if (b->expected != threads) {
        finding(w, i, mask, b->first_ins, "barrier",
                "the participants of named barrier %u disagree: %u threads here, %u where warp %d arrived first", *id, threads,
                b->expected, b->first_warp);
        b->expected = b->expected > threads ? threads : b->expected;
    }
    b->arrived += mask == w->live ? LANES : (uint32_t)__builtin_popcount(mask);
    clock_release(w, b->arriving);
    return b;
}

static void complete_if_all(Cta *cta, NamedBarrier *b)
{
    if (b->expected && b->arrived + exited_threads(cta, b) >= b->expected) complete(cta->machine, b);
}

static int pass(Warp *w, uint32_t id)
{
    clock_acquire(w, w->cta->named[id].passed);
    return EMU_YIELD;
}

static int arrive_and_wait(Warp *w, const Ins *i, uint32_t mask, int32_t id_slot, int32_t threads_slot, int reduce)
{
    uint32_t id;
    NamedBarrier *b = arrive(w, i, mask, id_slot, threads_slot, &id);
    if (!b) return EMU_STOP;
    if (reduce) {
        uint32_t yes = (i->imm[1] ? ~P(3) : P(3)) & mask;
        uint32_t first = b->arrived <= LANES;
        b->red[0] += (uint32_t)__builtin_popcount(yes);
        b->red[1] = (first ? 1 : b->red[1]) & (yes == mask);
        b->red[2] |= yes != 0;
    }
    w->wait = (Wait){.kind = WAIT_NAMED, .value = b->generation, .id = id};
    complete_if_all(w->cta, b);
    return EMU_AGAIN;
}

HANDLER(bar_sync)
{
    if (w->resume.kind == WAIT_NAMED) return pass(w, w->resume.id);
    return arrive_and_wait(w, i, mask, i->s[0], i->s[1], 0);
}

HANDLER(bar_arrive)
{
    uint32_t id;
    NamedBarrier *b = arrive(w, i, mask, i->s[0], i->s[1], &id);
    if (!b) return EMU_STOP;
    complete_if_all(w->cta, b);
    return EMU_YIELD;
}

HANDLER(bar_red)
{
    if (w->resume.kind != WAIT_NAMED) {
        if (PBAD(3) & mask) return stop(w, i, PBAD(3) & mask, "undefined_value", "the predicate of bar.red was never written");
        return arrive_and_wait(w, i, mask, i->s[1], i->s[2], 1);
    }
    const uint32_t *result = w->cta->named[w->resume.id].red_done;
    if (i->imm[0] == 0) {
        EACH_LANE(mask, l) R(0)[l] = result[0];
        set_bad(w, i->s[0], mask, 0);
    } else set_pred(w, i->s[0], mask, result[i->imm[0]] ? FULL : 0, 0);
    return pass(w, w->resume.id);
}

void named_barrier_exit(Warp *w)
{
    for (int id = 0; id < 16; id++) complete_if_all(w->cta, &w->cta->named[id]);
}

/* ------------------------------------------------------------------------------------------------ cluster barrier */

static void cluster_complete_if_all(Machine *m)
{
    if (m->cluster.arrived < m->cluster.expected) return;
    m->cluster.generation++;
    m->cluster.arrived = 0;
    reset_clocks(m, m->cluster.arriving, m->cluster.passed);
    m->event++;
}

HANDLER(cluster_arrive)
{
    Machine *m = w->machine;
    if (mask != w->live) {
        int status = converged(w, i, mask, FULL);
        if (status != EMU_NEXT) return status;
    }
    if (w->cluster_arrived)
        return stop(w, i, mask, "barrier", "a second barrier.cluster.arrive without barrier.cluster.wait in between");
    w->cluster_arrived = 1;
    w->cluster_generation = m->cluster.generation;
    m->cluster.arrived++;
    if (i->imm[0] & MEMORY_RELEASE) clock_release(w, m->cluster.arriving);
    else clock_release_fenced(w, m->cluster.arriving);
    cluster_complete_if_all(m);
    return EMU_YIELD;
}

HANDLER(cluster_wait)
{
    Machine *m = w->machine;
    if (mask != w->live) {
        int status = converged(w, i, mask, FULL);
        if (status != EMU_NEXT) return status;
    }
    if (!w->cluster_arrived) return stop(w, i, mask, "barrier", "barrier.cluster.wait without a barrier.cluster.arrive before it");
    if (m->cluster.generation == w->cluster_generation) {
        w->wait = (Wait){.kind = WAIT_CLUSTER, .value = w->cluster_generation};
        return EMU_AGAIN;
    }
    w->cluster_arrived = 0;
    clock_acquire(w, m->cluster.passed);
    return EMU_YIELD;
}

/* Threads that have exited are not waited for. */
void cluster_barrier_exit(Warp *w)
{
    Machine *m = w->machine;
    m->cluster.expected--;
    if (w->cluster_arrived && m->cluster.generation == w->cluster_generation) m->cluster.arrived--;
    if (m->cluster.expected) cluster_complete_if_all(m);
}

/* --------------------------------------------------------------------------------------------------------- fences */

static void publish(Warp *w)
{
    Machine *m = w->machine;
    if (!m->policy.races) return;
    clock_join(m, w->fenced[0], w->known);
    clock_join(m, w->fenced[1], w->visible);
    w->released = w->known[agent_of(w, CLASS_WARP)]++;
}

HANDLER(fence)
{
    barriers_fenced(w);
    publish(w);
    return EMU_NEXT;
}

HANDLER(fence_mbarrier_init)
{
    barriers_fenced(w);
    publish(w);
    return EMU_NEXT;
}

/* Generic accesses so far, the warp's own and those that it knows of, become visible to the async proxy. The warp's clock
 * goes on, so that its accesses behind the fence are not taken for such. */
HANDLER(fence_proxy_async)
{
    barriers_fenced(w);
    if (!w->machine->policy.races) return EMU_NEXT;
    clock_join(w->machine, w->visible, w->known);
    w->known[agent_of(w, CLASS_WARP)]++;
    return EMU_NEXT;
}
