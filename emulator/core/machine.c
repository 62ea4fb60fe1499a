/* One cluster of CTAs: set-up, the interpreter loop, the paths of a warp, and who runs next. */
#include "emu.h"
#include <stdlib.h>

#define QUANTUM 4096

/* Until a kernel uses tensor memory there is none to check. */
__attribute__((weak)) void tmem_exit_check(Cta *cta) { (void)cta; }

static const Wait no_wait = {.kind = WAIT_NONE};

/* --------------------------------------------------------------------------------------------------------- paths */

static void path_remove(Warp *w, int k) { w->paths[k] = w->paths[--w->n_paths]; }

/* Paths that have come to the same instruction go on together; what they waited for is asked again. */
static void merge_paths(Warp *w)
{
    for (int a = 0; a < w->n_paths; a++)
        for (int b = a + 1; b < w->n_paths; b++)
            if (w->paths[a].pc == w->paths[b].pc) {
                Path *into = &w->paths[a];
                WaitKind one = into->wait.kind, other = w->paths[b].wait.kind;
                if ((one != WAIT_NONE && one != WAIT_CONVERGE) || (other != WAIT_NONE && other != WAIT_CONVERGE)) continue;
                into->mask |= w->paths[b].mask;
                into->wait = no_wait;
                path_remove(w, b--);
            }
}

int wait_ready(const Machine *m, const Warp *w, const Path *path)
{
    const Wait *wait = &path->wait;
    switch (wait->kind) {
    case WAIT_NONE: return 1;
    case WAIT_BARRIER: return !wait->barrier->live || (wait->barrier->phase & 1) != wait->value;
    case WAIT_NAMED: return w->cta->named[wait->id].generation != wait->value;
    case WAIT_CLUSTER: return m->cluster.generation != wait->value;
    case WAIT_GROUP: return w->groups[wait->id].oldest > wait->value;
    case WAIT_CONVERGE: return !(wait->members & w->live & ~path->mask);
    default: return m->event != w->seen_event;
    }
}

/* The path with the lowest instruction among those that can go on, or -1. */
static int choose_path(const Machine *m, const Warp *w)
{
    int best = -1;
    for (int k = 0; k < w->n_paths; k++)
        if ((best < 0 || w->paths[k].pc < w->paths[best].pc) && wait_ready(m, w, &w->paths[k])) best = k;
    return best;
}

int converged(Warp *w, const Ins *i, uint32_t mask, uint32_t members)
{
    (void)i;
    if (!(members & w->live & ~mask)) return EMU_NEXT;
    w->wait = (Wait){.kind = WAIT_CONVERGE, .members = members};
    return EMU_AGAIN;
}

/* --------------------------------------------------------------------------------------------------- interpreter */

/* Somebody of the CTA has to have waited for every cp.async: what lands later may land in the next CTA's memory. */
static void copies_exit_check(Cta *cta, const Ins *i)
{
    for (int k = 0; k < cta->n_warps; k++) {
        Warp *w = &cta->warps[k];
        int waited = !w->copy;
        for (int v = 0; v < cta->n_warps && !waited; v++)
            waited = cta->warps[v].known[agent_of(w, CLASS_CP_ASYNC)] >= w->copy_clock;
        if (!waited)
            finding(w, w->copy, 0, i, "in_flight_at_exit",
                    "the CTA ends, and nobody in it has waited for this copy, which writes to its shared memory");
    }
}

static void exit_lanes(Warp *w, const Ins *i, Path *path, uint32_t lanes)
{
    w->live &= ~lanes;
    path->mask &= ~lanes;
    if (w->live) return;
    w->done = 1;
    w->n_paths = 0;
    Machine *m = w->machine;
    if (w->bulk_source_clock && m->policy.races && w->known[agent_of(w, CLASS_BULK_READ)] < w->bulk_source_clock)
        finding(w, w->bulk_source, 0, i, "in_flight_at_exit",
                "the warp ends without having waited until this copy has read shared memory, which ends with the CTA");
    m->event++;
    named_barrier_exit(w);
    cluster_barrier_exit(w);
    if (--w->cta->live_warps == 0) {
        let_on(w->cta);
        tmem_exit_check(w->cta);
        if (m->policy.races) copies_exit_check(w->cta, i);
    }
}

/* Register slots that an asynchronous operation will write: a tcgen05.ld is completed, a wgmma is not there yet. */
static void check_pending(Warp *w, const Ins *i)
{
    for (int32_t n = 0; n < i->n_slots; n++) {
        int32_t slot = i->s[n];
        if (slot < 0 || (n < 32 && i->predicates >> n & 1)) continue;
        uint32_t pending = w->pending_slots[slot];
        if (!pending) continue;
        if ((pending & 15) == CLASS_TMEM_LOAD) async_finish_class(w, CLASS_TMEM_LOAD);
        else if (!(i->flags & INS_MAY_USE_PENDING)) {
            finding(w, i, w->live, NULL, "wgmma_in_flight",
                    "an accumulator register of a wgmma is used before wgmma.wait_group has waited for it");
            async_finish_class(w, (Class)(pending & 15));
        }
        if (!w->n_pending_slots) return;
    }
}

/* Runs one warp until it blocks, exits, gives way or has used its quantum. Returns 0 when it can't go on by itself. */
static int run_warp(Machine *m, Warp *w)
{
    const Ins *code = m->program->ins;
    int64_t left = QUANTUM;
    int chosen = choose_path(m, w);
    if (chosen < 0) return 0;
    Path *path = &w->paths[chosen];
    w->current = chosen;
    w->resume = path->wait;
    path->wait = no_wait;
    while (left-- > 0) {
        const Ins *i = code + path->pc;
        uint32_t mask = path->mask;
        m->now++;
        w->instructions++;
        if (i->guard >= 0) {
            if (unlikely(w->pbad[i->guard] & mask))
                finding(w, i, w->pbad[i->guard] & mask, NULL, "undefined_value",
                        "the predicate that guards this instruction was never written");
            mask &= i->guard_negate ? ~w->p[i->guard] : w->p[i->guard];
        }
        int status = EMU_NEXT;
        if (unlikely(i->flags & (INS_BRANCH | INS_EXIT))) {
            if (i->flags & INS_EXIT) {
                exit_lanes(w, i, path, mask);
                if (w->done) return 1;
                if (!path->mask) {
                    path_remove(w, w->current);
                    if ((chosen = choose_path(m, w)) < 0) return 0;
                    goto switch_path;
                }
                path->pc++;
            } else if (mask == path->mask) path->pc = i->target;
            else if (!mask) path->pc++;
            else {
                path->mask &= ~mask;
                path->pc++;
                w->paths[w->n_paths] = (Path){.pc = i->target, .mask = mask};
                w->n_paths++;
            }
        } else if (mask) {
            if (unlikely(w->n_pending_slots)) check_pending(w, i);
            if ((i->flags & INS_CONVERGED) && unlikely(path->mask != w->live) &&
                converged(w, i, path->mask, FULL) != EMU_NEXT) status = EMU_AGAIN;
            else status = i->run(w, i, mask);
            if (likely(status == EMU_NEXT)) path->pc++;
            else if (status == EMU_YIELD) path->pc++;
            else if (status == EMU_AGAIN) {
                path->wait = w->wait;
                w->seen_event = m->event;
            } else {
                m->stopped = 1;
                return 1;
            }
            w->resume.kind = WAIT_NONE;
        } else path->pc++;
        if (unlikely(w->n_paths > 1 || status != EMU_NEXT)) {
            if (w->n_paths > 1) merge_paths(w);
            if (status == EMU_YIELD) return 1;
            if ((chosen = choose_path(m, w)) < 0) return 0;
        switch_path:
            path = &w->paths[chosen];
            w->current = chosen;
            w->resume = path->wait;
            path->wait = no_wait;
        }
        if (unlikely(m->stopped)) return 1;
    }
    w->tired = 1;
    return 1;
}

/* ------------------------------------------------------------------------------------------------------ scheduler */

static int runnable(const Machine *m, const Warp *w) { return !w->done && choose_path(m, w) >= 0; }

static Warp *warp_number(const Machine *m, int number)
{
    int per_cta = m->ctas[0].n_warps;
    return &m->ctas[number / per_cta].warps[number % per_cta];
}

/* The warp that runs next; warps that ran a whole quantum, and the starved one, come last. NULL: none can run. */
static Warp *choose_warp(Machine *m)
{
    const Policy *policy = &m->policy;
    int total = m->n_ctas * m->ctas[0].n_warps, seen = 0;
    Warp *chosen = NULL, *tired = NULL, *starved = NULL;
    for (int k = 0; k < total; k++) {
        int number = policy->shuffle == 2 ? (m->cursor + 1 + k) % total : policy->reverse ? total - 1 - k : k;
        Warp *w = warp_number(m, number);
        if (!runnable(m, w)) continue;
        if (w->index == policy->starved_warp) starved = starved ? starved : w;
        else if (w->tired) tired = tired ? tired : w;
        else if (policy->shuffle == 1) {
            if (machine_random(m) % (uint32_t)++seen == 0) chosen = w;
        } else {
            chosen = w;
            break;
        }
    }
    if (!chosen && (tired || starved)) {
        /* everybody has had a turn without anything happening: let an operation land, then begin anew */
        for (int k = 0; k < total; k++) warp_number(m, k)->tired = 0;
        if (tired) async_step_any(m);
        int polling = starved && ++m->idle_turns % 4 == 0; /* the others may be polling for what the starved one does */
        chosen = tired && !polling ? tired : starved;
    }
    if (chosen) m->cursor = chosen->cta->rank * m->ctas[0].n_warps + chosen->index;
    return chosen;
}

static int all_done(const Machine *m)
{
    for (int c = 0; c < m->n_ctas; c++)
        if (m->ctas[c].live_warps) return 0;
    return 1;
}

static void report_wait(Machine *m, Warp *w, const Path *path)
{
    static const char *classes[N_CLASSES] = {"", "cp.async", "bulk reads", "bulk stores", "wgmma", "tcgen05.mma", "tcgen05.ld", "tcgen05.st"};
    const Ins *i = m->program->ins + path->pc;
    const Wait *wait = &path->wait;
    const Barrier *b = wait->barrier;
    char text[240];
    int64_t detail[6] = {0};
    switch (wait->kind) {
    case WAIT_BARRIER:
        detail[0] = shared_address(b->cta, b->offset), detail[1] = wait->value, detail[2] = b->phase;
        detail[3] = b->count, detail[4] = b->pending, detail[5] = b->tx;
        snprintf(text, sizeof text,
                 "waits for parity %u of the mbarrier at shared address 0x%x of CTA %d: phase %u is open, %d of %d arrivals and %lld bytes are missing",
                 wait->value, (uint32_t)detail[0], b->cta->rank, b->phase, b->pending, b->count, (long long)b->tx);
        break;
    case WAIT_NAMED:
        detail[0] = w->cta->named[wait->id].expected, detail[1] = w->cta->named[wait->id].arrived;
        snprintf(text, sizeof text, "waits at named barrier %u: %lld of %lld threads have arrived", wait->id,
                 (long long)detail[1], (long long)detail[0]);
        break;
    case WAIT_CLUSTER:
        snprintf(text, sizeof text, "waits at the cluster barrier: %u of %u warps have arrived", m->cluster.arrived, m->cluster.expected);
        break;
    case WAIT_GROUP: snprintf(text, sizeof text, "waits for %s that never complete", classes[wait->id]); break;
    case WAIT_CONVERGE:
        snprintf(text, sizeof text, "lanes 0x%08x wait for lanes 0x%08x of the warp, which never come here", path->mask,
                 wait->members & w->live & ~path->mask);
        break;
    case WAIT_TMEM:
        snprintf(text, sizeof text, "waits for %s", wait->id ? "a warp of the peer CTA to allocate or free tensor memory with it"
                                                             : "tensor memory columns that nobody frees");
        break;
    default: snprintf(text, sizeof text, "waits for something that never happens"); break;
    }
    int before = m->n_findings;
    finding(w, i, path->mask, NULL, "hang", "%s", text);
    if (m->n_findings > before) {
        Finding *f = &m->findings[m->n_findings - 1];
        f->wait_kind = (int32_t)wait->kind;
        f->wait_id = (int32_t)wait->id;
        memcpy(f->wait, detail, sizeof detail);
        f->other_ins = b && b->last_arrival ? (int32_t)(b->last_arrival - m->program->ins) : -1;
    }
}

static void report_hang(Machine *m)
{
    for (int c = 0; c < m->n_ctas; c++)
        for (int k = 0; k < m->ctas[c].n_warps; k++) {
            Warp *w = &m->ctas[c].warps[k];
            for (int p = 0; p < w->n_paths && !w->done; p++) report_wait(m, w, &w->paths[p]);
        }
    m->stopped = 1;
}

/* What a kernel leaves behind when its last warp has ended. */
static void check_exit(Machine *m)
{
    for (int c = 0; c < m->n_ctas; c++) {
        Cta *cta = &m->ctas[c];
        for (uint32_t k = 0; k < cta->smem_bytes / 8; k++) {
            const Barrier *b = cta->barriers[k];
            if (!b || !b->live || (b->pending == b->count && b->tx == 0)) continue;
            finding(&cta->warps[0], b->init_ins, 0, b->last_arrival, "barrier",
                    "the mbarrier at shared address 0x%x is left in the middle of phase %u: %d of %d arrivals and %lld bytes are missing",
                    shared_address(cta, b->offset), b->phase, b->pending, b->count, (long long)b->tx);
        }
    }
}

static void run_warps(Machine *m)
{
    while (!m->stopped) {
        Warp *w = choose_warp(m);
        if (!w) {
            if (async_step_any(m)) continue;
            if (!all_done(m)) report_hang(m);
            break;
        }
        uint64_t from = m->now;
        m->stats.switches++;
        uint64_t event = m->event;
        run_warp(m, w);
        if (m->event != event) w->tired = 0;
        if (m->policy.trace) {
            const Path *path = w->done ? NULL : &w->paths[w->current < w->n_paths ? w->current : 0];
            trace(m, TRACE_RUN, w->cta->rank, w->index, path ? m->program->ins + path->pc : NULL,
                  path ? (int)path->wait.kind : -1, from, 0);
        }
        async_step_mixed(m);
        if (m->policy.max_instructions && m->now > (uint64_t)m->policy.max_instructions) {
            const Path *path = w->done ? NULL : &w->paths[0];
            stop(w, path ? m->program->ins + path->pc : NULL, w->live, "endless",
                 "the cluster has executed %llu instructions and has not ended", (unsigned long long)m->now);
        }
    }
    if (m->stopped) return;
    while (async_step_any(m)) {}
    check_exit(m);
}

/* --------------------------------------------------------------------------------------------------------- set-up */

static uint32_t special_value(const Warp *w, int special, uint32_t lane)
{
    const Machine *m = w->machine;
    const Launch *launch = &m->launch;
    const Cta *cta = w->cta;
    uint32_t thread = (uint32_t)w->index * LANES + lane, x = launch->block[0], y = launch->block[1];
    uint64_t local = (uint64_t)(uintptr_t)(w->local + (size_t)lane * m->program->local_bytes);
    if (special >= SPECIAL_NTID_X && special <= SPECIAL_NTID_Z) return launch->block[special - SPECIAL_NTID_X];
    if (special >= SPECIAL_CTAID_X && special <= SPECIAL_CTAID_Z) return cta->id[special - SPECIAL_CTAID_X];
    if (special >= SPECIAL_NCTAID_X && special <= SPECIAL_NCTAID_Z) return launch->grid[special - SPECIAL_NCTAID_X];
    if (special >= SPECIAL_CLUSTER_CTAID_X && special <= SPECIAL_CLUSTER_CTAID_Z) {
        int axis = special - SPECIAL_CLUSTER_CTAID_X;
        return cta->id[axis] % launch->cluster[axis];
    }
    if (special >= SPECIAL_CLUSTER_NCTAID_X && special <= SPECIAL_CLUSTER_NCTAID_Z)
        return launch->cluster[special - SPECIAL_CLUSTER_NCTAID_X];
    if (special >= SPECIAL_CLUSTERID_X && special <= SPECIAL_CLUSTERID_Z) return m->cluster_id[special - SPECIAL_CLUSTERID_X];
    if (special >= SPECIAL_NCLUSTERID_X && special <= SPECIAL_NCLUSTERID_Z) {
        int axis = special - SPECIAL_NCLUSTERID_X;
        return launch->grid[axis] / launch->cluster[axis];
    }
    switch (special) {
    case SPECIAL_TID_X: return thread % x;
    case SPECIAL_TID_Y: return thread / x % y;
    case SPECIAL_TID_Z: return thread / (x * y);
    case SPECIAL_LANEID: return lane;
    case SPECIAL_WARPID: return (uint32_t)w->index;
    case SPECIAL_NWARPID: return (uint32_t)cta->n_warps;
    case SPECIAL_CLUSTER_CTARANK: return (uint32_t)cta->rank;
    case SPECIAL_CLUSTER_NCTARANK: return (uint32_t)m->n_ctas;
    case SPECIAL_SMEM_BASE: return shared_address(cta, 0);
    case SPECIAL_DYNAMIC_SMEM: return launch->dynamic_smem_bytes;
    case SPECIAL_TOTAL_SMEM: return (cta->smem_bytes + 127) & ~127u; /* allocated in units of 128 bytes */
    case SPECIAL_PARAM_LO: return (uint32_t)launch->param_address;
    case SPECIAL_PARAM_HI: return (uint32_t)(launch->param_address >> 32);
    case SPECIAL_LOCAL_LO: return (uint32_t)local;
    case SPECIAL_LOCAL_HI: return (uint32_t)(local >> 32);
    case SPECIAL_LANEMASK_EQ: return 1u << lane;
    case SPECIAL_LANEMASK_LE: return (2u << lane) - 1;
    case SPECIAL_LANEMASK_LT: return (1u << lane) - 1;
    case SPECIAL_LANEMASK_GE: return ~((1u << lane) - 1);
    case SPECIAL_LANEMASK_GT: return ~((2u << lane) - 1);
    case SPECIAL_SMID: return m->cluster_serial - 1;
    case SPECIAL_NSMID: return launch->n_sms ? launch->n_sms : 132;
    default: return 1;
    }
}

static void init_warp(Machine *m, Cta *cta, int index)
{
    const Program *program = m->program;
    Warp *w = &cta->warps[index];
    uint32_t threads = m->launch.block[0] * m->launch.block[1] * m->launch.block[2], first = (uint32_t)index * LANES;
    memset(w, 0, sizeof *w);
    w->cta = cta;
    w->machine = m;
    w->program = program;
    w->index = index;
    w->serial = cta->rank * cta->n_warps + index;
    w->live = threads - first >= LANES ? FULL : (1u << (threads - first)) - 1;
    w->n_paths = 1;
    w->paths[0] = (Path){.mask = w->live, .failed_pc = -1};
    w->registers = m->launch.registers_per_thread;
    w->r = arena_new(m, (size_t)program->n_registers * sizeof *w->r);
    w->bad = arena_new(m, (size_t)program->n_registers * sizeof(uint32_t));
    w->p = arena_new(m, (size_t)program->n_predicates * sizeof(uint32_t));
    w->pbad = arena_new(m, (size_t)program->n_predicates * sizeof(uint32_t));
    memset(w->bad, 0xff, (size_t)program->n_registers * sizeof(uint32_t));
    memset(w->pbad, 0xff, (size_t)program->n_predicates * sizeof(uint32_t));
    if (program->local_bytes) {
        w->local = arena_new(m, (size_t)program->local_bytes * LANES);
        w->local_shadow = arena_new(m, (size_t)program->local_bytes * LANES);
        memset(w->local_shadow, SHADOW_BAD, (size_t)program->local_bytes * LANES);
    }
    for (int32_t k = 0; k < program->n_constants; k++) {
        const Constant *c = &program->constants[k];
        w->bad[c->slot] = 0;
        for (uint32_t l = 0; l < LANES; l++) w->r[c->slot][l] = c->special < 0 ? c->value : special_value(w, c->special, l);
    }
    uint32_t draw = machine_random(m);
    w->elected = m->policy.elect_last == 0 ? 0 : m->policy.elect_last == 1 ? 31 : draw & 31;
    if (m->policy.races) {
        w->known = clock_new(m);
        w->visible = clock_new(m);
        w->fenced[0] = clock_new(m);
        w->fenced[1] = clock_new(m);
    }
    agent_of(w, CLASS_WARP);
}

static void init_cta(Machine *m, int rank)
{
    Cta *cta = &m->ctas[rank];
    const Launch *launch = &m->launch;
    uint32_t in_cluster[3] = {(uint32_t)rank % launch->cluster[0], (uint32_t)rank / launch->cluster[0] % launch->cluster[1],
                              (uint32_t)rank / (launch->cluster[0] * launch->cluster[1])};
    cta->machine = m;
    cta->rank = rank;
    for (int axis = 0; axis < 3; axis++) cta->id[axis] = m->cluster_id[axis] * launch->cluster[axis] + in_cluster[axis];
    cta->smem_bytes = launch->static_smem_bytes + launch->dynamic_smem_bytes;
    cta->smem = arena_new(m, cta->smem_bytes + 64);
    cta->shadow = arena_new(m, cta->smem_bytes + 64);
    memset(cta->smem, 0xff, cta->smem_bytes); /* a NaN in every format, an address nowhere */
    memset(cta->shadow, SHADOW_BAD, cta->smem_bytes);
    cta->barriers = arena_new(m, (cta->smem_bytes / 8 + 1) * sizeof(Barrier *));
    if (m->policy.races) cta->granules = arena_new(m, ((size_t)cta->smem_bytes / 16 + 2) * sizeof(Granule));
    uint32_t threads = launch->block[0] * launch->block[1] * launch->block[2];
    cta->n_warps = cta->live_warps = (int32_t)((threads + LANES - 1) / LANES);
    cta->register_pool = 65536 - (int32_t)(launch->registers_per_thread * LANES * (uint32_t)cta->n_warps);
    for (int k = 0; k < 16; k++)
        for (int view = 0; view < 2 && m->policy.races; view++) {
            cta->named[k].arriving[view] = clock_new(m);
            cta->named[k].passed[view] = clock_new(m);
        }
    for (int index = 0; index < cta->n_warps; index++) init_warp(m, cta, index);
}

int run_cluster(Machine *m)
{
    const Launch *launch = &m->launch;
    uint32_t threads = launch->block[0] * launch->block[1] * launch->block[2], n_warps = (threads + LANES - 1) / LANES;
    m->n_ctas = (int32_t)(launch->cluster[0] * launch->cluster[1] * launch->cluster[2]);
    m->n_agents = 1;
    m->clock_length = 1 + (uint32_t)m->n_ctas * (n_warps * N_CLASSES + 512);
    if (m->clock_length > MAX_AGENTS) m->clock_length = MAX_AGENTS;
    m->ctas = arena_new(m, (size_t)m->n_ctas * sizeof(Cta));
    m->global_granules = arena_new(m, ((size_t)m->memory->n + 1) * sizeof(void *));
    m->cluster.expected = (uint32_t)m->n_ctas * n_warps;
    for (int view = 0; view < 2 && m->policy.races; view++) {
        m->cluster.arriving[view] = clock_new(m);
        m->cluster.passed[view] = clock_new(m);
    }
    for (int rank = 0; rank < m->n_ctas; rank++) init_cta(m, rank);
    run_warps(m);
    return m->stopped;
}
