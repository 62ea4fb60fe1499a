/* Bits: logic, shifts, fields, permutations, counts. A shift count at or above the width gives what shifting all out gives. */
#include "scalar.h"

/* A lane of `and` is known when one source is a defined zero, of `or` when one is all ones. */
HANDLER(and_b32)
{
    const uint32_t *a = R(1), *b = R(2);
    uint32_t bad = BAD(1) | BAD(2);
    if (unlikely(bad & mask)) {
        uint32_t known = 0;
        LOOP known |= (uint32_t)((a[l] == 0 && !(BAD(1) >> l & 1)) || (b[l] == 0 && !(BAD(2) >> l & 1))) << l;
        bad &= ~known;
    }
    Lanes t;
    LOOP t[l] = a[l] & b[l];
    put(R(0), t, mask);
    set_bad(w, i->s[0], mask, bad);
    return EMU_NEXT;
}
HANDLER(or_b32)
{
    const uint32_t *a = R(1), *b = R(2);
    uint32_t bad = BAD(1) | BAD(2);
    if (unlikely(bad & mask)) {
        uint32_t known = 0;
        LOOP known |= (uint32_t)((a[l] == FULL && !(BAD(1) >> l & 1)) || (b[l] == FULL && !(BAD(2) >> l & 1))) << l;
        bad &= ~known;
    }
    Lanes t;
    LOOP t[l] = a[l] | b[l];
    put(R(0), t, mask);
    set_bad(w, i->s[0], mask, bad);
    return EMU_NEXT;
}
HANDLER(xor_b32)
{
    const uint32_t *a = R(1), *b = R(2);
    Lanes t;
    LOOP t[l] = a[l] ^ b[l];
    uint32_t bad = i->s[1] == i->s[2] ? 0 : BAD(1) | BAD(2);
    put(R(0), t, mask);
    set_bad(w, i->s[0], mask, bad);
    return EMU_NEXT;
}
/* 64-bit logic keeps the poison of the halves apart: packing and unpacking goes through it */
#define LOGIC64(id, EXPR)                                                                                             \
    HANDLER(id)                                                                                                       \
    {                                                                                                                 \
        for (int h = 0; h < 2; h++) {                                                                                 \
            const uint32_t *a = w->r[i->s[1] + h], *b = w->r[i->s[2] + h];                                            \
            Lanes t;                                                                                                  \
            LOOP { uint32_t x = a[l], y = b[l]; t[l] = (EXPR); }                                                      \
            uint32_t bad = w->bad[i->s[1] + h] | w->bad[i->s[2] + h];                                                 \
            put(w->r[i->s[0] + h], t, mask);                                                                          \
            set_bad(w, i->s[0] + h, mask, bad);                                                                       \
        }                                                                                                             \
        return EMU_NEXT;                                                                                              \
    }
LOGIC64(and_b64, x & y)
LOGIC64(or_b64, x | y)
LOGIC64(xor_b64, x ^ y)
UNARY32(not_b32, ~x)
UNARY32(not_b16, ~x & 0xffffu)
UNARY64(not_b64, ~x)
UNARY32(cnot_b32, x == 0)
UNARY32(cnot_b16, x == 0)
UNARY64(cnot_b64, x == 0)

/* lop3 by its truth table imm[0]: bit (4a + 2b + c) is the result */
static inline uint32_t table3(uint32_t x, uint32_t y, uint32_t z, uint32_t lut)
{
    uint32_t r = 0;
    r |= lut & 0x01 ? ~x & ~y & ~z : 0;
    r |= lut & 0x02 ? ~x & ~y & z : 0;
    r |= lut & 0x04 ? ~x & y & ~z : 0;
    r |= lut & 0x08 ? ~x & y & z : 0;
    r |= lut & 0x10 ? x & ~y & ~z : 0;
    r |= lut & 0x20 ? x & ~y & z : 0;
    r |= lut & 0x40 ? x & y & ~z : 0;
    r |= lut & 0x80 ? x & y & z : 0;
    return r;
}
TERNARY32(lop3_b32, table3(x, y, z, (uint32_t)i->imm[0]))

BINARY32(shl_b32, y > 31 ? 0 : x << y)
BINARY32(shr_u32, y > 31 ? 0 : x >> y)
BINARY32(shr_s32, (uint32_t)((int32_t)x >> (y > 31 ? 31 : y)))
BINARY32(shl_b16, y > 15 ? 0 : (x << y) & 0xffffu)
BINARY32(shr_u16, y > 15 ? 0 : (x & 0xffffu) >> y)
BINARY32(shr_s16, (uint32_t)((int32_t)(int16_t)x >> (y > 15 ? 15 : y)) & 0xffffu)
/* the count of a 64-bit shift is a 32-bit register */
#define SHIFT64(id, EXPR)                                                                                             \
    HANDLER(id)                                                                                                       \
    {                                                                                                                 \
        const uint32_t *b = R(2);                                                                                     \
        Wide a, t;                                                                                                    \
        get_wide(w, i->s[1], a);                                                                                      \
        LOOP { uint64_t x = a[l]; uint32_t y = b[l]; t[l] = (EXPR); }                                                 \
        uint32_t bad = bad_wide(w, i->s[1]) | BAD(2);                                                                 \
        put_wide(w, i->s[0], t, mask);                                                                                \
        set_bad_wide(w, i->s[0], mask, bad);                                                                          \
        return EMU_NEXT;                                                                                              \
    }
SHIFT64(shl_b64, y > 63 ? 0 : x << y)
SHIFT64(shr_u64, y > 63 ? 0 : x >> y)
SHIFT64(shr_s64, (uint64_t)((int64_t)x >> (y > 63 ? 63 : y)))

/* funnel shifts of {b, a} (b is the high word) */
static inline uint64_t pair(uint32_t low, uint32_t high) { return (uint64_t)high << 32 | low; }
TERNARY32(shf_l_wrap_b32, (uint32_t)(pair(x, y) << (z & 31) >> 32))
TERNARY32(shf_r_wrap_b32, (uint32_t)(pair(x, y) >> (z & 31)))
TERNARY32(shf_l_clamp_b32, (uint32_t)(pair(x, y) << (z > 32 ? 32 : z) >> 32))
TERNARY32(shf_r_clamp_b32, (uint32_t)(pair(x, y) >> (z > 32 ? 32 : z)))

/* prmt: four selectors of 4 bits, bit 3 replicates the sign of the byte; imm[0] is the mode */
enum { PRMT_INDEX, PRMT_F4E, PRMT_B4E, PRMT_RC8, PRMT_ECL, PRMT_ECR, PRMT_RC16 };
static inline uint32_t selectors(uint32_t z, int mode)
{
    uint32_t n = z & 3;
    switch (mode) {
    case PRMT_F4E: return n | (n + 1) << 4 | (n + 2) << 8 | (n + 3) << 12;
    case PRMT_B4E: return n | ((n + 7) & 7) << 4 | ((n + 6) & 7) << 8 | ((n + 5) & 7) << 12;
    case PRMT_RC8: return n * 0x1111;
    case PRMT_ECL: return n | (n > 1 ? n : 1) << 4 | (n > 2 ? n : 2) << 8 | 3 << 12;
    case PRMT_ECR: return 0 | (n < 1 ? n : 1) << 4 | (n < 2 ? n : 2) << 8 | n << 12;
    case PRMT_RC16: return n & 1 ? 0x3232 : 0x1010;
    default: return z;
    }
}
static inline uint32_t permute(uint32_t x, uint32_t y, uint32_t z, int mode)
{
    uint64_t bytes = pair(x, y);
    uint32_t s = selectors(z, mode), r = 0;
    for (int n = 0; n < 4; n++, s >>= 4) {
        uint32_t b = (uint32_t)(bytes >> (8 * (s & 7))) & 0xff;
        if (s & 8 && mode == PRMT_INDEX)
            b = b & 0x80 ? 0xff : 0;
        r |= b << (8 * n);
    }
    return r;
}
/* a source of which no byte is taken does not poison the result */
HANDLER(prmt_b32)
{
    const uint32_t *a = R(1), *b = R(2), *c = R(3);
    uint32_t from_a = 0, from_b = 0;
    Lanes t;
    LOOP t[l] = permute(a[l], b[l], c[l], i->imm[0]);
    uint32_t bad = BAD(3);
    if (unlikely((BAD(1) | BAD(2)) & mask)) {
        LOOP {
            uint32_t s = selectors(c[l], i->imm[0]);
            from_a |= (uint32_t)((s & 0x4444) != 0x4444) << l;
            from_b |= (uint32_t)((s & 0x4444) != 0) << l;
        }
        bad |= (BAD(1) & from_a) | (BAD(2) & from_b);
    }
    put(R(0), t, mask);
    set_bad(w, i->s[0], mask, bad);
    return EMU_NEXT;
}

static inline uint32_t reverse32(uint32_t x)
{
    x = (x >> 1 & 0x55555555u) | (x & 0x55555555u) << 1;
    x = (x >> 2 & 0x33333333u) | (x & 0x33333333u) << 2;
    x = (x >> 4 & 0x0f0f0f0fu) | (x & 0x0f0f0f0fu) << 4;
    return __builtin_bswap32(x);
}
UNARY32(brev_b32, reverse32(x))
UNARY64(brev_b64, (uint64_t)reverse32((uint32_t)x) << 32 | reverse32((uint32_t)(x >> 32)))

/* bfe: position and length are the low 8 bits of their operands; bits beyond the width are copies of the sign or 0 */
static inline uint64_t extract(uint64_t x, uint32_t position, uint32_t length, int width, int is_signed)
{
    position &= 0xff;
    length &= 0xff;
    int sign = 0;
    if (is_signed && length) {
        uint32_t at = position + length - 1;
        sign = (int)(x >> (at > (uint32_t)width - 1 ? (uint32_t)width - 1 : at) & 1);
    }
    uint64_t r = 0;
    for (int n = 0; n < width; n++) {
        uint64_t bit = (uint32_t)n < length && position + (uint32_t)n < (uint32_t)width ? x >> (position + (uint32_t)n) & 1 : (uint64_t)sign;
        r |= bit << n;
    }
    return r;
}
TERNARY32(bfe_u32, (uint32_t)extract(x, y, z, 32, 0))
TERNARY32(bfe_s32, (uint32_t)extract(x, y, z, 32, 1))
#define FIELD64(id, SIGNED)                                                                                           \
    HANDLER(id)                                                                                                       \
    {                                                                                                                 \
        const uint32_t *b = R(2), *c = R(3);                                                                          \
        Wide a, t;                                                                                                    \
        get_wide(w, i->s[1], a);                                                                                      \
        LOOP t[l] = extract(a[l], b[l], c[l], 64, SIGNED);                                                            \
        uint32_t bad = bad_wide(w, i->s[1]) | BAD(2) | BAD(3);                                                        \
        put_wide(w, i->s[0], t, mask);                                                                                \
        set_bad_wide(w, i->s[0], mask, bad);                                                                          \
        return EMU_NEXT;                                                                                              \
    }
FIELD64(bfe_u64, 0)
FIELD64(bfe_s64, 1)

static inline uint64_t field_mask(uint32_t position, uint32_t length, int width)
{
    uint64_t m = 0;
    for (uint32_t n = position & 0xff; n < (uint32_t)width && n < (position & 0xff) + (length & 0xff); n++)
        m |= 1ull << n;
    return m;
}
static inline uint64_t insert(uint64_t field, uint64_t base, uint32_t position, uint32_t length, int width)
{
    uint64_t m = field_mask(position, length, width);
    return (base & ~m) | ((position & 0xff) < 64 ? field << (position & 0xff) & m : 0);
}
HANDLER(bfi_b32)
{
    const uint32_t *a = R(1), *b = R(2), *c = R(3), *d = R(4);
    Lanes t;
    LOOP t[l] = (uint32_t)insert(a[l], b[l], c[l], d[l], 32);
    uint32_t bad = BAD(1) | BAD(2) | BAD(3) | BAD(4);
    put(R(0), t, mask);
    set_bad(w, i->s[0], mask, bad);
    return EMU_NEXT;
}
HANDLER(bfi_b64)
{
    const uint32_t *c = R(3), *d = R(4);
    Wide a, b, t;
    get_wide(w, i->s[1], a);
    get_wide(w, i->s[2], b);
    LOOP t[l] = insert(a[l], b[l], c[l], d[l], 64);
    uint32_t bad = bad_wide(w, i->s[1]) | bad_wide(w, i->s[2]) | BAD(3) | BAD(4);
    put_wide(w, i->s[0], t, mask);
    set_bad_wide(w, i->s[0], mask, bad);
    return EMU_NEXT;
}
/* bmsk: imm[0] 1 wraps position and length at 32 */
BINARY32(bmsk_b32, i->imm[0] ? (uint32_t)(((1ull << (y & 31)) - 1) << (x & 31))
                             : (uint32_t)(x > 31 ? 0 : ((y > 31 ? (uint64_t)FULL : (1ull << y) - 1) << x)))
/* szext: sign or zero extension (imm[0]) from y bits; imm[1] wraps y at 32 */
static inline uint32_t size_extend(uint32_t x, uint32_t y, int is_signed, int wrap)
{
    y = wrap ? y & 31 : y;
    if (y > 31)
        return x;
    uint32_t low = y ? x & ((1u << y) - 1) : 0;
    return is_signed && y && x >> (y - 1) & 1 ? low | ~((1u << y) - 1) : low;
}
BINARY32(szext_32, size_extend(x, y, i->imm[0], i->imm[1]))

/* counts: the result is always a 32-bit register */
#define COUNT64(id, EXPR)                                                                                             \
    HANDLER(id)                                                                                                       \
    {                                                                                                                 \
        Wide a;                                                                                                       \
        Lanes t;                                                                                                      \
        get_wide(w, i->s[1], a);                                                                                      \
        LOOP { uint64_t x = a[l]; t[l] = (uint32_t)(EXPR); }                                                          \
        uint32_t bad = bad_wide(w, i->s[1]);                                                                          \
        put(R(0), t, mask);                                                                                           \
        set_bad(w, i->s[0], mask, bad);                                                                               \
        return EMU_NEXT;                                                                                              \
    }
UNARY32(popc_b32, (uint32_t)__builtin_popcount(x))
COUNT64(popc_b64, __builtin_popcountll(x))
UNARY32(clz_b32, x ? (uint32_t)__builtin_clz(x) : 32)
COUNT64(clz_b64, x ? __builtin_clzll(x) : 64)
/* bfind: highest bit that differs from the sign; imm[0]: as the shift that brings it to the top */
static inline uint32_t highest32(uint32_t x, int shift) { return x ? (shift ? (uint32_t)__builtin_clz(x) : 31u - (uint32_t)__builtin_clz(x)) : FULL; }
static inline uint32_t highest64(uint64_t x, int shift) { return x ? (shift ? (uint32_t)__builtin_clzll(x) : 63u - (uint32_t)__builtin_clzll(x)) : FULL; }
UNARY32(bfind_u32, highest32(x, i->imm[0]))
UNARY32(bfind_s32, highest32((int32_t)x < 0 ? ~x : x, i->imm[0]))
COUNT64(bfind_u64, highest64(x, i->imm[0]))
COUNT64(bfind_s64, highest64((int64_t)x < 0 ? ~x : x, i->imm[0]))

/* predicates: and is known when one side is a defined false, or when one is a defined true */
HANDLER(and_pred)
{
    uint32_t a = P(1), b = P(2), bad = PBAD(1) | PBAD(2);
    bad &= ~((~a & ~PBAD(1)) | (~b & ~PBAD(2)));
    set_pred(w, i->s[0], mask, a & b, bad);
    return EMU_NEXT;
}
HANDLER(or_pred)
{
    uint32_t a = P(1), b = P(2), bad = PBAD(1) | PBAD(2);
    bad &= ~((a & ~PBAD(1)) | (b & ~PBAD(2)));
    set_pred(w, i->s[0], mask, a | b, bad);
    return EMU_NEXT;
}
HANDLER(xor_pred)
{
    set_pred(w, i->s[0], mask, P(1) ^ P(2), PBAD(1) | PBAD(2));
    return EMU_NEXT;
}
HANDLER(not_pred)
{
    set_pred(w, i->s[0], mask, ~P(1), PBAD(1));
    return EMU_NEXT;
}
HANDLER(mov_pred)
{
    set_pred(w, i->s[0], mask, P(1), PBAD(1));
    return EMU_NEXT;
}
