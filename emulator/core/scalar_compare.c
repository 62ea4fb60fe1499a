/* Comparison, selection and moves. setp slots: p, q or -1, a, b, combining predicate or -1.
 * imm: 0 combination (0 none, 1 and, 2 or, 3 xor), 1 the combining predicate is negated, 2 .ftz */
#include "scalar.h"

static inline void finish_setp(Warp *w, const Ins *i, uint32_t mask, uint32_t value, uint32_t bad)
{
    uint32_t other = ~value;
    if (i->imm[0]) {
        uint32_t c = i->imm[1] ? ~P(4) : P(4), c_bad = PBAD(4);
        switch (i->imm[0]) {
        case 1: bad = (bad | c_bad) & ~(~c & ~c_bad); value &= c; other &= c; break;
        case 2: bad = (bad | c_bad) & ~(c & ~c_bad); value |= c; other |= c; break;
        default: bad |= c_bad; value ^= c; other ^= c; break;
        }
    }
    if (i->s[0] >= 0)
        set_pred(w, i->s[0], mask, value, bad);
    if (i->s[1] >= 0)
        set_pred(w, i->s[1], mask, other, bad);
}
#define SETP32(id, T, CAST, COND)                                                                                     \
    HANDLER(setp_##id)                                                                                                \
    {                                                                                                                 \
        const uint32_t *a = R(2), *b = R(3);                                                                          \
        Lanes t;                                                                                                      \
        LOOP { T x = CAST(a[l]), y = CAST(b[l]); t[l] = (COND) ? FULL : 0; }                                          \
        finish_setp(w, i, mask, mask_of(t), BAD(2) | BAD(3));                                                         \
        return EMU_NEXT;                                                                                              \
    }                                                                                                                 \
    /* set: slots d, a, b, combining predicate or -1 at 4; imm[3] 1 gives 1.0f instead of all ones */                 \
    HANDLER(set_##id)                                                                                                 \
    {                                                                                                                 \
        const uint32_t *a = R(2), *b = R(3);                                                                          \
        Lanes t;                                                                                                      \
        uint32_t yes = i->imm[3] ? 0x3f800000u : FULL, bad = BAD(2) | BAD(3);                                         \
        uint32_t c = i->imm[0] ? (i->imm[1] ? ~P(4) : P(4)) : 0;                                                      \
        LOOP {                                                                                                        \
            T x = CAST(a[l]), y = CAST(b[l]);                                                                         \
            int r = (COND), o = c >> l & 1;                                                                           \
            r = i->imm[0] == 1 ? r & o : i->imm[0] == 2 ? r | o : i->imm[0] == 3 ? r ^ o : r;                         \
            t[l] = r ? yes : 0;                                                                                       \
        }                                                                                                             \
        if (i->imm[0])                                                                                                \
            bad |= PBAD(4);                                                                                           \
        put(R(0), t, mask);                                                                                           \
        set_bad(w, i->s[0], mask, bad);                                                                               \
        return EMU_NEXT;                                                                                              \
    }
#define SETP64(id, T, CAST, COND)                                                                                     \
    HANDLER(setp_##id)                                                                                                \
    {                                                                                                                 \
        Wide a, b;                                                                                                    \
        Lanes t;                                                                                                      \
        get_wide(w, i->s[2], a);                                                                                      \
        get_wide(w, i->s[3], b);                                                                                      \
        LOOP { T x = CAST(a[l]), y = CAST(b[l]); t[l] = (COND) ? FULL : 0; }                                          \
        finish_setp(w, i, mask, mask_of(t), bad_wide(w, i->s[2]) | bad_wide(w, i->s[3]));                             \
        return EMU_NEXT;                                                                                              \
    }
#define U16(x) ((x) & 0xffffu)
#define I16(x) ((int32_t)(int16_t)(x))
#define I32(x) ((int32_t)(x))
#define I64(x) ((int64_t)(x))
#define SAME(x) (x)
#define F16(x) _cvtsh_ss((uint16_t)(x))
#define BF16(x) f32((x) << 16)
#define FLUSHED(x) f32(i->imm[2] ? flush(x) : (x))
#define ORDER(DEF, suffix, T, CAST)                                                                                   \
    DEF(lt_##suffix, T, CAST, x < y)                                                                                  \
    DEF(le_##suffix, T, CAST, x <= y)                                                                                 \
    DEF(gt_##suffix, T, CAST, x > y)                                                                                  \
    DEF(ge_##suffix, T, CAST, x >= y)
#define EQUAL(DEF, suffix, T, CAST) DEF(eq_##suffix, T, CAST, x == y) DEF(ne_##suffix, T, CAST, x != y)
#define FLOATS(DEF, suffix, T, CAST)                                                                                  \
    ORDER(DEF, suffix, T, CAST)                                                                                       \
    DEF(eq_##suffix, T, CAST, x == y)                                                                                 \
    DEF(ne_##suffix, T, CAST, x < y || x > y)                                                                         \
    DEF(equ_##suffix, T, CAST, !(x < y || x > y))                                                                     \
    DEF(neu_##suffix, T, CAST, x != y)                                                                                \
    DEF(ltu_##suffix, T, CAST, !(x >= y))                                                                             \
    DEF(leu_##suffix, T, CAST, !(x > y))                                                                              \
    DEF(gtu_##suffix, T, CAST, !(x <= y))                                                                             \
    DEF(geu_##suffix, T, CAST, !(x < y))                                                                              \
    DEF(num_##suffix, T, CAST, x == x && y == y)                                                                      \
    DEF(nan_##suffix, T, CAST, x != x || y != y)
EQUAL(SETP32, b32, uint32_t, SAME)
EQUAL(SETP32, b16, uint32_t, U16)
EQUAL(SETP64, b64, uint64_t, SAME)
ORDER(SETP32, u32, uint32_t, SAME)
ORDER(SETP32, s32, int32_t, I32)
ORDER(SETP32, u16, uint32_t, U16)
ORDER(SETP32, s16, int32_t, I16)
ORDER(SETP64, u64, uint64_t, SAME)
ORDER(SETP64, s64, int64_t, I64)
FLOATS(SETP32, f32, float, FLUSHED)
FLOATS(SETP32, f16, float, F16)
FLOATS(SETP32, bf16, float, BF16)
FLOATS(SETP64, f64, double, f64)

/* selp: slots d, a, b, predicate. A lane is poison where the predicate or the chosen source is. */
#define SELECT(id, WORDS)                                                                                             \
    HANDLER(id)                                                                                                       \
    {                                                                                                                 \
        uint32_t p = P(3), p_bad = PBAD(3);                                                                           \
        for (int h = 0; h < WORDS; h++) {                                                                             \
            const uint32_t *a = w->r[i->s[1] + h], *b = w->r[i->s[2] + h];                                            \
            uint32_t bad = p_bad | (w->bad[i->s[1] + h] & p) | (w->bad[i->s[2] + h] & ~p);                            \
            Lanes t;                                                                                                  \
            LOOP t[l] = p >> l & 1 ? a[l] : b[l];                                                                     \
            put(w->r[i->s[0] + h], t, mask);                                                                          \
            set_bad(w, i->s[0] + h, mask, bad);                                                                       \
        }                                                                                                             \
        return EMU_NEXT;                                                                                              \
    }
SELECT(selp_32, 1)
SELECT(selp_64, 2)

/* moves of 1, 2 or 4 words; pack and unpack of 64 bits are the same moves word by word (slots d0.., s0..) */
#define MOVE(id, WORDS)                                                                                               \
    HANDLER(id)                                                                                                       \
    {                                                                                                                 \
        for (int h = 0; h < WORDS; h++) {                                                                             \
            int32_t d = i->s[0] + h, s = i->s[1] + h;                                                                 \
            if (likely(mask == FULL)) {                                                                               \
                memmove(w->r[d], w->r[s], sizeof w->r[d]);                                                            \
                w->bad[d] = w->bad[s];                                                                                \
                continue;                                                                                             \
            }                                                                                                         \
            Lanes t;                                                                                                  \
            memcpy(t, w->r[s], sizeof t);                                                                             \
            put(w->r[d], t, mask);                                                                                    \
            set_bad(w, d, mask, w->bad[s]);                                                                           \
        }                                                                                                             \
        return EMU_NEXT;                                                                                              \
    }
MOVE(mov_32, 1)
MOVE(mov_64, 2)
MOVE(mov_128, 4)
/* two single moves that happen together: slots d0, d1 (each may be -1), s0, s1 */
HANDLER(mov_pair)
{
    Lanes t[2];
    uint32_t bad[2];
    for (int h = 0; h < 2; h++) {
        memcpy(t[h], R(2 + h), sizeof t[h]);
        bad[h] = BAD(2 + h);
    }
    for (int h = 0; h < 2; h++)
        if (i->s[h] >= 0) {
            put(R(h), t[h], mask);
            set_bad(w, i->s[h], mask, bad[h]);
        }
    return EMU_NEXT;
}
/* pack: imm[0] elements of imm[1] bits (8 or 16) into 32-bit words: slots d, s0, s1, ... */
HANDLER(pack)
{
    int n = i->imm[0], bits = i->imm[1], per = 32 / bits;
    uint32_t part = (1u << bits) - 1;
    Lanes t[2];
    uint32_t bad[2] = {0, 0};
    memset(t, 0, sizeof t);
    for (int e = 0; e < n; e++) {
        const uint32_t *a = R(1 + e);
        LOOP t[e / per][l] |= (a[l] & part) << (bits * (e % per));
        bad[e / per] |= BAD(1 + e);
    }
    for (int h = 0; h < (n + per - 1) / per; h++) {
        put(w->r[i->s[0] + h], t[h], mask);
        set_bad(w, i->s[0] + h, mask, bad[h]);
    }
    return EMU_NEXT;
}
/* unpack: the other way: slots d0, d1, ... (each may be -1), s */
HANDLER(unpack)
{
    int n = i->imm[0], bits = i->imm[1], per = 32 / bits;
    uint32_t part = (1u << bits) - 1;
    Lanes s[2];
    uint32_t bad[2];
    for (int h = 0; h < (n + per - 1) / per; h++) {
        memcpy(s[h], w->r[i->s[n] + h], sizeof s[h]);
        bad[h] = w->bad[i->s[n] + h];
    }
    for (int e = 0; e < n; e++) {
        if (i->s[e] < 0)
            continue;
        Lanes t;
        LOOP t[l] = s[e / per][l] >> (bits * (e % per)) & part;
        put(R(e), t, mask);
        set_bad(w, i->s[e], mask, bad[e / per]);
    }
    return EMU_NEXT;
}
