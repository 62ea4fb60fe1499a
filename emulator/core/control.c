/* What steers a warp or the launch: election, convergence, clocks, register budgets, dependent launches. */
#include "emu.h"

HANDLER(elect)
{
    if (BAD(2) & mask) return stop(w, i, BAD(2) & mask, "undefined_value", "the member mask was never written");
    uint32_t members = R(2)[first_lane(mask)];
    int status = converged(w, i, mask, members);
    if (status != EMU_NEXT) return status;
    uint32_t lanes = members & mask, chosen = w->elected;
    if (!(lanes >> chosen & 1)) chosen = w->elected ? 31 - (uint32_t)__builtin_clz(lanes) : first_lane(lanes);
    if (i->s[0] >= 0) {
        EACH_LANE(mask, l) R(0)[l] = chosen;
        set_bad(w, i->s[0], mask, 0);
    }
    if (i->s[1] >= 0) set_pred(w, i->s[1], mask, 1u << chosen, 0);
    return EMU_NEXT;
}

HANDLER(bar_warp_sync)
{
    if (BAD(0) & mask) return stop(w, i, BAD(0) & mask, "undefined_value", "the member mask was never written");
    return converged(w, i, mask, R(0)[first_lane(mask)]);
}

HANDLER(activemask)
{
    EACH_LANE(mask, l) R(0)[l] = mask;
    set_bad(w, i->s[0], mask, 0);
    return EMU_NEXT;
}

/* Time is the number of executed instructions: it grows, and means nothing else. */
HANDLER(clock)
{
    uint64_t now = w->machine->now;
    EACH_LANE(mask, l)
    {
        R(0)[l] = (uint32_t)now;
        if (i->imm[0] == 64) RHI(0)[l] = (uint32_t)(now >> 32);
    }
    set_bad(w, i->s[0], mask, 0);
    if (i->imm[0] == 64) set_bad(w, i->s[0] + 1, mask, 0);
    return EMU_NEXT;
}

HANDLER(nanosleep)
{
    w->tired = 1;
    return EMU_YIELD;
}

HANDLER(trap) { return stop(w, i, mask, "trap", "the kernel stops itself (trap)"); }

/* The registers of a CTA are one pool: an increase waits for what other warps have given back. */
HANDLER(setmaxnreg)
{
    uint32_t wanted = (uint32_t)i->imm[0];
    Cta *cta = w->cta;
    if (wanted < 24 || wanted > 256 || wanted % 8)
        return stop(w, i, mask, "registers", "setmaxnreg %u: a multiple of 8 from 24 to 256 is needed", wanted);
    if (!w->registers) return EMU_NEXT; /* how many the kernel was launched with is not known */
    int32_t change = ((int32_t)wanted - (int32_t)w->registers) * LANES;
    if (i->imm[1] ? change < 0 : change > 0)
        return stop(w, i, mask, "registers", "setmaxnreg.%s from %u to %u registers goes the other way",
                    i->imm[1] ? "inc" : "dec", w->registers, wanted);
    if (change > cta->register_pool) {
        w->wait = (Wait){.kind = WAIT_EVENT, .value = wanted};
        return EMU_AGAIN;
    }
    cta->register_pool -= change;
    w->registers = wanted;
    w->machine->event++;
    return EMU_YIELD;
}

/* The grid behind may begin as far as this CTA goes. */
void let_on(Cta *cta)
{
    if (!cta->has_let_on && !cta->has_waited) cta->machine->stats.hasty_ctas++;
    cta->has_let_on = 1;
}

HANDLER(griddepcontrol)
{
    if (!i->imm[0]) {
        let_on(w->cta);
        return EMU_NEXT;
    }
    w->cta->has_waited = 1;
    if (w->machine->policy.races) w->known[AGENT_PRIOR_GRID] = w->visible[AGENT_PRIOR_GRID] = 1;
    return EMU_NEXT;
}
