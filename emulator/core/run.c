/* The core's door: programs, grids over threads, and what a run leaves behind. */
#include "emu.h"
#include <pthread.h>
#include <stdlib.h>

/* ---------------------------------------------------------------------------------------------------------- arena */

#define BLOCK_BYTES (4u << 20)
typedef struct Block { struct Block *next; size_t size, used; _Alignas(64) uint8_t data[]; } Block;

void *arena_new(Machine *m, size_t bytes)
{
    bytes = (bytes + 63) & ~(size_t)63;
    Block *block = m->arena;
    if (!block || block->size - block->used < bytes) {
        size_t size = bytes > BLOCK_BYTES ? bytes : BLOCK_BYTES;
        block = aligned_alloc(64, (sizeof(Block) + size + 63) & ~(size_t)63);
        *block = (Block){m->arena, size, 0};
        m->arena = block;
    }
    void *memory = block->data + block->used;
    block->used += bytes;
    return memset(memory, 0, bytes);
}

static void arena_free(Machine *m)
{
    while (m->arena) {
        Block *next = m->arena->next;
        free(m->arena);
        m->arena = next;
    }
}

uint32_t machine_random(Machine *m) /* xorshift64* */
{
    m->random ^= m->random >> 12;
    m->random ^= m->random << 25;
    m->random ^= m->random >> 27;
    return (uint32_t)((m->random * 0x2545f4914f6cdd1dull) >> 32);
}

/* ------------------------------------------------------------------------------------------------------- programs */

extern const HandlerEntry *__start_emu_handlers[];
extern const HandlerEntry *__stop_emu_handlers[];

int emu_handler_count(void) { return (int)(__stop_emu_handlers - __start_emu_handlers); }
const char *emu_handler_name(int n) { return __start_emu_handlers[n]->name; }

Program *emu_program(const InsCode *codes, int n, const int32_t *slots, int n_slots, const Constant *constants, int n_constants,
                     int n_registers, int n_predicates, uint32_t local_bytes)
{
    Program *p = calloc(1, sizeof *p);
    p->ins = calloc((size_t)n, sizeof(Ins));
    p->slots = malloc((size_t)n_slots * sizeof(int32_t));
    p->constants = malloc(((size_t)n_constants + 1) * sizeof(Constant));
    memcpy(p->slots, slots, (size_t)n_slots * sizeof(int32_t));
    memcpy(p->constants, constants, (size_t)n_constants * sizeof(Constant));
    p->n_ins = n, p->n_constants = n_constants;
    p->n_registers = n_registers, p->n_predicates = n_predicates;
    p->local_bytes = local_bytes;
    for (int k = 0; k < n; k++) {
        const InsCode *c = &codes[k];
        Ins *i = &p->ins[k];
        *i = (Ins){.run = c->handler >= 0 ? __start_emu_handlers[c->handler]->run : NULL, .s = p->slots + c->slot_first,
                   .n_slots = c->n_slots, .target = c->target, .line = c->line, .guard = (int16_t)c->guard,
                   .guard_negate = (uint8_t)c->guard_negate, .flags = (uint8_t)c->flags, .predicates = c->predicates};
        memcpy(i->imm, c->imm, sizeof i->imm);
        if (c->handler >= 0 && !strncmp(__start_emu_handlers[c->handler]->name, "wgmma", 5)) i->flags |= INS_MAY_USE_PENDING;
    }
    return p;
}

void emu_program_free(Program *p)
{
    free(p->ins), free(p->slots), free(p->constants), free(p);
}

/* ---------------------------------------------------------------------------------------------------------- grids */

typedef struct {
    Finding *findings;
    int64_t n_findings;
    TraceEvent *events;
    int64_t n_events;
    Stats stats;
    int32_t stopped, clusters_run;
} Outcome;

typedef struct {
    const Program *program;
    Launch launch;
    Policy policy;
    Memory memory;
    uint32_t next, end; /* clusters */
    pthread_mutex_t lock;
    Outcome *outcome;
} Run;

static void add_finding(Run *run, const Finding *f)
{
    Outcome *o = run->outcome;
    for (int64_t k = 0; k < o->n_findings; k++) {
        Finding *old = &o->findings[k];
        if (old->ins != f->ins || old->other_ins != f->other_ins || strcmp(old->kind, f->kind)) continue;
        if (!strcmp(f->kind, "hang") && (old->warp != f->warp || old->cta != f->cta)) continue;
        old->count += f->count;
        return;
    }
    if (o->n_findings >= run->policy.max_findings) return;
    o->findings = realloc(o->findings, (size_t)(o->n_findings + 1) * sizeof(Finding));
    o->findings[o->n_findings++] = *f;
}

static void collect(Run *run, Machine *m)
{
    Outcome *o = run->outcome;
    pthread_mutex_lock(&run->lock);
    for (int k = 0; k < m->n_findings; k++) add_finding(run, &m->findings[k]);
    if (m->n_events) {
        o->events = realloc(o->events, (size_t)(o->n_events + m->n_events) * sizeof(TraceEvent));
        for (int64_t k = 0; k < m->n_events; k++) { /* ranks become numbers of CTAs in the order of clusters */
            TraceEvent *event = &o->events[o->n_events + k];
            *event = m->events[k];
            event->cta += (int32_t)(m->cluster_serial - 1) * m->n_ctas;
        }
        o->n_events += m->n_events;
    }
    o->stats.instructions += m->now;
    o->stats.async_ops += m->stats.async_ops;
    o->stats.barrier_phases += m->stats.barrier_phases;
    o->stats.races_checked += m->stats.races_checked;
    o->stats.switches += m->stats.switches;
    o->stats.hasty_ctas += m->stats.hasty_ctas;
    o->stopped |= m->stopped;
    o->clusters_run++;
    if (m->stopped) run->next = run->end;
    pthread_mutex_unlock(&run->lock);
}

static void drop_waiting(Machine *m)
{
    while (m->first) {
        AsyncOp *next = m->first->next;
        free(m->first->carried[0]);
        free(m->first->carried[1]);
        free(m->first);
        m->first = next;
    }
}

static void *run_some(void *argument)
{
    Run *run = argument;
    Machine *m = malloc(sizeof *m);
    for (;;) {
        pthread_mutex_lock(&run->lock);
        uint32_t cluster = run->next < run->end ? run->next++ : UINT32_MAX;
        pthread_mutex_unlock(&run->lock);
        if (cluster == UINT32_MAX) break;
        const Launch *launch = &run->launch;
        uint32_t nx = launch->grid[0] / launch->cluster[0], ny = launch->grid[1] / launch->cluster[1];
        memset(m, 0, sizeof *m);
        m->program = run->program;
        m->launch = *launch;
        m->policy = run->policy;
        m->memory = &run->memory;
        m->cluster_serial = cluster + 1;
        m->cluster_id[0] = cluster % nx;
        m->cluster_id[1] = cluster / nx % ny;
        m->cluster_id[2] = cluster / (nx * ny);
        m->random = (run->policy.seed + 1) * 0x9e3779b97f4a7c15ull ^ (uint64_t)(cluster + 1) * 0xbf58476d1ce4e5b9ull;
        if (!m->random) m->random = 1;
        run_cluster(m);
        collect(run, m);
        drop_waiting(m);
        free(m->findings);
        free(m->events);
        arena_free(m);
    }
    free(m);
    return NULL;
}

/* Runs clusters [first, first + count) of the grid; `ranges` is used in place. */
void emu_run(const Program *program, const Launch *launch, const Policy *policy, Range *ranges, int n_ranges, uint32_t first,
             uint32_t count, int threads, Outcome *outcome)
{
    Run run = {.program = program, .launch = *launch, .policy = *policy, .memory = {ranges, n_ranges, n_ranges},
               .next = first, .end = first + count, .outcome = outcome};
    pthread_mutex_init(&run.lock, NULL);
    memset(outcome, 0, sizeof *outcome);
    if (threads > 64) threads = 64;
    if (threads <= 1) run_some(&run);
    else {
        pthread_t workers[64];
        for (int k = 0; k < threads; k++) pthread_create(&workers[k], NULL, run_some, &run);
        for (int k = 0; k < threads; k++) pthread_join(workers[k], NULL);
    }
    pthread_mutex_destroy(&run.lock);
}

void emu_outcome_free(Outcome *outcome)
{
    free(outcome->findings);
    free(outcome->events);
}
