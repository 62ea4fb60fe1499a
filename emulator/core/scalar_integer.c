/* Integer arithmetic. 16-bit registers hold their value zero-extended in a slot; results are cut to 16 bits again. */
#include "scalar.h"

#define S(x) ((int32_t)(x))
#define SL(x) ((int64_t)(x))
#define H(x) ((int32_t)(int16_t)(x)) /* 16-bit register read as signed */
#define CUT(x) ((uint32_t)(x) & 0xffffu)

BINARY32(add_32, x + y)
BINARY64(add_64, x + y)
BINARY32(add_16, CUT(x + y))
BINARY64(sub_64, x - y)
BINARY32(sub_16, CUT(x - y))

/* x - x and x ^ x (scalar_logic.c) are zero whatever x is: compilers make zeros that way */
HANDLER(sub_32)
{
    const uint32_t *a = R(1), *b = R(2);
    Lanes t;
    LOOP t[l] = a[l] - b[l];
    uint32_t bad = i->s[1] == i->s[2] ? 0 : BAD(1) | BAD(2);
    put(R(0), t, mask);
    set_bad(w, i->s[0], mask, bad);
    return EMU_NEXT;
}

static inline uint32_t clip(int64_t v) { return v > INT32_MAX ? INT32_MAX : v < INT32_MIN ? (uint32_t)INT32_MIN : (uint32_t)v; }
BINARY32(add_sat_s32, clip((int64_t)S(x) + S(y)))
BINARY32(sub_sat_s32, clip((int64_t)S(x) - S(y)))
BINARY32(add_16x2, CUT(x + y) | (((x >> 16) + (y >> 16)) << 16))

BINARY32(mul_lo_32, x * y)
BINARY32(mul_hi_s32, (uint32_t)(((int64_t)S(x) * S(y)) >> 32))
BINARY32(mul_hi_u32, (uint32_t)(((uint64_t)x * y) >> 32))
BINARY64(mul_lo_64, x * y)
BINARY64(mul_hi_s64, (uint64_t)(((__int128)SL(x) * SL(y)) >> 64))
BINARY64(mul_hi_u64, (uint64_t)(((unsigned __int128)x * y) >> 64))
BINARY32(mul_lo_16, CUT(x * y))
BINARY32(mul_hi_s16, CUT((H(x) * H(y)) >> 16))
BINARY32(mul_hi_u16, CUT(((x & 0xffff) * (y & 0xffff)) >> 16))
BINARY32(mul_wide_s16, (uint32_t)(H(x) * H(y)))
BINARY32(mul_wide_u16, (x & 0xffff) * (y & 0xffff))
TERNARY32(mad_lo_32, x * y + z)
TERNARY32(mad_hi_s32, (uint32_t)(((int64_t)S(x) * S(y)) >> 32) + z)
TERNARY32(mad_hi_u32, (uint32_t)(((uint64_t)x * y) >> 32) + z)
TERNARY64(mad_lo_64, x * y + z)
TERNARY64(mad_hi_s64, (uint64_t)(((__int128)SL(x) * SL(y)) >> 64) + z)
TERNARY64(mad_hi_u64, (uint64_t)(((unsigned __int128)x * y) >> 64) + z)
TERNARY32(mad_lo_16, CUT(x * y + z))
TERNARY32(mad_wide_s16, (uint32_t)(H(x) * H(y)) + z)
TERNARY32(mad_wide_u16, (x & 0xffff) * (y & 0xffff) + z)

/* .wide.{s32,u32}: 32-bit sources, 64-bit result (and addend) */
#define WIDE(id, EXPR)                                                                                                \
    HANDLER(mul_wide_##id)                                                                                            \
    {                                                                                                                 \
        const uint32_t *a = R(1), *b = R(2);                                                                          \
        Wide t;                                                                                                       \
        LOOP { uint32_t x = a[l], y = b[l]; t[l] = (uint64_t)(EXPR); }                                                \
        uint32_t bad = BAD(1) | BAD(2);                                                                               \
        put_wide(w, i->s[0], t, mask);                                                                                \
        set_bad_wide(w, i->s[0], mask, bad);                                                                          \
        return EMU_NEXT;                                                                                              \
    }                                                                                                                 \
    HANDLER(mad_wide_##id)                                                                                            \
    {                                                                                                                 \
        const uint32_t *a = R(1), *b = R(2);                                                                          \
        Wide c, t;                                                                                                    \
        get_wide(w, i->s[3], c);                                                                                      \
        LOOP { uint32_t x = a[l], y = b[l]; t[l] = (uint64_t)(EXPR) + c[l]; }                                         \
        uint32_t bad = BAD(1) | BAD(2) | bad_wide(w, i->s[3]);                                                        \
        put_wide(w, i->s[0], t, mask);                                                                                \
        set_bad_wide(w, i->s[0], mask, bad);                                                                          \
        return EMU_NEXT;                                                                                              \
    }
WIDE(s32, (int64_t)S(x) * S(y))
WIDE(u32, (uint64_t)x * y)

/* Division by zero is unspecified in PTX: the GPU gives all ones, and the dividend as remainder. */
static inline int32_t quotient32(int32_t x, int32_t y) { return y == 0 ? -1 : y == -1 ? (int32_t)(0u - (uint32_t)x) : x / y; }
static inline int32_t remainder32(int32_t x, int32_t y) { return y == 0 ? x : y == -1 ? 0 : x % y; }
static inline int64_t quotient64(int64_t x, int64_t y) { return y == 0 ? -1 : y == -1 ? (int64_t)(0ull - (uint64_t)x) : x / y; }
static inline int64_t remainder64(int64_t x, int64_t y) { return y == 0 ? x : y == -1 ? 0 : x % y; }
BINARY32(div_s32, (uint32_t)quotient32(S(x), S(y)))
BINARY32(div_u32, y == 0 ? FULL : x / y)
BINARY32(rem_s32, (uint32_t)remainder32(S(x), S(y)))
BINARY32(rem_u32, y == 0 ? x : x % y)
BINARY64(div_s64, (uint64_t)quotient64(SL(x), SL(y)))
BINARY64(div_u64, y == 0 ? ~0ull : x / y)
BINARY64(rem_s64, (uint64_t)remainder64(SL(x), SL(y)))
BINARY64(rem_u64, y == 0 ? x : x % y)
BINARY32(div_s16, CUT(quotient32(H(x), H(y))))
BINARY32(div_u16, CUT((y & 0xffff) == 0 ? FULL : (x & 0xffff) / (y & 0xffff)))
BINARY32(rem_s16, CUT(remainder32(H(x), H(y))))
BINARY32(rem_u16, CUT((y & 0xffff) == 0 ? x : (x & 0xffff) % (y & 0xffff)))

UNARY32(abs_s32, S(x) < 0 ? 0u - x : x)
UNARY64(abs_s64, SL(x) < 0 ? 0ull - x : x)
UNARY32(abs_s16, CUT(H(x) < 0 ? 0u - x : x))
UNARY32(neg_s32, 0u - x)
UNARY64(neg_s64, 0ull - x)
UNARY32(neg_s16, CUT(0u - x))

BINARY32(min_s32, S(x) < S(y) ? x : y)
BINARY32(max_s32, S(x) > S(y) ? x : y)
BINARY32(min_u32, x < y ? x : y)
BINARY32(max_u32, x > y ? x : y)
BINARY64(min_s64, SL(x) < SL(y) ? x : y)
BINARY64(max_s64, SL(x) > SL(y) ? x : y)
BINARY64(min_u64, x < y ? x : y)
BINARY64(max_u64, x > y ? x : y)
BINARY32(min_s16, CUT(H(x) < H(y) ? x : y))
BINARY32(max_s16, CUT(H(x) > H(y) ? x : y))
BINARY32(min_u16, CUT(x) < CUT(y) ? CUT(x) : CUT(y))
BINARY32(max_u16, CUT(x) > CUT(y) ? CUT(x) : CUT(y))
static inline uint32_t relu(int32_t x) { return x < 0 ? 0u : (uint32_t)x; }
BINARY32(min_relu_s32, relu(S(x) < S(y) ? S(x) : S(y)))
BINARY32(max_relu_s32, relu(S(x) > S(y) ? S(x) : S(y)))

/* packed pairs: EXPR16 on p, q (int32 of each half) */
#define PAIR16(id, SIGN, EXPR16)                                                                                      \
    static inline uint32_t id##_half(int32_t p, int32_t q) { return CUT(EXPR16); }                                    \
    BINARY32(id, id##_half(SIGN(x), SIGN(y)) | id##_half(SIGN(x >> 16), SIGN(y >> 16)) << 16)
#define UNSIGNED_HALF(x) ((int32_t)((x) & 0xffff))
PAIR16(min_s16x2, H, p < q ? p : q)
PAIR16(max_s16x2, H, p > q ? p : q)
PAIR16(min_u16x2, UNSIGNED_HALF, p < q ? p : q)
PAIR16(max_u16x2, UNSIGNED_HALF, p > q ? p : q)
PAIR16(min_relu_s16x2, H, relu(p < q ? p : q))
PAIR16(max_relu_s16x2, H, relu(p > q ? p : q))

TERNARY32(sad_s32, z + (S(x) > S(y) ? x - y : y - x))
TERNARY32(sad_u32, z + (x > y ? x - y : y - x))

/* dp4a / dp2a: imm[0], imm[1] say whether a and b are signed; imm[2]: dp2a takes the high half of b */
static inline int32_t byte_of(uint32_t x, int n, int is_signed)
{
    uint32_t b = (x >> (8 * n)) & 0xff;
    return is_signed ? (int32_t)(int8_t)b : (int32_t)b;
}
static inline uint32_t dot4(uint32_t x, uint32_t y, uint32_t z, int sx, int sy)
{
    for (int n = 0; n < 4; n++)
        z += (uint32_t)(byte_of(x, n, sx) * byte_of(y, n, sy));
    return z;
}
static inline uint32_t dot2(uint32_t x, uint32_t y, uint32_t z, int sx, int sy, int high)
{
    for (int n = 0; n < 2; n++) {
        uint32_t half = (x >> (16 * n)) & 0xffff;
        z += (uint32_t)((sx ? H(half) : (int32_t)half) * byte_of(y, n + 2 * high, sy));
    }
    return z;
}
TERNARY32(dp4a, dot4(x, y, z, i->imm[0], i->imm[1]))
TERNARY32(dp2a, dot2(x, y, z, i->imm[0], i->imm[1], i->imm[2]))
