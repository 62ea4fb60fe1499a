/* What lanes of a warp exchange: shfl, vote, match, redux. All take a member mask: the lanes that must come together. */
#include "scalar.h"

/* Runs BODY for each group of lanes with the same member mask; `members` and `group` are visible in it. */
#define FOR_GROUPS(slot)                                                                                              \
    const uint32_t *member_masks = R(slot);                                                                           \
    for (uint32_t rest = mask; rest;) {                                                                               \
        uint32_t members = member_masks[first_lane(rest)];                                                            \
        int status = converged(w, i, mask, members);                                                                  \
        if (status != EMU_NEXT)                                                                                       \
            return status;                                                                                            \
        uint32_t together = same_value(member_masks, rest, members);                                                  \
        if (together & ~members)                                                                                      \
            return stop(w, i, together & ~members, "convergence",                                                     \
                        "lane %u executes this with member mask 0x%08x, which leaves it out",                         \
                        first_lane(together & ~members), members);                                                    \
        rest &= ~together;                                                                                            \
    }                                                                                                                 \
    if (unlikely(BAD(slot) & mask))                                                                                   \
        return stop(w, i, BAD(slot) & mask, "undefined_value", "the member mask was never written");                  \
    for (uint32_t rest = mask, members, group;                                                                        \
         rest && (members = member_masks[first_lane(rest)], group = same_value(member_masks, rest, members), 1);      \
         rest &= ~group)

static inline uint32_t same_value(const uint32_t *values, uint32_t lanes, uint32_t value)
{
    uint32_t same = 0;
    LOOP same |= (uint32_t)(values[l] == value) << l;
    return same & lanes;
}

/* slots d, p or -1, a, b, c, members; imm[0]: 0 idx, 1 up, 2 down, 3 bfly. A source lane that does not take part gives
 * an undefined value. */
HANDLER(shfl)
{
    const uint32_t *a = R(2), *b = R(3), *c = R(4);
    Lanes t;
    uint32_t in_range = 0, bad = 0;
    FOR_GROUPS(5) {
        EACH_LANE(group, l) {
            uint32_t clamp = c[l] & 31, segment = c[l] >> 8 & 31, offset = b[l] & 31;
            uint32_t last = (l & segment) | (clamp & ~segment);
            int from, valid;
            switch (i->imm[0]) {
            case 1: from = (int)l - (int)offset; valid = from >= (int)last; break;
            case 2: from = (int)(l + offset); valid = from <= (int)last; break;
            case 3: from = (int)(l ^ offset); valid = from <= (int)last; break;
            default: from = (int)((l & segment) | (offset & ~segment)); valid = from <= (int)last; break;
            }
            if (!valid)
                from = (int)l;
            t[l] = a[from];
            in_range |= (uint32_t)valid << l;
            bad |= ((BAD(2) >> from & 1) | (uint32_t)!(group >> from & 1)) << l;
        }
    }
    bad |= BAD(3) | BAD(4);
    if (i->s[0] >= 0) {
        EACH_LANE(mask, l) R(0)[l] = t[l];
        set_bad(w, i->s[0], mask, bad);
    }
    if (i->s[1] >= 0)
        set_pred(w, i->s[1], mask, in_range, BAD(3) | BAD(4));
    return EMU_NEXT;
}

/* slots d (predicate; ballot: register), a (predicate), members; imm: 0 all, 1 any, 2 uni, 3 ballot; 1 a is negated */
HANDLER(vote)
{
    uint32_t value = i->imm[1] ? ~P(1) : P(1), result = 0, bad = 0;
    Lanes t;
    FOR_GROUPS(2) {
        uint32_t yes = value & group;
        if (PBAD(1) & group)
            bad |= group;
        int r = i->imm[0] == 0 ? yes == group : i->imm[0] == 1 ? yes != 0 : yes == group || yes == 0;
        result |= r ? group : 0;
        EACH_LANE(group, l) t[l] = yes;
    }
    if (i->imm[0] != 3) {
        set_pred(w, i->s[0], mask, result, bad);
        return EMU_NEXT;
    }
    EACH_LANE(mask, l) R(0)[l] = t[l];
    set_bad(w, i->s[0], mask, bad);
    return EMU_NEXT;
}

/* slots d, p or -1, a (32 or 64 bits), members; imm: 0 any, 1 all; 1 words of a */
HANDLER(match)
{
    Wide a;
    Lanes t;
    uint32_t equal = 0, bad = 0, a_bad = BAD(2);
    if (i->imm[1] == 2) {
        get_wide(w, i->s[2], a);
        a_bad |= w->bad[i->s[2] + 1];
    } else {
        LOOP a[l] = R(2)[l];
    }
    FOR_GROUPS(3) {
        uint64_t first = a[first_lane(group)];
        int all = 1;
        EACH_LANE(group, l) {
            t[l] = 0;
            EACH_LANE(group, other) t[l] |= (uint32_t)(a[other] == a[l]) << other;
            all &= a[l] == first;
        }
        if (i->imm[0])
            EACH_LANE(group, l) t[l] = all ? group : 0;
        equal |= all ? group : 0;
        bad |= a_bad & group ? group : 0;
    }
    if (i->s[0] >= 0) {
        EACH_LANE(mask, l) R(0)[l] = t[l];
        set_bad(w, i->s[0], mask, bad);
    }
    if (i->s[1] >= 0)
        set_pred(w, i->s[1], mask, equal, bad);
    return EMU_NEXT;
}

/* slots d, a, members; imm[0]: 0 add, 1 and, 2 or, 3 xor, 4 min.s32, 5 max.s32, 6 min.u32, 7 max.u32, 8 min.f32, 9 max.f32;
 * imm[1]: 1 .abs, 2 .NaN */
static inline uint32_t reduce_float(uint32_t x, uint32_t y, int maximum, int flags)
{
    if (is_nan32(x) || is_nan32(y)) {
        if (flags & 2 || (is_nan32(x) && is_nan32(y)))
            return NAN32;
        return is_nan32(x) ? y : x;
    }
    if (f32(x) == f32(y))
        return maximum ? x & y : x | y;
    return (f32(x) > f32(y)) == maximum ? x : y;
}
HANDLER(redux)
{
    Lanes t;
    uint32_t bad = 0;
    FOR_GROUPS(2) {
        uint32_t r = 0, first = 1;
        EACH_LANE(group, l) {
            uint32_t x = R(1)[l];
            if (i->imm[1] & 1)
                x &= 0x7fffffffu;
            if (first) {
                r = i->imm[0] >= 8 && is_nan32(x) ? NAN32 : x;
                first = 0;
                continue;
            }
            switch (i->imm[0]) {
            case 0: r += x; break;
            case 1: r &= x; break;
            case 2: r |= x; break;
            case 3: r ^= x; break;
            case 4: r = (int32_t)x < (int32_t)r ? x : r; break;
            case 5: r = (int32_t)x > (int32_t)r ? x : r; break;
            case 6: r = x < r ? x : r; break;
            case 7: r = x > r ? x : r; break;
            default: r = reduce_float(r, x, i->imm[0] == 9, i->imm[1]); break;
            }
        }
        EACH_LANE(group, l) t[l] = r;
        bad |= BAD(1) & group ? group : 0;
    }
    EACH_LANE(mask, l) R(0)[l] = t[l];
    set_bad(w, i->s[0], mask, bad);
    return EMU_NEXT;
}
