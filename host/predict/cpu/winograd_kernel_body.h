/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Winograd's minimal filtering F(m, 3) along three axes (Lavin and Gray 2016, equations 6 to 8,
 * nested once more): with d the m+2 input voxels of a tile along an axis and g the kernel,
 *
 *   y = A^T [ (G g) * (B^T d) ]
 *
 * F(2, 3) has the points 0, 1, -1, infinity; F(4, 3) has 0, +-a, +-b, infinity with a^2 = 1/2 and
 * b^2 = 2, which round off ten times less than the usual +-1, +-2 (4x4x4, 32 channels, worst voxel
 * 7.5e-7 of the largest against 7.4e-6; relative L2 5e-7, a direct sum in float32 2e-7).
 *
 * So a tile of mz*my*mx outputs costs (mz+2)(my+2)(mx+2) multiplications per pair of channels
 * instead of 27*mz*my*mx: 8.0 a voxel for 2x2x2, 6.0 for 2x2x4, 4.5 for 2x4x4, 3.4 for 4x4x4.
 *
 * For a block of tiles: B^T d for every point into `input`, one small matrix product per point
 * (tiles x in_channels by in_channels x out_channels) into `product`, A^T of that with bias and
 * post-operations into the result. A vector holds consecutive channels of one voxel.
 *
 * The including file defines LANES (floats of a vector), ROWS (tiles whose products are summed in
 * registers, two vectors each) and KERNEL, the winograd_kernel to define. Compiled with contraction
 * into FMA.
 */
#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#include "predict/cpu/winograd_kernel.h"

typedef float lane_vector __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
typedef uint32_t lane_bits __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
typedef uint16_t lane_halves __attribute__((vector_size(LANES * 2), aligned(2), may_alias));

#if LANES == 16
#define LANES_MAX _mm512_max_ps
#else
#define LANES_MAX _mm256_max_ps
#endif

/* EACH: a loop of a number of turns that is known when this is compiled, written out. Not for
 * sanitizers: with their checks in every turn it would keep the compiler busy for minutes. */
#if defined(__has_feature)
#define IS_SANITIZED (__has_feature(address_sanitizer) || __has_feature(thread_sanitizer))
#elif defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define IS_SANITIZED 1
#else
#define IS_SANITIZED 0
#endif
#if IS_SANITIZED
#define INLINE static
#define WRITE_OUT
#elif defined(__clang__)
#define INLINE static inline __attribute__((always_inline))
#define WRITE_OUT _Pragma("unroll")
#else
#define INLINE static inline __attribute__((always_inline))
#define WRITE_OUT _Pragma("GCC unroll 36")
#endif
/* NOLINTNEXTLINE(bugprone-macro-parentheses): i is a name */
#define EACH(i, n) WRITE_OUT for (size_t i = 0; i < (n); i++)

enum { EDGE_MAX = 6, PLANE_MAX = EDGE_MAX * EDGE_MAX, POINTS_MAX = PLANE_MAX * EDGE_MAX };

/* ---- Elements ------------------------------------------------------------------------------- */

INLINE lane_vector load_f32(const void *from)
{
    return *(const lane_vector *)from;
}

INLINE lane_vector load_element(const void *from, element_type type)
{
    if (type == ELEMENT_F32)
        return load_f32(from);
    lane_bits bits = __builtin_convertvector(*(const lane_halves *)from, lane_bits) << 16;
    return (lane_vector)bits;
}

/* As bf16_from_float: to nearest, ties to even, NaN stays NaN. */
INLINE void store_element(void *to, lane_vector value, element_type type)
{
    if (type == ELEMENT_F32) {
        *(lane_vector *)to = value;
        return;
    }
    lane_bits bits = (lane_bits)value;
    lane_bits nan = (lane_bits)((bits & 0x7FFFFFFFu) > 0x7F800000u);
    lane_bits rounded = bits + 0x7FFFu + ((bits >> 16) & 1u);
    bits = (rounded & ~nan) | ((bits | 0x00400000u) & nan);
    *(lane_halves *)to = __builtin_convertvector(bits >> 16, lane_halves);
}

/* ---- Transforms along one axis -------------------------------------------------------------- */

/* B^T of F(4, 3): the first or the last three of its points. */
INLINE void input_half(size_t half, const lane_vector d[6], lane_vector p[3])
{
    if (half == 0) {
        lane_vector even = d[4] - 2 * d[2], odd = d[3] - 2 * d[1];
        p[0] = (d[0] + d[4]) - 2.5f * d[2];
        p[1] = even + WINOGRAD_A * odd;
        p[2] = even - WINOGRAD_A * odd;
    } else {
        lane_vector even = d[4] - 0.5f * d[2], odd = d[3] - 0.5f * d[1];
        p[0] = even + WINOGRAD_B * odd;
        p[1] = even - WINOGRAD_B * odd;
        p[2] = (d[1] + d[5]) - 2.5f * d[3];
    }
}

/* B^T of m+2 vectors, `step` apart, in place. */
INLINE void input_axis(size_t m, lane_vector *p, size_t step)
{
    lane_vector d[EDGE_MAX], q[EDGE_MAX];
    EACH(i, m + 2)
        d[i] = p[i * step];
    if (m == 2) {
        q[0] = d[0] - d[2];
        q[1] = d[1] + d[2];
        q[2] = d[2] - d[1];
        q[3] = d[1] - d[3];
    } else {
        input_half(0, d, q);
        input_half(1, d, q + 3);
    }
    EACH(i, m + 2)
        p[i * step] = q[i];
}

/* A^T of m+2 vectors into m, in place. */
INLINE void output_axis(size_t m, lane_vector *p, size_t step)
{
    lane_vector p0 = p[0], p1 = p[step], p2 = p[2 * step], p3 = p[3 * step];
    lane_vector sum = p1 + p2, difference = p1 - p2;
    if (m == 2) {
        p[0] = p0 + sum;
        p[step] = difference - p3;
        return;
    }
    lane_vector p4 = p[4 * step], p5 = p[5 * step];
    lane_vector sum2 = p3 + p4, difference2 = p3 - p4;
    p[0] = p0 + sum + sum2;
    p[step] = WINOGRAD_A * difference + WINOGRAD_B * difference2;
    p[2 * step] = 0.5f * sum + 2 * sum2;
    p[3 * step] = 0.5f * WINOGRAD_A * difference + (2 * WINOGRAD_B * difference2 + p5);
}

/* ---- A tile's input ------------------------------------------------------------------------- */

/* Where each point of a tile's input lies; outside of the volume, zeros. */
INLINE void find_points(const winograd_job *job, const size_t tile[3], const size_t m[3],
                        const char **from)
{
    const size_t voxel = job->in.pitch * element_size(job->in.type);
    const char *zeros = (const char *)job->zeros;
    size_t begin[3]; /* -1 wraps round, and is outside, too */
    for (size_t a = 0; a < 3; a++)
        begin[a] = tile[a] * m[a] - 1;
    for (size_t z = begin[0]; z != begin[0] + m[0] + 2; z++)
        for (size_t y = begin[1]; y != begin[1] + m[1] + 2; y++) {
            bool inside = z < job->dim[0] && y < job->dim[1];
            const char *line = (const char *)job->in.data +
                               (inside ? (z * job->dim[1] + y) * job->dim[2] * voxel : 0);
            EACH(x, m[2] + 2) {
                size_t k = begin[2] + x;
                *from++ = inside && k < job->dim[2] ? line + k * voxel : zeros;
            }
        }
}

INLINE void transform_input(const winograd_job *job, const size_t tile[3], const size_t m[3],
                            element_type type, size_t row)
{
    const size_t edge_x = m[2] + 2, edge_y = m[1] + 2, edge_z = m[0] + 2, plane = edge_x * edge_y;
    const size_t stride = job->rows * job->in_channels + LANES;
    /* The next tile's voxels: they are in runs too short for the hardware to see them coming. */
    const size_t ahead = m[2] * job->in.pitch * element_size(type);
    const char *from[POINTS_MAX];
    lane_vector point[EDGE_MAX * PLANE_MAX];
    find_points(job, tile, m, from);
    /* A plane of 6x6 points is more than there are registers: its columns in two goes. */
    const size_t goes = plane > 24 ? 2 : 1, width = edge_x / goes;
    for (size_t c = 0; c < job->in_channels; c += LANES) {
        size_t bytes = c * element_size(type);
        float *to = job->input + row * job->in_channels + c;
        for (size_t z = 0; z < edge_z; z++) {
            EACH(i, plane)
                __builtin_prefetch(from[z * plane + i] + bytes + ahead);
            EACH(go, goes) {
                lane_vector p[PLANE_MAX];
                EACH(y, edge_y) {
                    lane_vector d[EDGE_MAX];
                    EACH(x, edge_x)
                        d[x] = load_element(from[z * plane + y * edge_x + x] + bytes, type);
                    if (goes == 2) {
                        input_half(go, d, p + y * width);
                        continue;
                    }
                    input_axis(m[2], d, 1);
                    EACH(x, edge_x)
                        p[y * edge_x + x] = d[x];
                }
                EACH(x, width)
                    input_axis(m[1], p + x, width);
                EACH(y, edge_y)
                    EACH(x, width)
                        point[z * plane + y * edge_x + go * width + x] = p[y * width + x];
            }
        }
        for (size_t i = 0; i < plane; i++) {
            lane_vector d[EDGE_MAX];
            EACH(z, edge_z)
                d[z] = point[z * plane + i];
            input_axis(m[0], d, 1);
            EACH(z, edge_z)
                *(lane_vector *)(to + (z * plane + i) * stride) = d[z];
        }
    }
}

/* ---- Products ------------------------------------------------------------------------------- */

/* `rows` tiles by `width` vectors of outputs at one point. */
INLINE void multiply_rows(size_t rows, size_t width, const float *input, size_t in_channels,
                          const float *weights, float *product, size_t out_channels)
{
    lane_vector sum[ROWS][2];
    EACH(r, rows)
        EACH(v, width)
            sum[r][v] = (lane_vector){0};
    for (size_t k = 0; k < in_channels; k++, weights += width * LANES) {
        lane_vector w[2];
        EACH(v, width)
            w[v] = load_f32(weights + v * LANES);
        EACH(r, rows) {
            float x = input[r * in_channels + k];
            EACH(v, width)
                sum[r][v] += x * w[v];
        }
    }
    EACH(r, rows)
        EACH(v, width)
            *(lane_vector *)(product + r * out_channels + v * LANES) = sum[r][v];
}

INLINE void multiply(const winograd_job *job, size_t points, size_t width, size_t n)
{
    const size_t in = job->in_channels, out = job->out_channels, panel = width * LANES;
    const float *weights = job->weights;
    for (size_t p = 0; p < points; p++) {
        const float *input = job->input + p * (job->rows * in + LANES);
        float *product = job->product + p * (job->rows * out + LANES);
        for (size_t o = 0; o < out; o += panel, weights += in * panel) {
            size_t r = 0;
            for (; r + ROWS <= n; r += ROWS)
                multiply_rows(ROWS, width, input + r * in, in, weights, product + r * out + o, out);
            for (; r + 2 <= n; r += 2)
                multiply_rows(2, width, input + r * in, in, weights, product + r * out + o, out);
            for (; r < n; r++)
                multiply_rows(1, width, input + r * in, in, weights, product + r * out + o, out);
        }
    }
}

/* ---- A tile's result ------------------------------------------------------------------------ */

/* Bias and whatever post-operations there are. */
INLINE lane_vector finish(const winograd_job *job, lane_vector value, size_t voxel, size_t c)
{
    value += load_f32(job->bias + c);
    for (size_t i = 0; i < job->n_post; i++) {
        const post_operation *post = &job->post[i];
        if (post->op == CHAIN_ADD_TENSOR) {
            const winograd_tensor *t = &job->operand[i];
            size_t at = (voxel * t->pitch + c) * element_size(t->type);
            value += load_element((const char *)t->data + at, t->type);
        } else {
            lane_bits positive = (lane_bits)(value > 0);
            lane_bits below = (lane_bits)(value * post->alpha);
            value = (lane_vector)(((lane_bits)value & positive) | (below & ~positive));
        }
    }
    return value;
}

/* A plane of a tile, with what the volume's end or the post-operations ask for. */
static __attribute__((noinline)) void store_any(const winograd_job *job, const lane_vector *p,
                                                size_t edge_x, const size_t first[3],
                                                const size_t n[3], size_t c)
{
    const winograd_tensor *out = &job->out;
    for (size_t y = 0; y < n[1]; y++)
        for (size_t x = 0; x < n[2]; x++) {
            size_t voxel = (first[0] * job->dim[1] + first[1] + y) * job->dim[2] + first[2] + x;
            store_element((char *)out->data + (voxel * out->pitch + c) * element_size(out->type),
                          finish(job, p[y * edge_x + x], voxel, c), out->type);
        }
}

/* A plane of a tile that is whole, with bias and one activation. */
INLINE void store_whole(const winograd_job *job, const lane_vector *p, size_t my, size_t mx,
                        element_type type, const size_t first[3], size_t c)
{
    const size_t voxel = job->out.pitch * element_size(type), line = job->dim[2] * voxel;
    char *to = (char *)job->out.data + c * element_size(type) +
               (first[0] * job->dim[1] + first[1]) * line + first[2] * voxel;
    lane_vector bias = load_f32(job->bias + c);
    for (size_t y = 0; y < my; y++)
        EACH(x, mx) {
            lane_vector value = p[y * (mx + 2) + x] + bias;
            store_element(to + y * line + x * voxel, LANES_MAX(value * job->slope, value), type);
        }
}

INLINE void fetch_output(const winograd_job *job, const size_t first[3], const size_t n[3],
                         element_type type)
{
    const size_t voxel = job->out.pitch * element_size(type);
    const size_t bytes = job->out_channels * element_size(type);
    for (size_t z = 0; z < n[0]; z++)
        for (size_t y = 0; y < n[1]; y++)
            for (size_t x = 0; x < n[2]; x++) {
                const char *at =
                    (const char *)job->out.data +
                    (((first[0] + z) * job->dim[1] + first[1] + y) * job->dim[2] + first[2] + x) *
                        voxel;
                for (size_t b = 0; b < bytes; b += 64)
                    __builtin_prefetch(at + b, 1);
            }
}

INLINE void transform_output(const winograd_job *job, const size_t tile[3], const size_t m[3],
                             element_type type, size_t row)
{
    const size_t edge_x = m[2] + 2, edge_y = m[1] + 2, edge_z = m[0] + 2, plane = edge_x * edge_y;
    const size_t stride = job->rows * job->out_channels + LANES;
    lane_vector point[4 * PLANE_MAX];
    size_t first[3], n[3];
    bool whole = true;
    for (size_t a = 0; a < 3; a++) {
        size_t left = job->dim[a] - tile[a] * m[a];
        first[a] = tile[a] * m[a];
        n[a] = left < m[a] ? left : m[a];
        whole = whole && n[a] == m[a];
    }
    first[0] -= job->first_plane;
    fetch_output(job, first, n, type);
    for (size_t c = 0; c < job->out_channels; c += LANES) {
        const float *from = job->product + row * job->out_channels + c;
        for (size_t i = 0; i < plane; i++) {
            lane_vector p[EDGE_MAX];
            EACH(z, edge_z)
                p[z] = load_f32(from + (z * plane + i) * stride);
            output_axis(m[0], p, 1);
            EACH(z, m[0])
                point[z * plane + i] = p[z];
        }
        for (size_t z = 0; z < n[0]; z++) {
            const size_t at[3] = {first[0] + z, first[1], first[2]};
            lane_vector p[PLANE_MAX];
            EACH(x, edge_x) {
                lane_vector d[EDGE_MAX];
                EACH(y, edge_y)
                    d[y] = point[z * plane + y * edge_x + x];
                output_axis(m[1], d, 1);
                EACH(y, m[1])
                    p[y * edge_x + x] = d[y];
            }
            EACH(y, m[1])
                output_axis(m[2], p + y * edge_x, 1);
            if (whole && job->simple)
                store_whole(job, p, m[1], m[2], type, at, c);
            else
                store_any(job, p, edge_x, at, n, c);
        }
    }
}

/* ---- Blocks --------------------------------------------------------------------------------- */

INLINE void find_tile(const winograd_job *job, size_t index, size_t tile[3])
{
    tile[2] = index % job->tiles[2];
    tile[1] = index / job->tiles[2] % job->tiles[1];
    tile[0] = index / job->tiles[2] / job->tiles[1];
}

INLINE void run_block(const winograd_job *job, size_t first, size_t n, size_t mz, size_t my,
                      size_t mx)
{
    const size_t m[3] = {mz, my, mx}, points = (mz + 2) * (my + 2) * (mx + 2);
    size_t tile[3];
    for (size_t i = 0; i < n; i++) {
        find_tile(job, first + i, tile);
        if (job->in.type == ELEMENT_F32)
            transform_input(job, tile, m, ELEMENT_F32, i);
        else
            transform_input(job, tile, m, ELEMENT_BF16, i);
    }
    if (job->panel == LANES)
        multiply(job, points, 1, n);
    else
        multiply(job, points, 2, n);
    for (size_t i = 0; i < n; i++) {
        find_tile(job, first + i, tile);
        if (job->out.type == ELEMENT_F32)
            transform_output(job, tile, m, ELEMENT_F32, i);
        else
            transform_output(job, tile, m, ELEMENT_BF16, i);
    }
}

static void run_222(const winograd_job *job, size_t first, size_t n)
{
    run_block(job, first, n, 2, 2, 2);
}

static void run_224(const winograd_job *job, size_t first, size_t n)
{
    run_block(job, first, n, 2, 2, 4);
}

static void run_244(const winograd_job *job, size_t first, size_t n)
{
    run_block(job, first, n, 2, 4, 4);
}

static void run_444(const winograd_job *job, size_t first, size_t n)
{
    run_block(job, first, n, 4, 4, 4);
}

const winograd_kernel KERNEL = {
    .lanes = LANES, .name = KERNEL_NAME, .run = {run_222, run_224, run_244, run_444}};
