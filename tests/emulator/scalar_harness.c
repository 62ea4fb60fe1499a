/* Runs straight-line bytecode on one warp, without the machine: what the opcode tests need of the core. */
#include "emu.h"

extern const HandlerEntry *__start_emu_handlers[];
extern const HandlerEntry *__stop_emu_handlers[];
static char stop_message[400];
static uint32_t live_lanes;

int handler_count(void) { return (int)(__stop_emu_handlers - __start_emu_handlers); }
const char *handler_name(int n) { return __start_emu_handlers[n]->name; }
const char *message(void) { return stop_message; }

int converged(Warp *w, const Ins *i, uint32_t mask, uint32_t members)
{
    (void)w, (void)i;
    return (members & live_lanes & ~mask) == 0 ? EMU_NEXT : EMU_AGAIN;
}
int stop(Warp *w, const Ins *i, uint32_t lanes, const char *kind, const char *format, ...)
{
    (void)w, (void)i, (void)lanes, (void)format;
    strncpy(stop_message, kind, sizeof stop_message - 1);
    return EMU_STOP;
}

/* Status of the last handler; `exit` flags end the run. */
int run(const InsCode *codes, int n, const int32_t *slots, uint32_t *r, uint32_t *bad, uint32_t *p, uint32_t *pbad, uint32_t mask,
        uint32_t live)
{
    static Warp warp;
    Warp *w = &warp;
    memset(w, 0, sizeof *w);
    w->r = (uint32_t(*)[LANES])r;
    w->bad = bad, w->p = p, w->pbad = pbad, w->live = live;
    live_lanes = live;
    for (int k = 0; k < n; k++) {
        if (codes[k].flags & INS_EXIT)
            return EMU_NEXT;
        Ins i = {.run = __start_emu_handlers[codes[k].handler]->run, .s = slots + codes[k].slot_first, .n_slots = codes[k].n_slots};
        memcpy(i.imm, codes[k].imm, sizeof i.imm);
        uint32_t lanes = mask;
        if (codes[k].guard >= 0)
            lanes &= codes[k].guard_negate ? ~p[codes[k].guard] : p[codes[k].guard];
        int status = lanes ? i.run(w, &i, lanes) : EMU_NEXT;
        if (status != EMU_NEXT)
            return status;
    }
    return EMU_NEXT;
}
