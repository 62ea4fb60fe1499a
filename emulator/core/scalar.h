/* What the scalar handlers share: 32-lane loops that the compiler vectorises, masked writes, poison, float bits. */
#ifndef DSV4_SCALAR_H
#define DSV4_SCALAR_H

#pragma GCC target("avx2,fma,f16c")
#pragma GCC optimize("no-math-errno", "no-trapping-math")

#include <immintrin.h>
#include <math.h>

#include "emu.h"

#define NAN32 0x7fffffffu
#define NAN64 0x7fffffffffffffffull
#define QUIET64 (1ull << 51)
#define DEFAULT_NAN64 (0x1fffull << 51)
#define NAN16 0x7fffu
#define LOOP for (int l = 0; l < LANES; l++)

typedef uint32_t Lanes[LANES] __attribute__((aligned(32)));
typedef uint64_t Wide[LANES] __attribute__((aligned(32)));

static inline void put(uint32_t *restrict d, const uint32_t *restrict t, uint32_t mask)
{
    if (likely(mask == FULL)) {
        memcpy(d, t, LANES * sizeof *d);
        return;
    }
    LOOP d[l] = (mask >> l) & 1 ? t[l] : d[l];
}
static inline void put_wide(Warp *w, int32_t slot, const uint64_t *restrict t, uint32_t mask)
{
    uint32_t *restrict low = w->r[slot], *restrict high = w->r[slot + 1];
    if (likely(mask == FULL)) {
        LOOP low[l] = (uint32_t)t[l];
        LOOP high[l] = (uint32_t)(t[l] >> 32);
        return;
    }
    LOOP low[l] = (mask >> l) & 1 ? (uint32_t)t[l] : low[l];
    LOOP high[l] = (mask >> l) & 1 ? (uint32_t)(t[l] >> 32) : high[l];
}
static inline void get_wide(const Warp *w, int32_t slot, uint64_t *restrict t)
{
    const uint32_t *restrict low = w->r[slot], *restrict high = w->r[slot + 1];
    LOOP t[l] = (uint64_t)high[l] << 32 | low[l];
}
static inline uint32_t bad_wide(const Warp *w, int32_t slot) { return w->bad[slot] | w->bad[slot + 1]; }
static inline void set_bad_wide(Warp *w, int32_t slot, uint32_t mask, uint32_t bad)
{
    set_bad(w, slot, mask, bad);
    set_bad(w, slot + 1, mask, bad);
}
static inline uint32_t mask_of(const uint32_t *t) /* lanes whose value has its highest bit set */
{
    uint32_t mask = 0;
    for (int l = 0; l < LANES; l += 8)
        mask |= (uint32_t)_mm256_movemask_ps(_mm256_loadu_ps((const float *)(t + l))) << l;
    return mask;
}

static inline float f32(uint32_t bits) { float f; memcpy(&f, &bits, 4); return f; }
static inline uint32_t bits32(float f) { uint32_t b; memcpy(&b, &f, 4); return b; }
static inline double f64(uint64_t bits) { double f; memcpy(&f, &bits, 8); return f; }
static inline uint64_t bits64(double f) { uint64_t b; memcpy(&b, &f, 8); return b; }
/* PTX: arithmetic that gives a NaN gives the canonical one. */
static inline uint32_t canonical(float f) { return f != f ? NAN32 : bits32(f); }
static inline uint64_t canonical64(double f) { return f != f ? NAN64 : bits64(f); }
static inline int is_nan32(uint32_t b) { return (b & 0x7fffffffu) > 0x7f800000u; }
static inline int is_nan64(uint64_t b) { return b << 1 > 0x7ffull << 53; }
/* .ftz: subnormal numbers become zero of the same sign */
static inline uint32_t flush(uint32_t b) { return (b & 0x7f800000u) == 0 ? b & 0x80000000u : b; }
/* .sat: into [0, 1], NaN gives +0 */
static inline uint32_t saturate(uint32_t b)
{
    float f = f32(b);
    return f > 0.0f ? (f < 1.0f ? b : 0x3f800000u) : 0u;
}

/* Handlers of one, two and three sources of 32 bits; EXPR sees x, y, z and the int32 immediates of the instruction. */
#define UNARY32(id, EXPR)                                                                                             \
    HANDLER(id)                                                                                                       \
    {                                                                                                                 \
        const uint32_t *a = R(1);                                                                                     \
        Lanes t;                                                                                                      \
        LOOP { uint32_t x = a[l]; t[l] = (EXPR); }                                                                    \
        uint32_t bad = BAD(1);                                                                                        \
        put(R(0), t, mask);                                                                                           \
        set_bad(w, i->s[0], mask, bad);                                                                               \
        return EMU_NEXT;                                                                                              \
    }
#define BINARY32(id, EXPR)                                                                                            \
    HANDLER(id)                                                                                                       \
    {                                                                                                                 \
        const uint32_t *a = R(1), *b = R(2);                                                                          \
        Lanes t;                                                                                                      \
        LOOP { uint32_t x = a[l], y = b[l]; t[l] = (EXPR); }                                                          \
        uint32_t bad = BAD(1) | BAD(2);                                                                               \
        put(R(0), t, mask);                                                                                           \
        set_bad(w, i->s[0], mask, bad);                                                                               \
        return EMU_NEXT;                                                                                              \
    }
#define TERNARY32(id, EXPR)                                                                                           \
    HANDLER(id)                                                                                                       \
    {                                                                                                                 \
        const uint32_t *a = R(1), *b = R(2), *c = R(3);                                                               \
        Lanes t;                                                                                                      \
        LOOP { uint32_t x = a[l], y = b[l], z = c[l]; t[l] = (EXPR); }                                                \
        uint32_t bad = BAD(1) | BAD(2) | BAD(3);                                                                      \
        put(R(0), t, mask);                                                                                           \
        set_bad(w, i->s[0], mask, bad);                                                                               \
        return EMU_NEXT;                                                                                              \
    }
/* The same for 64-bit registers. */
#define UNARY64(id, EXPR)                                                                                             \
    HANDLER(id)                                                                                                       \
    {                                                                                                                 \
        Wide a, t;                                                                                                    \
        get_wide(w, i->s[1], a);                                                                                      \
        LOOP { uint64_t x = a[l]; t[l] = (EXPR); }                                                                    \
        uint32_t bad = bad_wide(w, i->s[1]);                                                                          \
        put_wide(w, i->s[0], t, mask);                                                                                \
        set_bad_wide(w, i->s[0], mask, bad);                                                                          \
        return EMU_NEXT;                                                                                              \
    }
#define BINARY64(id, EXPR)                                                                                            \
    HANDLER(id)                                                                                                       \
    {                                                                                                                 \
        Wide a, b, t;                                                                                                 \
        get_wide(w, i->s[1], a);                                                                                      \
        get_wide(w, i->s[2], b);                                                                                      \
        LOOP { uint64_t x = a[l], y = b[l]; t[l] = (EXPR); }                                                          \
        uint32_t bad = bad_wide(w, i->s[1]) | bad_wide(w, i->s[2]);                                                   \
        put_wide(w, i->s[0], t, mask);                                                                                \
        set_bad_wide(w, i->s[0], mask, bad);                                                                          \
        return EMU_NEXT;                                                                                              \
    }
#define TERNARY64(id, EXPR)                                                                                           \
    HANDLER(id)                                                                                                       \
    {                                                                                                                 \
        Wide a, b, c, t;                                                                                              \
        get_wide(w, i->s[1], a);                                                                                      \
        get_wide(w, i->s[2], b);                                                                                      \
        get_wide(w, i->s[3], c);                                                                                      \
        LOOP { uint64_t x = a[l], y = b[l], z = c[l]; t[l] = (EXPR); }                                                \
        uint32_t bad = bad_wide(w, i->s[1]) | bad_wide(w, i->s[2]) | bad_wide(w, i->s[3]);                            \
        put_wide(w, i->s[0], t, mask);                                                                                \
        set_bad_wide(w, i->s[0], mask, bad);                                                                          \
        return EMU_NEXT;                                                                                              \
    }

#endif
