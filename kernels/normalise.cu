/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Instance and group normalisation: y = (x - mean)/sqrt(variance + epsilon)*scale + shift, with the
 * biased variance over all voxels of a sample and the channels of a group; and the mean alone.
 *
 * Statistics in two launches. measure_kernel gives each channel of a run of voxels (a chunk) its
 * mean and sum of squared deviations: a thread takes four voxels at a time, in two passes over its
 * registers, and joins them to what it has (Chan, Golub and LeVeque 1979); then threads are joined
 * as a tree. Everything is relative to a typical value of the chunk, so that a mean far above the
 * deviation costs no digits. join_kernel joins chunks and channels in double. The order depends on
 * the tensor's size alone, neither on the number of samples nor on the device.
 *
 * Layouts: in, out (N, D, H, W, C); workspace (N, C, chunks) of {mean, squares}; statistics
 * (N, groups) of {mean, 1/sqrt(variance + epsilon)}; scale, shift (C).
 * Preconditions: groups divides C; workspace aligned to 16 bytes; fewer than 2^31 voxels a sample,
 * fewer than 2^16 samples.
 * Threads: voxel_share.cuh. measure: a block for each chunk and at most 256 threads' channels;
 * join: a block for each sample and group; apply: as in pointwise.cu, a channel's constants kept in
 * registers over up to 16 voxels.
 * Per element: measure reads it once and does 5 FLOPs; apply reads and writes it once, 3 FLOPs and
 * the chain. Bound by memory.
 * Tolerance: mean within 2e-7 of |mean| + deviation, deviation within 1e-6; apply as pointwise.cu,
 * but relative to |mean|/deviation where that is above 1, because the mean is a float.
 */
#include "kernels/voxel_share.cuh"

/* ---- Statistics ----------------------------------------------------------------------------- */

#define MEASURE_VOXELS 4 /* a thread takes at a time */
#define CHUNK_ROUNDS 8   /* voxels of a thread in the shortest chunk */
#define MOST_CHUNKS 1024
#define JOIN_THREADS 128

struct alignas(16) moments {
    double mean, squares; /* squares: sum of (x - mean)^2 */
};

/* Threads across the channels and down the voxels of a chunk. */
struct measure_share {
    unsigned across, rows, slabs, chunk, chunks;
};

static measure_share measure_share_of(const device_tensor *in)
{
    measure_share m;
    unsigned voxels = in->dim[0] * in->dim[1] * in->dim[2];
    unsigned threads = tensor_moves_8(in) ? in->channels / 8 : in->channels;
    m.across = threads < SHARE_THREADS ? (threads ? threads : 1) : SHARE_THREADS;
    m.rows = SHARE_THREADS / m.across;
    m.slabs = blocks_for(threads, m.across);
    m.chunk = m.rows * CHUNK_ROUNDS;
    unsigned least = blocks_for(voxels, MOST_CHUNKS);
    m.chunk = m.chunk > least ? m.chunk : least;
    m.chunks = blocks_for(voxels, m.chunk);
    return m;
}

/* What a thread knows of its channels: of `n` values minus the chunk's origin. */
template <class Values> struct running {
    float n;
    Values mean, squares;
};

/* Joins a part with its mean and squares; share: its part of all values. */
__device__ __forceinline__ void join_channel(float *mean, float *squares, float part_mean,
                                             float part_squares, float n, float share)
{
    float delta = part_mean - *mean;
    *mean += delta * share;
    *squares += part_squares + delta * delta * n * share;
}

/* Takes COUNT voxels from `voxel` on, blockDim.y apart. */
template <class Access, int COUNT>
__device__ __forceinline__ void measure_voxels(const device_tensor &in, unsigned voxel, unsigned c,
                                               const typename Access::values &origin,
                                               running<typename Access::values> &r)
{
    typename Access::raw raw[COUNT];
    typename Access::values v[COUNT];
#pragma unroll
    for (int k = 0; k < COUNT; k++)
        raw[k] = Access::load(in.data, in.type, element_at(in, voxel + k * blockDim.y, c));
#pragma unroll
    for (int k = 0; k < COUNT; k++)
        v[k] = Access::widen(raw[k]);
    float share = COUNT / (r.n + COUNT);
#pragma unroll
    for (unsigned i = 0; i < Access::width; i++) {
        float sum = 0, squares = 0;
#pragma unroll
        for (int k = 0; k < COUNT; k++)
            sum += v[k].v[i] -= origin.v[i];
        float mean = sum * (1.0f / COUNT);
#pragma unroll
        for (int k = 0; k < COUNT; k++)
            squares += (v[k].v[i] - mean) * (v[k].v[i] - mean);
        join_channel(&r.mean.v[i], &r.squares.v[i], mean, squares, r.n, share);
    }
    r.n += COUNT;
}

/* Joins the rows of a block, the upper half to the lower, until the first has all. Shared memory:
 * n[threads], then mean and squares of each of the width channels, [threads] each. */
template <class Access> __device__ void join_rows(running<typename Access::values> &r)
{
    unsigned threads = blockDim.x * blockDim.y, own = threadIdx.y * blockDim.x + threadIdx.x;
    float *n = dynamic_shared<float>(), *value = n + threads;
    unsigned lower = 1;
    while (lower < blockDim.y)
        lower *= 2;
    for (lower /= 2; lower > 0; lower /= 2) {
        if (threadIdx.y >= lower && threadIdx.y < 2 * lower) {
            n[own] = r.n;
            for (unsigned i = 0; i < Access::width; i++) {
                value[2 * i * threads + own] = r.mean.v[i];
                value[(2 * i + 1) * threads + own] = r.squares.v[i];
            }
        }
        __syncthreads();
        unsigned other = own + lower * blockDim.x;
        if (threadIdx.y < lower && threadIdx.y + lower < blockDim.y && n[other] > 0) {
            float share = n[other] / (r.n + n[other]);
            for (unsigned i = 0; i < Access::width; i++)
                join_channel(&r.mean.v[i], &r.squares.v[i], value[2 * i * threads + other],
                             value[(2 * i + 1) * threads + other], r.n, share);
            r.n += n[other];
        }
    }
}

/* The median of three voxels: what one outlier cannot be. A value that few others are near would
 * cost them digits. */
template <class Access>
__device__ __forceinline__ typename Access::values
typical_values(const device_tensor &in, unsigned first, unsigned end, unsigned c)
{
    const unsigned voxel[3] = {first, first + (end - first) / 2, end - 1};
    typename Access::values v[3];
#pragma unroll
    for (int k = 0; k < 3; k++)
        v[k] = Access::widen(Access::load(in.data, in.type, element_at(in, voxel[k], c)));
#pragma unroll
    for (unsigned i = 0; i < Access::width; i++) {
        float low = fminf(v[0].v[i], v[1].v[i]), high = fmaxf(v[0].v[i], v[1].v[i]);
        v[0].v[i] = fmaxf(low, fminf(high, v[2].v[i]));
    }
    return v[0];
}

template <class Access>
static __global__ void measure_kernel(device_tensor in, unsigned chunk, moments *partial)
{
    unsigned c = share_channel<Access>(), rows = blockDim.y;
    unsigned voxels = in.dim[0] * in.dim[1] * in.dim[2];
    unsigned first = blockIdx.x * chunk;
    unsigned end = voxels - first < chunk ? voxels : first + chunk;
    running<typename Access::values> r = {0, fill<Access>(0), fill<Access>(0)};
    typename Access::values origin = fill<Access>(0);
    if (c < in.channels) { /* no return: all take part in the barriers */
        origin = typical_values<Access>(in, first, end, c);
        unsigned voxel = first + threadIdx.y;
        for (; voxel + (MEASURE_VOXELS - 1) * rows < end; voxel += MEASURE_VOXELS * rows)
            measure_voxels<Access, MEASURE_VOXELS>(in, voxel, c, origin, r);
        for (; voxel < end; voxel += rows)
            measure_voxels<Access, 1>(in, voxel, c, origin, r);
    }
    join_rows<Access>(r);
    if (threadIdx.y == 0 && c < in.channels)
        for (unsigned i = 0; i < Access::width; i++) {
            size_t channel = blockIdx.z * static_cast<size_t>(in.channels) + c + i;
            moments m = {static_cast<double>(origin.v[i]) + r.mean.v[i], r.squares.v[i]};
            partial[channel * gridDim.x + blockIdx.x] = m;
        }
}

/* Over the block, in a fixed order; every thread gets it. shared: a value for each warp. */
__device__ __forceinline__ double block_sum(double v, double *shared)
{
    v = warp_sum(v);
    __syncthreads(); /* the last sum has been read */
    if (threadIdx.x % 32 == 0)
        shared[threadIdx.x / 32] = v;
    __syncthreads();
    double sum = 0;
    for (unsigned warp = 0; warp < JOIN_THREADS / 32; warp++)
        sum += shared[warp];
    return sum;
}

/* All chunks of a group's channels, which lie together: first the mean, then what is left. */
static __global__ void __launch_bounds__(JOIN_THREADS)
    join_kernel(const moments *partial, unsigned voxels, unsigned chunk, unsigned chunks,
                unsigned per_group, float epsilon, float *statistics)
{
    double *shared = dynamic_shared<double>();
    unsigned items = chunks * per_group, last = voxels - (chunks - 1) * chunk;
    const moments *own = partial + static_cast<size_t>(blockIdx.x) * items;
    double n = static_cast<double>(voxels) * per_group, sum = 0, squares = 0;
    for (unsigned i = threadIdx.x; i < items; i += JOIN_THREADS)
        sum += own[i].mean * ((i + 1) % chunks ? chunk : last);
    double mean = block_sum(sum, shared) / n;
    for (unsigned i = threadIdx.x; i < items; i += JOIN_THREADS) {
        double delta = own[i].mean - mean;
        squares += own[i].squares + delta * delta * ((i + 1) % chunks ? chunk : last);
    }
    double variance = block_sum(squares, shared) / n;
    if (threadIdx.x == 0) {
        statistics[2 * blockIdx.x] = static_cast<float>(mean);
        statistics[2 * blockIdx.x + 1] =
            static_cast<float>(1.0 / sqrt(variance + static_cast<double>(epsilon)));
    }
}

extern "C" size_t normalise_workspace(const device_tensor *in, unsigned samples, unsigned groups)
{
    (void)groups;
    return static_cast<size_t>(samples) * in->channels * measure_share_of(in).chunks *
           sizeof(moments);
}

extern "C" cudaError_t kernel_normalise_statistics(const device_tensor *in, unsigned samples,
                                                   unsigned groups, float epsilon,
                                                   float *statistics, void *workspace,
                                                   cudaStream_t stream)
{
    measure_share m = measure_share_of(in);
    unsigned voxels = in->dim[0] * in->dim[1] * in->dim[2];
    moments *partial = static_cast<moments *>(workspace);
    if (m.chunks == 0 || m.slabs == 0 || samples == 0)
        return cudaSuccess;
    cudaError_t error = with_access(tensor_moves_8(in), in, [&](auto access) {
        typedef decltype(access) Access;
        size_t shared = m.across * m.rows * (1 + 2 * Access::width) * sizeof(float);
        return launch(measure_kernel<Access>, dim3(m.chunks, m.slabs, samples),
                      dim3(m.across, m.rows), shared, stream, *in, m.chunk, partial);
    });
    if (error != cudaSuccess)
        return error;
    return launch(join_kernel, dim3(samples * groups), dim3(JOIN_THREADS),
                  JOIN_THREADS / 32 * sizeof(double), stream, partial, voxels, m.chunk, m.chunks,
                  in->channels / groups, epsilon, statistics);
}

/* ---- Apply ---------------------------------------------------------------------------------- */

#define APPLY_VOXELS 16 /* of a thread */

struct normalisation {
    const float *statistics, *scale, *shift;
    unsigned groups;
    divider per_group;
};

/* Of channels c to c + width - 1: y = (x - mean)*scale + shift. */
template <class Access> struct channel_constants {
    typename Access::values mean, scale, shift;
};

template <class Access>
__device__ __forceinline__ channel_constants<Access> constants_of(const normalisation &norm,
                                                                  unsigned c)
{
    channel_constants<Access> k;
    k.scale = norm.scale ? Access::channels(norm.scale, c) : fill<Access>(1);
    k.shift = norm.shift ? Access::channels(norm.shift, c) : fill<Access>(0);
    const float *of_sample = norm.statistics + static_cast<size_t>(blockIdx.z) * norm.groups * 2;
#pragma unroll
    for (unsigned i = 0; i < Access::width; i++) {
        unsigned group = divide(c + i, norm.per_group);
        k.mean.v[i] = of_sample[2 * group];
        k.scale.v[i] *= of_sample[2 * group + 1];
    }
    return k;
}

template <class Access>
static __global__ void normalise_kernel(device_tensor in, device_tensor out, normalisation norm,
                                        voxel_share share, device_epilogue e)
{
    unsigned c = share_channel<Access>(), first = share_first_voxel(share);
    if (c >= share.channels)
        return;
    channel_constants<Access> constants = constants_of<Access>(norm, c);
    for (unsigned done = 0; done < share.each;
         done += Access::early, first += Access::early * blockDim.y) {
        typename Access::raw raw[Access::early];
#pragma unroll
        for (unsigned k = 0; k < Access::early; k++) {
            unsigned voxel = first + k * blockDim.y;
            if (done + k < share.each && voxel < share.voxels)
                raw[k] = Access::load(in.data, in.type, element_at(in, voxel, c));
        }
#pragma unroll
        for (unsigned k = 0; k < Access::early; k++) {
            unsigned voxel = first + k * blockDim.y;
            if (done + k >= share.each || voxel >= share.voxels)
                return;
            typename Access::values v = Access::widen(raw[k]);
#pragma unroll
            for (unsigned i = 0; i < Access::width; i++)
                v.v[i] =
                    (v.v[i] - constants.mean.v[i]) * constants.scale.v[i] + constants.shift.v[i];
            share_finish<Access>(out, e, share_epilogue_place(share, voxel), voxel, c, v);
        }
    }
}

extern "C" cudaError_t kernel_normalise_apply(const device_tensor *in, const device_tensor *out,
                                              unsigned samples, unsigned groups,
                                              const float *statistics, const float *scale,
                                              const float *shift, const device_epilogue *epilogue,
                                              cudaStream_t stream)
{
    if (in->channels == 0)
        return cudaSuccess;
    normalisation norm = {statistics, scale, shift, groups, divider_of(in->channels / groups)};
    return with_access(tensor_moves_8(in) && tensor_moves_8(out), in, [&](auto access) {
        typedef decltype(access) Access;
        share_launch l = share_voxels(out, samples, Access::width, APPLY_VOXELS, epilogue);
        return launch(normalise_kernel<Access>, l.grid, l.block, 0, stream, *in, *out, norm,
                      l.share, *epilogue);
    });
}

/* ---- Global average ------------------------------------------------------------------------- */

/* A thread for each sample and channel. */
static __global__ void global_average_kernel(const float *statistics, device_tensor out,
                                             unsigned samples, device_epilogue e)
{
    size_t i = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    place at = {static_cast<unsigned>(i / out.channels), 0, 0, 0};
    if (at.sample >= samples)
        return;
    unsigned c = static_cast<unsigned>(i % out.channels);
    float v = epilogue_apply(e, at, c, statistics[2 * i]);
    store_element(out.data, out.type, at.sample * out.sample + c, v);
}

extern "C" cudaError_t kernel_global_average(const float *statistics, const device_tensor *out,
                                             unsigned samples, const device_epilogue *epilogue,
                                             cudaStream_t stream)
{
    size_t values = static_cast<size_t>(samples) * out->channels;
    return launch(global_average_kernel, dim3(blocks_for(values, SHARE_THREADS)),
                  dim3(SHARE_THREADS), 0, stream, statistics, *out, samples, *epilogue);
}
