// One-query attention over a list of segments (Sanovar et al. 2024, "Lean Attention", arXiv 2405.10480), for CPUs.
//
// A segment is a run of keys of one (sequence, key head). All G query heads of that key head are served while its keys and values
// are read once. Sums are in float32 whatever the cache holds. One vector is 16 floats; the compiler splits it where the machine's
// registers are narrower. Everything is reached by row pointers, so that contiguous and paged caches are one case.

#include <cmath>
#include <cstdint>
#include <cstring>
#include <thread>
#include <vector>
#if defined(__AVX512F__) || defined(__AVX2__) || defined(__F16C__)
#include <immintrin.h>
#endif

namespace {

typedef float Vec __attribute__((vector_size(64), aligned(4), may_alias));
typedef int32_t VecI __attribute__((vector_size(64), aligned(4), may_alias));
typedef uint32_t VecU __attribute__((vector_size(64), aligned(4), may_alias));
typedef int8_t Bytes __attribute__((vector_size(16), aligned(1), may_alias));

constexpr int64_t TILE = 64;  // keys that are scored before their values are read: two rows of 64 KV, and the next, near L1
constexpr int64_t KEYS = 16;  // keys whose sums end in one vector
constexpr float LOG2E = 1.4426950408889634f;

inline Vec load(const float* p) { return *reinterpret_cast<const Vec*>(p); }
inline void store(float* p, Vec v) { *reinterpret_cast<Vec*>(p) = v; }
inline Vec all(float x) { return Vec{} + x; }

// 32 elements of a row as two vectors. Which element stands where is the type's own affair: `place` says it, and queries are
// put in the same order before, outputs brought back after.
struct Float32 {
    typedef float Element;
    static constexpr bool SCALED = false;
    static void load2(const Element* p, Vec& a, Vec& b) { a = load(p), b = load(p + 16); }
    static int64_t place(int64_t i) { return i; }
};

struct BFloat16 {  // a word holds two neighbours: its low half shifted up is one float, its high half is the other
    typedef uint16_t Element;
    static constexpr bool SCALED = false;
    static void load2(const Element* p, Vec& a, Vec& b) {
        VecU w = *reinterpret_cast<const VecU*>(p);
        a = reinterpret_cast<Vec>(w << 16), b = reinterpret_cast<Vec>(w & 0xffff0000u);
    }
    static int64_t place(int64_t i) { return (i & ~int64_t(31)) | ((i & 1) << 4) | ((i & 31) >> 1); }
};

struct Float16 {
    typedef uint16_t Element;
    static constexpr bool SCALED = false;
    static Vec widen(const Element* p) {
#if defined(__AVX512F__)
        return reinterpret_cast<Vec>(_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))));
#else
        Vec found;
        for (int i = 0; i < 16; i++) {
#if defined(__F16C__)
            found[i] = _cvtsh_ss(p[i]);
#else
            // Exponents 1 to 30 move by 112; subnormals are multiples of 2^-24; 31 is infinity or no number.
            uint32_t sign = uint32_t(p[i] & 0x8000u) << 16, exponent = (p[i] >> 10) & 31u, fraction = p[i] & 1023u, bits;
            if (exponent == 0) {
                float small = float(fraction) * 5.9604644775390625e-8f;
                std::memcpy(&bits, &small, 4);
            } else {
                bits = (exponent == 31 ? 0x7f800000u : (exponent + 112) << 23) | fraction << 13;
            }
            bits |= sign;
            float value;
            std::memcpy(&value, &bits, 4);
            found[i] = value;
#endif
        }
        return found;
#endif
    }
    static void load2(const Element* p, Vec& a, Vec& b) { a = widen(p), b = widen(p + 16); }
    static int64_t place(int64_t i) { return i; }
};

struct Int8 {  // the scale of a row multiplies its score, and the weight of its value
    typedef int8_t Element;
    static constexpr bool SCALED = true;
    static Vec widen(const Element* p) {
#if defined(__AVX512F__)
        __m512i whole = _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
        return reinterpret_cast<Vec>(_mm512_cvtepi32_ps(whole));
#elif defined(__AVX2__)
        Vec found;
        for (int i = 0; i < 2; i++) {
            __m256i whole = _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p + 8 * i)));
            _mm256_storeu_ps(reinterpret_cast<float*>(&found) + 8 * i, _mm256_cvtepi32_ps(whole));
        }
        return found;
#else
        Bytes whole = *reinterpret_cast<const Bytes*>(p);
        return __builtin_convertvector(__builtin_convertvector(whole, VecI), Vec);
#endif
    }
    static void load2(const Element* p, Vec& a, Vec& b) { a = widen(p), b = widen(p + 16); }
    static int64_t place(int64_t i) { return i; }
};

#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)

// Within every four lanes: the sums over four lanes of a, b, c, d.
inline Vec sum_fours(Vec a, Vec b, Vec c, Vec d) {
    Vec ab = SHUFFLE(a, b, 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29)
           + SHUFFLE(a, b, 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31);
    Vec cd = SHUFFLE(c, d, 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29)
           + SHUFFLE(c, d, 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31);
    return SHUFFLE(ab, cd, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29)
         + SHUFFLE(ab, cd, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
}

// The sums over the four quarters of a, b, c, d, one after another.
inline Vec sum_quarters(Vec a, Vec b, Vec c, Vec d) {
    Vec ab = SHUFFLE(a, b, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27)
           + SHUFFLE(a, b, 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
    Vec cd = SHUFFLE(c, d, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27)
           + SHUFFLE(c, d, 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
    return SHUFFLE(ab, cd, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27)
         + SHUFFLE(ab, cd, 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
}

// e^x for x <= 0, within two units in the last place; 0 below e^-87. It is e^f 2^n with |f| <= ln 2 / 2; n ln 2 is taken off in two
// parts, so that f is exact to the last bit however long the way was.
inline Vec exp(Vec x) {
    Vec far = x < -87.0f ? all(-87.0f) : x;
    VecI n = __builtin_convertvector(far * LOG2E - 0.5f, VecI);  // rounds towards zero, hence to the nearest
    Vec whole = __builtin_convertvector(n, Vec), f = (far - whole * 0.693359375f) - whole * -2.12194440e-4f;
    Vec p = all(1.0f / 5040.0f);
    p = p * f + 1.0f / 720.0f;
    p = p * f + 1.0f / 120.0f;
    p = p * f + 1.0f / 24.0f;
    p = p * f + 1.0f / 6.0f;
    p = p * f + 0.5f;
    p = p * f + 1.0f;
    p = p * f + 1.0f;
    Vec power = reinterpret_cast<Vec>((n + 127) << 23);
    return x < -87.0f ? Vec{} : p * power;
}

inline float top(Vec v) {
    Vec w = SHUFFLE(v, v, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7);
    v = v > w ? v : w;
    w = SHUFFLE(v, v, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11);
    v = v > w ? v : w;
    w = SHUFFLE(v, v, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13);
    v = v > w ? v : w;
    return v[0] > v[1] ? v[0] : v[1];
}

inline float sum(Vec v) {
    v += SHUFFLE(v, v, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7);
    v += SHUFFLE(v, v, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11);
    v += SHUFFLE(v, v, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13);
    return v[0] + v[1];
}

}  // namespace

extern "C" {

struct Arguments {
    const void *q, *keys, *values;
    const float *key_scales, *value_scales;  // of rows of integers
    void *out;
    float *lse, *scratch;
    const int64_t *pages, *segments, *owners, *cuts;
    int64_t q_type, type, heads, kv_heads, width, value_width, workers, n_cuts;
    int64_t page_size, pages_of_row;  // 0: rows of a contiguous cache
    int64_t key_row, key_head, key_column, value_row, value_head, value_column;  // strides, in elements
    int64_t key_scale_row, key_scale_head, key_scale_column, value_scale_row, value_scale_head, value_scale_column;
    float scale;
};

int64_t instar_decode_version() { return 2; }

}

namespace {

struct Segment {
    int64_t output, start, stop, slot;
};

template <class T>
struct Tile {
    const typename T::Element *keys[TILE], *values[TILE];
    float key_scales[T::SCALED ? TILE : 1], value_scales[T::SCALED ? TILE : 1];
    int64_t segment = 0, count = 0;
    bool last = false;
};

// Walks over the keys of one worker's segments, tile by tile: the rows of the next tile are known before this one is done.
template <class T>
struct Walk {
    const Arguments& a;
    const Segment* segments;
    int64_t segment, end, key;

    Walk(const Arguments& a, const Segment* segments, int64_t first, int64_t end)
        : a(a), segments(segments), segment(first), end(end), key(first < end ? segments[first].start : 0) {}

    bool next(Tile<T>& tile) {
        if (segment == end) return false;
        const Segment& s = segments[segment];
        int64_t row = s.output / a.kv_heads, head = s.output % a.kv_heads;
        int64_t count = s.stop - key < TILE ? s.stop - key : TILE;
        auto keys = static_cast<const typename T::Element*>(a.keys) + head * a.key_head;
        auto values = static_cast<const typename T::Element*>(a.values) + head * a.value_head;
        if (a.page_size) {
            const int64_t* table = a.pages + row * a.pages_of_row;
            for (int64_t j = 0; j < count; j++) {
                int64_t page = table[(key + j) / a.page_size], column = (key + j) % a.page_size;
                tile.keys[j] = keys + page * a.key_row + column * a.key_column;
                tile.values[j] = values + page * a.value_row + column * a.value_column;
                scales(tile, j, page, head, column);
            }
        } else {
            for (int64_t j = 0; j < count; j++) {
                tile.keys[j] = keys + row * a.key_row + (key + j) * a.key_column;
                tile.values[j] = values + row * a.value_row + (key + j) * a.value_column;
                scales(tile, j, row, head, key + j);
            }
        }
        for (int64_t j = count; j < TILE && j % KEYS; j++) {  // read, never counted
            tile.keys[j] = tile.keys[count - 1];
            if constexpr (T::SCALED) tile.key_scales[j] = tile.value_scales[j] = 0.0f;
        }
        tile.segment = segment, tile.count = count;
        key += count;
        tile.last = key == s.stop;
        if (tile.last && ++segment < end) key = segments[segment].start;
        return true;
    }

    void scales(Tile<T>& tile, int64_t j, int64_t row, int64_t head, int64_t column) {
        if constexpr (T::SCALED) {
            tile.key_scales[j] = a.key_scales[row * a.key_scale_row + head * a.key_scale_head + column * a.key_scale_column];
            tile.value_scales[j]
                = a.value_scales[row * a.value_scale_row + head * a.value_scale_head + column * a.value_scale_column];
        }
    }
};

template <class E>
inline void prefetch(const E* row, int64_t width) {
    for (int64_t i = 0; i < width; i += 64 / int64_t(sizeof(E))) __builtin_prefetch(row + i, 0, 3);
}

// Scores of C heads for a whole tile: queries [C, width], scores [C, TILE].
template <class T, int C>
void score(const Tile<T>& tile, const Tile<T>* coming, const float* q, int64_t width, float scale, float* scores) {
    for (int64_t j = 0; j < tile.count; j += KEYS) {
        Vec fours[C][4];
        for (int64_t k = 0; k < 4; k++) {
            auto row = tile.keys + j + 4 * k;
            if (coming)
                for (int64_t i = 0; i < 4 && j + 4 * k + i < coming->count; i++) prefetch(coming->keys[j + 4 * k + i], width);
            Vec sums[C][4] = {};
            for (int64_t i = 0; i < width; i += 32) {
                Vec low[4], high[4];
                for (int r = 0; r < 4; r++) T::load2(row[r] + i, low[r], high[r]);
                for (int c = 0; c < C; c++) {
                    Vec ql = load(q + c * width + i), qh = load(q + c * width + i + 16);
                    for (int r = 0; r < 4; r++) sums[c][r] += ql * low[r], sums[c][r] += qh * high[r];
                }
            }
            for (int c = 0; c < C; c++) fours[c][k] = sum_fours(sums[c][0], sums[c][1], sums[c][2], sums[c][3]);
        }
        for (int c = 0; c < C; c++) {
            Vec x = sum_quarters(fours[c][0], fours[c][1], fours[c][2], fours[c][3]) * scale;
            if constexpr (T::SCALED) x *= load(tile.key_scales + j);
            store(scores + c * TILE + j, x);
        }
    }
}

// a <- alpha a + p V for C heads and a whole tile: weights [C, TILE], sums [C, width].
template <class T, int C, int V>
void weigh_block(const Tile<T>& tile, const Tile<T>* coming, const float* p, const float* alpha, int64_t i, int64_t width,
                 float* sums) {
    Vec a[C][V];
    for (int c = 0; c < C; c++)
        for (int v = 0; v < V; v++) a[c][v] = load(sums + c * width + i + 16 * v) * alpha[c];
    const int64_t ahead = coming ? coming->count : 0;
    for (int64_t j = 0; j < tile.count; j++) {
        if (j < ahead) prefetch(coming->values[j], width);  // row by row: all at once they would wait for one another
        Vec value[V];
        for (int v = 0; v < V; v += 2) T::load2(tile.values[j] + i + 16 * v, value[v], value[v + 1]);
        for (int c = 0; c < C; c++)
            for (int v = 0; v < V; v++) a[c][v] += value[v] * p[c * TILE + j];
    }
    for (int64_t j = tile.count; j < ahead; j++) prefetch(coming->values[j], width);
    for (int c = 0; c < C; c++)
        for (int v = 0; v < V; v++) store(sums + c * width + i + 16 * v, a[c][v]);
}

template <class T, int C>
void weigh(const Tile<T>& tile, const Tile<T>* coming, const float* p, const float* alpha, int64_t width, float* sums) {
    int64_t i = 0;
    for (; i + 64 <= width; i += 64) weigh_block<T, C, 4>(tile, i ? nullptr : coming, p, alpha, i, width, sums);
    for (; i < width; i += 32) weigh_block<T, C, 2>(tile, i ? nullptr : coming, p, alpha, i, width, sums);
}

// m, l and the factor of what was summed before; scores become weights.
inline void soften(float* scores, int64_t count, float& m, float& l, float& alpha) {
    for (int64_t j = count; j % KEYS; j++) scores[j] = -INFINITY;
    Vec tops = load(scores);
    for (int64_t j = KEYS; j < count; j += KEYS) {
        Vec x = load(scores + j);
        tops = tops > x ? tops : x;
    }
    float before = m, found = top(tops);
    m = found > before ? found : before;
    float base = m == -INFINITY ? 0.0f : m;  // scores of -inf alone, from keys that are: no weight, and no NaN
    Vec total = {};
    for (int64_t j = 0; j < count; j += KEYS) {
        Vec x = load(scores + j) - base, w = exp(x);
        w = x == x ? w : x;  // NaN stays NaN
        store(scores + j, w);
        total += w;
    }
    alpha = before == -INFINITY ? 0.0f : std::exp(before - m);
    l = l * alpha + sum(total);
}

template <class T, int C>
void heads(const Tile<T>& tile, const Tile<T>* coming, const float* q, const Arguments& a, float* scores, float* m, float* l,
           float* sums) {
    float alpha[C];
    score<T, C>(tile, coming, q, a.width, a.scale, scores);
    for (int c = 0; c < C; c++) soften(scores + c * TILE, tile.count, m[c], l[c], alpha[c]);
    if constexpr (T::SCALED)
        for (int c = 0; c < C; c++)
            for (int64_t j = 0; j < tile.count; j += KEYS)
                store(scores + c * TILE + j, load(scores + c * TILE + j) * load(tile.value_scales + j));
    weigh<T, C>(tile, coming, scores, alpha, a.value_width, sums);
}

inline float element(const void* p, int64_t type, int64_t i) {
    if (type == 0) return static_cast<const float*>(p)[i];
    uint16_t half = static_cast<const uint16_t*>(p)[i];
    if (type == 1) {
        uint32_t bits = uint32_t(half) << 16;
        float value;
        std::memcpy(&value, &bits, 4);
        return value;
    }
    uint16_t padded[16] = {half};
    return Float16::widen(padded)[0];
}

// To nearest, ties to even, as torch rounds.
inline void put(void* p, int64_t type, int64_t i, float x) {
    if (type == 0) {
        static_cast<float*>(p)[i] = x;
        return;
    }
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    if (type == 1) {
        static_cast<uint16_t*>(p)[i] = x == x ? uint16_t((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16) : uint16_t(0x7fc0);
        return;
    }
    uint16_t sign = uint16_t((bits >> 16) & 0x8000u), half;
    float size = std::fabs(x);
    if (!(size < 65520.0f)) {
        half = size == size ? 0x7c00 : 0x7e00;
    } else if (size < 6.103515625e-5f) {
        half = uint16_t(std::nearbyint(size * 16777216.0f));
    } else {
        bits &= 0x7fffffffu;
        half = uint16_t((bits + 0xfffu + ((bits >> 13) & 1u) - (112u << 23)) >> 13);
    }
    static_cast<uint16_t*>(p)[i] = sign | half;
}

// a / l and m + ln l of one head; `place` undoes the order of the values.
template <class Place>
void finish(const Arguments& a, int64_t head, const float* sums, float m, float l, Place place) {
    float inverse = l > 0.0f || l != l ? 1.0f / l : 0.0f;  // no weight at all: 0, and a log-sum-exp of -inf
    for (int64_t i = 0; i < a.value_width; i++) put(a.out, a.q_type, head * a.value_width + i, sums[place(i)] * inverse);
    if (a.lse) a.lse[head] = l == 0.0f ? -INFINITY : m + std::log(l);
}

template <class T>
void work(const Arguments& a, int64_t first, int64_t end) {
    const int64_t G = a.heads / a.kv_heads, D = a.width, V = a.value_width;
    auto segments = reinterpret_cast<const Segment*>(a.segments);
    std::vector<float> room(G * (D + V + TILE + 2));
    float *q = room.data(), *sums = q + G * D, *scores = sums + G * V, *m = scores + G * TILE, *l = m + G;
    Tile<T> tiles[2];
    Walk<T> walk(a, segments, first, end);
    int now = 0;
    bool more = walk.next(tiles[0]), starts = true;
    while (more) {
        const Tile<T>& tile = tiles[now];
        const Segment& s = segments[tile.segment];
        const int64_t head = s.output * G;  // (row, key head, member) is (row, query head)
        more = walk.next(tiles[now ^ 1]);
        const Tile<T>* coming = more ? &tiles[now ^ 1] : nullptr;
        if (starts) {
            for (int64_t g = 0; g < G; g++) {
                for (int64_t i = 0; i < D; i++)
                    q[g * D + T::place(i)] = element(a.q, a.q_type, (head + g) * D + i);
                m[g] = -INFINITY, l[g] = 0.0f;
            }
            std::memset(sums, 0, sizeof(float) * G * V);
        }
        for (int64_t g = 0; g < G;) {
            auto own = q + g * D;
            float *s_ = scores + g * TILE, *o = sums + g * V;
            int64_t left = G - g, taken = left < 4 ? left : 4;
            if (taken == 4) heads<T, 4>(tile, coming, own, a, s_, m + g, l + g, o);
            else if (taken == 3) heads<T, 3>(tile, coming, own, a, s_, m + g, l + g, o);
            else if (taken == 2) heads<T, 2>(tile, coming, own, a, s_, m + g, l + g, o);
            else heads<T, 1>(tile, coming, own, a, s_, m + g, l + g, o);
            g += taken;
            coming = nullptr;  // once is enough
        }
        if (tile.last) {
            for (int64_t g = 0; g < G; g++) {
                if (s.slot < 0) {
                    finish(a, head + g, sums + g * V, m[g], l[g], T::place);
                } else {
                    float* kept = a.scratch + (s.slot * G + g) * (V + 2);
                    kept[0] = m[g], kept[1] = l[g];
                    for (int64_t i = 0; i < V; i++) kept[2 + i] = sums[g * V + T::place(i)];
                }
            }
        }
        starts = tile.last;
        now ^= 1;
    }
}

// The associative sum of the partial results of one cut output.
void merge(const Arguments& a, const int64_t* cut) {
    const int64_t G = a.heads / a.kv_heads, V = a.value_width;
    for (int64_t g = 0; g < G; g++) {
        float m = -INFINITY, l = 0.0f;
        for (int64_t n = 0; n < cut[2]; n++) {
            float found = a.scratch[((cut[1] + n) * G + g) * (V + 2)];
            m = found > m ? found : m;
        }
        float* total = a.scratch + (cut[1] * G + g) * (V + 2);
        for (int64_t n = 0; n < cut[2]; n++) {
            const float* part = a.scratch + ((cut[1] + n) * G + g) * (V + 2);
            float weight = part[0] == -INFINITY ? 0.0f : std::exp(part[0] - m);
            l += part[1] * weight;
            for (int64_t i = 0; i < V; i++) total[2 + i] = (n ? total[2 + i] : 0.0f) + part[2 + i] * weight;
        }
        finish(a, cut[0] * G + g, total + 2, m, l, [](int64_t i) { return i; });
    }
}

}  // namespace

extern "C" void instar_decode(const Arguments* given) {
    const Arguments& a = *given;
    const int64_t cores = std::thread::hardware_concurrency();  // more workers than cores take turns
    const int threads = int(cores && a.workers > cores ? cores : a.workers);
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
#pragma omp for schedule(static, 1)
        for (int64_t w = 0; w < a.workers; w++) {
            if (a.type == 0) work<Float32>(a, a.owners[w], a.owners[w + 1]);
            else if (a.type == 1) work<BFloat16>(a, a.owners[w], a.owners[w + 1]);
            else if (a.type == 2) work<Float16>(a, a.owners[w], a.owners[w + 1]);
            else work<Int8>(a, a.owners[w], a.owners[w + 1]);
        }
#pragma omp for schedule(static, 1)
        for (int64_t c = 0; c < a.n_cuts; c++) merge(a, a.cuts + 3 * c);
    }
}
