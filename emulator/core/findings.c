/* What was found, each place once, and the trace of what happened. */
#include "emu.h"
#include <stdarg.h>
#include <stdlib.h>

/* Each place once; of a hang, each waiting warp. */
static Finding *place(Machine *m, const char *kind, int32_t ins, int32_t other, const Warp *w)
{
    for (int k = 0; k < m->n_findings; k++) {
        Finding *f = &m->findings[k];
        if (f->ins == ins && f->other_ins == other && !strcmp(f->kind, kind)) {
            if (w && !strcmp(kind, "hang") && (f->warp != w->index || f->cta != w->cta->rank)) continue;
            f->count++;
            return NULL;
        }
    }
    if (m->n_findings >= m->policy.max_findings) return NULL;
    if (m->n_findings == m->findings_capacity) {
        m->findings_capacity = m->findings_capacity ? 2 * m->findings_capacity : 16;
        m->findings = realloc(m->findings, (size_t)m->findings_capacity * sizeof(Finding));
    }
    Finding *f = &m->findings[m->n_findings++];
    memset(f, 0, sizeof *f);
    snprintf(f->kind, sizeof f->kind, "%s", kind);
    f->ins = ins;
    f->other_ins = other;
    f->count = 1;
    f->cta = f->warp = -1;
    return f;
}

static void put(Machine *m, Warp *w, const Ins *i, uint32_t lanes, const Ins *other, const char *kind, const char *format,
                va_list arguments)
{
    int32_t at = i ? (int32_t)(i - m->program->ins) : -1;
    Finding *f = place(m, kind, at, other ? (int32_t)(other - m->program->ins) : -1, w);
    if (!f) return;
    if (w) {
        f->cta = w->cta->rank;
        f->warp = w->index;
        memcpy(f->ctaid, w->cta->id, sizeof f->ctaid);
    }
    f->lanes = lanes;
    vsnprintf(f->message, sizeof f->message, format, arguments);
}

void finding(Warp *w, const Ins *i, uint32_t lanes, const Ins *other, const char *kind, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    put(w->machine, w, i, lanes, other, kind, format, arguments);
    va_end(arguments);
}

int stop(Warp *w, const Ins *i, uint32_t lanes, const char *kind, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    put(w->machine, w, i, lanes, NULL, kind, format, arguments);
    va_end(arguments);
    w->machine->stopped = 1;
    return EMU_STOP;
}

void machine_finding(Machine *m, const AsyncOp *op, const char *kind, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    put(m, op ? op->warp : NULL, op ? op->ins : NULL, 0, NULL, kind, format, arguments);
    va_end(arguments);
}

void machine_finding_at(Machine *m, const Cta *cta, const Ins *i, const Ins *other, const char *kind, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    put(m, (Warp *)&cta->warps[0], i, 0, other, kind, format, arguments);
    va_end(arguments);
}

void trace(Machine *m, TraceKind kind, int cta, int warp, const Ins *i, int detail, uint64_t time, uint64_t serial)
{
    if (!m->policy.trace) return;
    if (m->n_events == m->events_capacity) {
        m->events_capacity = m->events_capacity ? 2 * m->events_capacity : 4096;
        m->events = realloc(m->events, (size_t)m->events_capacity * sizeof(TraceEvent));
    }
    m->events[m->n_events++] =
        (TraceEvent){time, m->now, kind, cta, warp, i ? (int32_t)(i - m->program->ins) : -1, detail, serial};
}
