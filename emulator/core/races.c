/* Vector clocks and access records: who touched which bytes, and was it ordered.
 *
 * A granule is 16 bytes of shared or global memory, or 32 lanes of one TMEM column. Its records are the accesses that
 * a later one could still race with: an access that is ordered after another one replaces it, because whoever is
 * ordered after the new one is ordered after the old one as well. */
#include "emu.h"
#include <stdlib.h>

#define PAGE_GRANULES 256
#define ALL_BYTES 0xffffu

Clock clock_new(Machine *m) { return arena_new(m, m->clock_length * sizeof(uint32_t)); }

void clock_join(const Machine *m, Clock into, const uint32_t *from)
{
    for (uint32_t k = 0; k < m->n_agents; k++) into[k] = into[k] > from[k] ? into[k] : from[k];
}

static int races_on(const Machine *m) { return m->policy.races; }

void clock_release(Warp *w, Clock into[2])
{
    Machine *m = w->machine;
    if (!races_on(m)) return;
    uint32_t self = agent_of(w, CLASS_WARP);
    clock_join(m, into[0], w->known);
    clock_join(m, into[1], w->visible);
    w->released = w->known[self]++;
}

void clock_release_fenced(Warp *w, Clock into[2])
{
    if (!races_on(w->machine)) return;
    clock_join(w->machine, into[0], w->fenced[0]);
    clock_join(w->machine, into[1], w->fenced[1]);
}

void clock_acquire(Warp *w, Clock from[2])
{
    if (!races_on(w->machine)) return;
    uint32_t self = agent_of(w, CLASS_WARP), own = w->known[self];
    clock_join(w->machine, w->known, from[0]);
    clock_join(w->machine, w->visible, from[1]);
    w->known[self] = own;
}

uint32_t agent_new(Machine *m)
{
    if (m->n_agents < m->clock_length) return m->n_agents++;
    if (!m->stopped)
        machine_finding(m, NULL, "emulator_limit", "more than %u warps, streams and mbarriers in one cluster", m->clock_length);
    m->stopped = 1;
    return m->clock_length - 1;
}

uint32_t agent_of(Warp *w, Class class)
{
    if (likely(w->agents[class])) return w->agents[class];
    Machine *m = w->machine;
    uint32_t agent = agent_new(m);
    m->agents[agent].warp = w;
    m->agents[agent].barrier = 0;
    m->agents[agent].class = (uint8_t)class;
    w->agents[class] = (uint16_t)agent;
    if (class == CLASS_WARP && w->known) w->known[agent] = 1;
    return agent;
}

Access access_of_warp(Warp *w, const Ins *i, uint8_t flags)
{
    uint32_t agent = agent_of(w, CLASS_WARP);
    return (Access){w, i, (uint16_t)agent, w->known ? w->known[agent] : 0, flags};
}

/* Streams whose own operations are carried out in the order of issue. */
static int in_order(const Machine *m, uint32_t agent)
{
    if (!m->agents[agent].warp) return 0;
    int class = m->agents[agent].class;
    return class == CLASS_WARP || class == CLASS_WGMMA || class == CLASS_MMA || class == CLASS_TMEM_STORE ||
           class == CLASS_TMEM_LOAD;
}

static const char *access_word(uint8_t flags)
{
    if (flags & ACCESS_ATOMIC) return "atomic";
    if (flags & ACCESS_ASYNC) return flags & ACCESS_WRITE ? "asynchronous write" : "asynchronous read";
    return flags & ACCESS_WRITE ? "write" : "read";
}

static void describe(const Machine *m, uint32_t agent, char *text, size_t size)
{
    static const char *streams[N_CLASSES] = {"", " (cp.async)", " (bulk store, source read)", " (bulk store)", " (wgmma)",
                                             " (tcgen05.mma/cp)", " (tcgen05.ld)", " (tcgen05.st)"};
    const Warp *w = m->agents[agent].warp;
    if (w) snprintf(text, size, "warp %d of CTA %d%s", w->index, w->cta->rank, streams[m->agents[agent].class]);
    else snprintf(text, size, "an operation that completes on the mbarrier at shared address 0x%x", m->agents[agent].barrier);
}

static void report(const Access *a, const Record *old, const char *space, uint64_t where, int fence_only)
{
    Machine *m = a->warp->machine;
    char who[120];
    describe(m, old->agent, who, sizeof who);
    const Ins *other = m->program->ins + old->ins;
    if (fence_only && m->agents[old->agent].warp && m->agents[old->agent].class == CLASS_WARP)
        finding(a->warp, a->ins, 0, other, "missing_proxy_fence",
                "%s of %s 0x%llx is ordered after the %s by %s, but no fence.proxy.async lies between them",
                access_word(a->flags), space, (unsigned long long)where, access_word(old->flags), who);
    else if (fence_only)
        finding(a->warp, a->ins, 0, other, "missing_copy_fence",
                "%s of %s 0x%llx is ordered after the completion of the %s by %s, but no fence.proxy.async lies between them",
                access_word(a->flags), space, (unsigned long long)where, access_word(old->flags), who);
    else
        finding(a->warp, a->ins, 0, other, "race", "%s of %s 0x%llx is not ordered after the %s by %s",
                access_word(a->flags), space, (unsigned long long)where, access_word(old->flags), who);
}

static void grow(Machine *m, Granule *g)
{
    uint16_t capacity = g->capacity ? (uint16_t)(g->capacity * 2) : 4;
    Record *records = arena_new(m, capacity * sizeof(Record));
    if (g->n) memcpy(records, g->records, g->n * sizeof(Record));
    g->records = records;
    g->capacity = capacity;
}

static void judge(const Access *a, Granule *g, uint32_t mask, const char *space, uint64_t where)
{
    Machine *m = a->warp->machine;
    const uint32_t *known = a->warp->known, *visible = a->warp->visible;
    int32_t ins = (int32_t)(a->ins - m->program->ins);
    int write = a->flags & ACCESS_WRITE, kept = 0, merged = 0;
    uint8_t flags = a->flags & (uint8_t)~ACCESS_UNCHANGED;
    if (!write && g->n) { /* the same read again: a write in between would have taken its bytes out of the record */
        const Record *last = &g->records[g->n - 1];
        if (last->agent == a->agent && last->clock == a->clock && last->ins == ins && last->flags == flags &&
            !(mask & ~last->mask))
            return;
    }
    for (int k = 0; k < g->n; k++) {
        Record *r = &g->records[k];
        if (r->mask & mask) {
            int same_order = r->agent == a->agent && in_order(m, r->agent);
            int ordered = same_order || known[r->agent] >= r->clock;
            if (write || (r->flags & ACCESS_WRITE)) {
                int proxy = !(r->flags & ACCESS_ASYNC) && (r->flags & ACCESS_WRITE) && (a->flags & ACCESS_ASYNC);
                int excused = (a->flags & r->flags & (ACCESS_ATOMIC | ACCESS_STRONG)) != 0 ||
                              ((a->flags & ACCESS_UNCHANGED) && (r->flags & ACCESS_WRITE));
                if (!excused && !ordered) report(a, r, space, where, 0);
                else if (!excused && proxy && visible[r->agent] < r->clock) report(a, r, space, where, 1);
                if (write && (ordered || !excused)) r->mask &= ~mask; /* who comes later may race with an unordered atomic */
            } else if (ordered && !(a->flags & ACCESS_UNRECORDED)) {
                if (r->agent == a->agent && r->clock == a->clock && r->ins == ins && r->flags == flags) {
                    r->mask |= mask;
                    merged = 1;
                } else {
                    r->mask &= ~mask;
                }
            }
        } else if (r->agent == a->agent && r->clock == a->clock && r->ins == ins && r->flags == flags) {
            r->mask |= mask;
            merged = 1;
        }
        if (r->mask) {
            if (kept != k) g->records[kept] = *r;
            kept++;
        }
    }
    g->n = (uint16_t)kept;
    if (merged || a->flags & ACCESS_UNRECORDED) return;
    if (g->n == g->capacity) grow(m, g);
    g->records[g->n++] = (Record){a->agent, flags, 0, a->clock, mask, ins};
    m->stats.races_checked++;
}

void touch_shared(const Access *a, Cta *cta, uint32_t offset, uint32_t bytes)
{
    if (!races_on(cta->machine) || !bytes) return;
    Granule *granules = cta->granules;
    uint32_t end = offset + bytes;
    for (uint32_t at = offset & ~15u; at < end; at += 16) {
        uint32_t mask = ALL_BYTES;
        if (at < offset) mask &= ALL_BYTES << (offset - at);
        if (at + 16 > end) mask &= ALL_BYTES >> (at + 16 - end);
        judge(a, &granules[at >> 4], mask & ALL_BYTES, "shared memory", shared_address(cta, at < offset ? offset : at));
    }
}

void touch_lanes_shared(const Access *a, Cta *cta, const uint32_t *offset, uint32_t mask, uint32_t bytes)
{
    if (!races_on(cta->machine)) return;
    Granule *granules = cta->granules;
    if (bytes > 16) {
        EACH_LANE(mask, l) touch_shared(a, cta, offset[l], bytes);
        return;
    }
    /* naturally aligned accesses of at most 16 bytes stay inside a granule; neighbouring lanes share one */
    uint32_t current = ~0u, gathered = 0, ones = (1u << bytes) - 1;
    EACH_LANE(mask, l)
    {
        uint32_t at = offset[l] >> 4;
        if (at != current) {
            if (gathered) judge(a, &granules[current], gathered, "shared memory", shared_address(cta, current << 4));
            current = at;
            gathered = 0;
        }
        gathered |= ones << (offset[l] & 15);
    }
    if (gathered) judge(a, &granules[current], gathered, "shared memory", shared_address(cta, current << 4));
}

void touch_tmem(const Access *a, Cta *cta, uint32_t lane0, uint32_t n_lanes, uint32_t first_column, uint32_t n_columns)
{
    if (!races_on(cta->machine) || !cta->tmem_granules || !n_lanes) return;
    Granule *granules = cta->tmem_granules;
    uint32_t end = lane0 + n_lanes;
    for (uint32_t quarter = lane0 / 32; quarter <= (end - 1) / 32; quarter++) {
        uint32_t low = quarter * 32, mask = FULL;
        if (low < lane0) mask &= FULL << (lane0 - low);
        if (low + 32 > end) mask &= FULL >> (low + 32 - end);
        for (uint32_t c = first_column; c < first_column + n_columns && c < TMEM_COLUMNS; c++)
            judge(a, &granules[c * 4 + quarter], mask, "tensor memory", (uint64_t)low << 16 | c);
    }
}

static Granule *global_granule(Machine *m, Range *range, uint64_t address)
{
    uint64_t base = range->low & ~15ull, index = (address - base) >> 4, page = index / PAGE_GRANULES;
    void **own = &m->global_granules[range - m->memory->ranges];
    if (!*own) {
        uint64_t pages = ((range->high - base) >> 4) / PAGE_GRANULES + 2;
        *own = arena_new(m, pages * sizeof(Granule *));
    }
    Granule **table = *own;
    if (!table[page]) table[page] = arena_new(m, PAGE_GRANULES * sizeof(Granule));
    return &table[page][index % PAGE_GRANULES];
}

/* Bytes written by another cluster of the launch: clusters run one after another here, but in any order on a GPU. */
static void check_owner(const Access *a, Range *range, uint64_t address, uint32_t bytes)
{
    Machine *m = a->warp->machine;
    uint16_t own = (uint16_t)((m->cluster_serial - 1) % 65535 + 1), *owner = range->owner + (address - range->low);
    int excused = m->acquired || (a->flags & (ACCESS_ATOMIC | ACCESS_STRONG));
    for (uint32_t k = 0; k < bytes; k++) {
        if (owner[k] && owner[k] != own && !excused) {
            finding(a->warp, a->ins, 0, NULL, "race", "%s of global 0x%llx: another cluster of this launch (number %u) wrote it",
                    access_word(a->flags), (unsigned long long)(address + k), owner[k] - 1u);
            excused = 1;
        }
        if ((a->flags & ACCESS_WRITE) && !(a->flags & (ACCESS_ATOMIC | ACCESS_STRONG))) owner[k] = own;
    }
}

static Range *range_of(Machine *m, uint64_t address)
{
    Range *last = m->last_range;
    if (last && address >= last->low && address < last->high) return last;
    for (int k = 0; k < m->memory->n; k++) {
        Range *range = &m->memory->ranges[k];
        if (address >= range->low && address < range->high) return m->last_range = range;
    }
    return NULL;
}

static void check_prior(const Access *a, Range *range, uint64_t address)
{
    if ((range->flags & RANGE_PRIOR) && !a->warp->known[AGENT_PRIOR_GRID])
        finding(a->warp, a->ins, 0, NULL, "prior_grid",
                "%s of global 0x%llx, which the previous kernel may still write: no griddepcontrol.wait is ordered before",
                access_word(a->flags), (unsigned long long)address);
}

static void touch_range(const Access *a, Range *range, uint64_t address, uint32_t bytes)
{
    Machine *m = a->warp->machine;
    if (range->flags & RANGE_PRIOR) check_prior(a, range, address);
    if (!(range->flags & RANGE_TRACK)) return;
    if (range->owner) check_owner(a, range, address, bytes);
    uint64_t end = address + bytes;
    for (uint64_t at = address & ~15ull; at < end; at += 16) {
        uint32_t mask = ALL_BYTES;
        if (at < address) mask &= ALL_BYTES << (address - at);
        if (at + 16 > end) mask &= ALL_BYTES >> (at + 16 - end);
        judge(a, global_granule(m, range, at < range->low ? range->low : at), mask & ALL_BYTES, "global memory", at);
    }
}

void touch_global(const Access *a, uint64_t address, uint32_t bytes)
{
    Machine *m = a->warp->machine;
    if (!races_on(m) || !bytes) return;
    Range *range = range_of(m, address);
    if (!range || !(range->flags & (RANGE_TRACK | RANGE_PRIOR))) return;
    touch_range(a, range, address, bytes);
}

void touch_lanes_global(const Access *a, const uint64_t *address, uint32_t mask, uint32_t bytes)
{
    Machine *m = a->warp->machine;
    if (!races_on(m)) return;
    uint64_t start = 0, end = 0; /* neighbouring lanes are one run of bytes */
    EACH_LANE(mask, l)
    {
        if (address[l] == end && end) {
            end += bytes;
            continue;
        }
        if (end) touch_global(a, start, (uint32_t)(end - start));
        start = address[l];
        end = start + bytes;
    }
    if (end) touch_global(a, start, (uint32_t)(end - start));
}

/* Clocks that travel through strong accesses to memory (flags, semaphores). A strong load counts as an acquire, a
 * strong store publishes what the last fence made public, or everything when it is a release. */
struct SyncLocation { uint64_t address; Clock clocks[2]; struct SyncLocation *next; };

void sync_location(Warp *w, uint64_t address, uint32_t flags, int is_read, int is_write)
{
    Machine *m = w->machine;
    if (!races_on(m)) return;
    struct SyncLocation *at = m->locations;
    while (at && at->address != address) at = at->next;
    if (!at) {
        if (!is_write) {
            if (address >= SHARED_END) m->acquired = 1;
            return;
        }
        at = arena_new(m, sizeof *at);
        *at = (struct SyncLocation){address, {clock_new(m), clock_new(m)}, m->locations};
        m->locations = at;
    }
    if (is_read) {
        clock_acquire(w, at->clocks);
        if (address >= SHARED_END) m->acquired = 1;
    }
    if (is_write) {
        if (flags & MEMORY_RELEASE) clock_release(w, at->clocks);
        else clock_release_fenced(w, at->clocks);
    }
}
