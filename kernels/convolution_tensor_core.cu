/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Direct convolutions on tensor cores: the implicit matrix product
 * y[voxel][o] = epilogue(sum over tap, i of x[voxel under tap][i] * w[o][tap][i]).
 *
 * Layouts: channels-last, views on both sides; w (O, kz, ky, kx, I) in the input's type.
 * Preconditions (convolution_tensor_core_takes): one group, not transposed, I and O multiples of
 * 16, input and weights where 16 bytes can be loaded at once (pitch too); bf16, fp16, or float32
 * whose products may be rounded to TF32. Kernel, stride, dilation, padding and sizes are free, and
 * so are alignment and type of the result.
 *
 * A block makes 128 voxels of one sample, consecutive in memory, x 16, 32 or 64 output channels;
 * each warp 32 voxels x 32 channels (16 where O asks for it) in fragments of 16 x 16. The summed
 * axis goes tap by tap in steps of 64 bytes, 32 channels (16 of float32, or if I is no multiple of
 * 32). Its tiles lie in shared memory as rows of one voxel or output channel, 16 bytes longer than
 * their channels: then eight consecutive rows begin in different banks. Two buffers: while one is
 * multiplied, the next step is on its way from memory to registers; cp.async in place of fetch()
 * and put(), with more buffers, belongs here once measured. nvcc 13.0 makes ldmatrix of fp16's
 * fragment loads, but generic loads of 4 bytes of those of bf16 and TF32: as free of bank
 * conflicts, with four times the instructions. At the end the sums go through shared memory, so
 * that each thread ends eight channels of a voxel and stores 16 bytes.
 *
 * Per voxel: 2*taps*I*O FLOPs; from L2 and L1 taps*I elements per 64 output channels, from memory
 * I read once while neighbouring blocks share it, O written. 64 -> 64, 3x3x3, bf16: 221 kFLOP, 256
 * bytes.
 *
 * Tolerance: products of bf16 and fp16 are exact in float; TF32 rounds each factor to 11 bits,
 * 2^-11 relative, 2^-10 per product. Sums are in float, in the hardware's order within a fragment's
 * depth, so they differ from convolution.cu by the rounding of some additions.
 */
#include <mma.h>

#include "kernels/convolution.cuh"

namespace wmma = nvcuda::wmma;

static constexpr unsigned tile_voxels = 128;

/* How the tensor core takes elements that lie in memory as T. */
template <class T> struct matrix_type {
    using element = T;
    static constexpr unsigned depth = 16;
};
template <> struct matrix_type<float> {
    using element = wmma::precision::tf32;
    static constexpr unsigned depth = 8;
};

/* The shape of a block's work: N output channels, K input channels at a time. */
template <class T, unsigned N, unsigned K> struct tile_shape {
    static constexpr unsigned piece = 16 / sizeof(T); /* elements moved at once */
    static constexpr unsigned pieces = K / piece;     /* in a row */
    static constexpr unsigned warps_across = N == 64 ? 2 : 1;
    static constexpr unsigned threads = 128 * warps_across;
    /* On a multiprocessor at once; registers are shared out accordingly, without spills. */
    static constexpr unsigned blocks =
        threads == 256 ? (sizeof(T) == 4 ? 2 : 3) : (sizeof(T) == 4 ? 4 : 5);
    static constexpr unsigned rows_at_once = threads / pieces;
    static constexpr unsigned inputs = tile_voxels / rows_at_once; /* pieces per thread */
    static constexpr unsigned weights = (N + rows_at_once - 1) / rows_at_once;
    static constexpr unsigned row = K + piece;
    static constexpr unsigned buffer = (tile_voxels + N) * row; /* elements */
    static constexpr unsigned result_row = N + 4;
    static constexpr unsigned down = 2, across = N / warps_across / 16; /* fragments of a warp */
    static constexpr size_t operand_bytes = 2 * buffer * sizeof(T);
    static constexpr size_t result_bytes = tile_voxels * result_row * sizeof(float);
    static constexpr size_t shared = operand_bytes > result_bytes ? operand_bytes : result_bytes;
};

/* Where the block is on the summed axis. */
struct tap_step {
    int k[3];
    unsigned channel;
};

/* What a thread moves: one piece of every rows_at_once-th row of both operands. */
template <class T, unsigned N, unsigned K> struct mover {
    using shape = tile_shape<T, N, K>;
    int z[shape::inputs], y[shape::inputs], x[shape::inputs]; /* under tap 0 */
    uint4 input[shape::inputs], weight[shape::weights];

    __device__ __forceinline__ void begin(const device_convolution &convolution,
                                          const device_tensor &out, unsigned first_voxel)
    {
#pragma unroll
        for (unsigned i = 0; i < shape::inputs; i++) {
            unsigned voxel = first_voxel + threadIdx.x / shape::pieces + i * shape::rows_at_once;
            place at = place_of(0, voxel, out.dim);
            z[i] = static_cast<int>(at.z) * convolution.stride[0] - convolution.pad_begin[0];
            y[i] = static_cast<int>(at.y) * convolution.stride[1] - convolution.pad_begin[1];
            x[i] = static_cast<int>(at.x) * convolution.stride[2] - convolution.pad_begin[2];
            if (at.z >= out.dim[0])
                z[i] = -(1 << 30); /* beyond the last voxel: under no tap */
        }
    }

    /* input_data: of the sample; weight_data: of the first output channel and this step. */
    __device__ __forceinline__ void fetch(const device_convolution &convolution,
                                          const device_tensor &in, const T *input_data,
                                          const T *weight_data, size_t weights_per_channel,
                                          const tap_step &step)
    {
        unsigned row = threadIdx.x / shape::pieces;
        unsigned piece = threadIdx.x % shape::pieces * shape::piece;
#pragma unroll
        for (unsigned i = 0; i < shape::inputs; i++) {
            int iz = z[i] + step.k[0] * convolution.dilation[0];
            int iy = y[i] + step.k[1] * convolution.dilation[1];
            int ix = x[i] + step.k[2] * convolution.dilation[2];
            input[i] = make_uint4(0, 0, 0, 0);
            if (within(iz, in.dim[0]) && within(iy, in.dim[1]) && within(ix, in.dim[2])) {
                unsigned rows = static_cast<unsigned>(iz) * in.dim[1] + static_cast<unsigned>(iy);
                unsigned voxel = rows * in.dim[2] + static_cast<unsigned>(ix);
                const T *from = input_data + voxel * in.pitch + step.channel + piece;
                input[i] = *reinterpret_cast<const uint4 *>(from);
            }
        }
#pragma unroll
        for (unsigned i = 0; i < shape::weights; i++) {
            unsigned o = row + i * shape::rows_at_once;
            if (N % shape::rows_at_once == 0 || o < N)
                weight[i] =
                    *reinterpret_cast<const uint4 *>(weight_data + o * weights_per_channel + piece);
        }
    }

    __device__ __forceinline__ void put(T *buffer) const
    {
        unsigned row = threadIdx.x / shape::pieces;
        T *to = buffer + row * shape::row + threadIdx.x % shape::pieces * shape::piece;
#pragma unroll
        for (unsigned i = 0; i < shape::inputs; i++)
            put_piece(to + i * shape::rows_at_once * shape::row, input[i]);
        to += tile_voxels * shape::row;
#pragma unroll
        for (unsigned i = 0; i < shape::weights; i++)
            if (N % shape::rows_at_once == 0 || row + i * shape::rows_at_once < N)
                put_piece(to + i * shape::rows_at_once * shape::row, weight[i]);
    }

    /* Floats are rounded to TF32 here, once, and not as often as fragments load them. */
    static __device__ __forceinline__ void put_piece(T *to, uint4 piece)
    {
        if (sizeof(T) == 4) {
            float v[4];
            memcpy(v, &piece, sizeof v);
            *reinterpret_cast<float4 *>(to) =
                make_float4(wmma::__float_to_tf32(v[0]), wmma::__float_to_tf32(v[1]),
                            wmma::__float_to_tf32(v[2]), wmma::__float_to_tf32(v[3]));
        } else {
            *reinterpret_cast<uint4 *>(to) = piece;
        }
    }
};

/* To the next K channels; true while there are some. */
template <unsigned K>
__device__ __forceinline__ void step_on(const int kernel[3], unsigned channels, tap_step *step)
{
    step->channel += K;
    if (step->channel < channels)
        return;
    step->channel = 0;
    if (++step->k[2] < kernel[2])
        return;
    step->k[2] = 0;
    if (++step->k[1] < kernel[1])
        return;
    step->k[1] = 0;
    step->k[0]++;
}

/* A warp's 32 voxels x 32 or 16 output channels. */
template <class T, unsigned N, unsigned K> struct warp_sums {
    using shape = tile_shape<T, N, K>;
    static constexpr unsigned depth = matrix_type<T>::depth;
    using element = typename matrix_type<T>::element;
    wmma::fragment<wmma::accumulator, 16, 16, depth, float> sum[shape::down][shape::across];

    __device__ __forceinline__ void clear()
    {
#pragma unroll
        for (unsigned i = 0; i < shape::down; i++)
#pragma unroll
            for (unsigned j = 0; j < shape::across; j++)
                wmma::fill_fragment(sum[i][j], 0.0f);
    }

    __device__ __forceinline__ static unsigned first_voxel()
    {
        return threadIdx.x / 32 / shape::warps_across * shape::down * 16;
    }

    __device__ __forceinline__ static unsigned first_channel()
    {
        return threadIdx.x / 32 % shape::warps_across * shape::across * 16;
    }

    __device__ __forceinline__ void multiply(const T *buffer)
    {
        const T *inputs = buffer + first_voxel() * shape::row;
        const T *weights = buffer + (tile_voxels + first_channel()) * shape::row;
#pragma unroll
        for (unsigned k = 0; k < K; k += depth) {
            wmma::fragment<wmma::matrix_a, 16, 16, depth, element, wmma::row_major> a[shape::down];
            wmma::fragment<wmma::matrix_b, 16, 16, depth, element, wmma::col_major>
                b[shape::across];
#pragma unroll
            for (unsigned i = 0; i < shape::down; i++)
                wmma::load_matrix_sync(a[i], inputs + i * 16 * shape::row + k, shape::row);
#pragma unroll
            for (unsigned j = 0; j < shape::across; j++)
                wmma::load_matrix_sync(b[j], weights + j * 16 * shape::row + k, shape::row);
#pragma unroll
            for (unsigned i = 0; i < shape::down; i++)
#pragma unroll
                for (unsigned j = 0; j < shape::across; j++)
                    wmma::mma_sync(sum[i][j], a[i], b[j], sum[i][j]);
        }
    }

    __device__ __forceinline__ void store(float *tile) const
    {
        tile += first_voxel() * shape::result_row + first_channel();
#pragma unroll
        for (unsigned i = 0; i < shape::down; i++)
#pragma unroll
            for (unsigned j = 0; j < shape::across; j++)
                wmma::store_matrix_sync(tile + i * 16 * shape::result_row + j * 16, sum[i][j],
                                        shape::result_row, wmma::mem_row_major);
    }
};

template <class T, unsigned N, unsigned K>
static __global__ void __launch_bounds__(tile_shape<T, N, K>::threads, tile_shape<T, N, K>::blocks)
    convolution_tensor_core_kernel(device_convolution convolution, device_tensor in,
                                   convolution_result result)
{
    using shape = tile_shape<T, N, K>;
    T *buffers = dynamic_shared<T>();
    const device_tensor &out = result.out;
    unsigned voxels = out.dim[0] * out.dim[1] * out.dim[2];
    unsigned channel_tiles = out.channels / N, tiles = (voxels + tile_voxels - 1) / tile_voxels;
    unsigned channel = blockIdx.x % channel_tiles * N, tile = blockIdx.x / channel_tiles;
    unsigned sample = tile / tiles, first_voxel = tile % tiles * tile_voxels;

    const int *kernel = convolution.kernel;
    unsigned length = static_cast<unsigned>(kernel[0] * kernel[1] * kernel[2]) * in.channels;
    const T *x = static_cast<const T *>(in.data) + sample * in.sample;
    const T *w = static_cast<const T *>(convolution.weight) + channel * static_cast<size_t>(length);
    mover<T, N, K> move;
    warp_sums<T, N, K> sums;
    tap_step step = {{0, 0, 0}, 0};
    sums.clear();
    move.begin(convolution, out, first_voxel);
    move.fetch(convolution, in, x, w, length, step);
    move.put(buffers);
    __syncthreads();
    unsigned now = 0; /* the buffer that is multiplied */
#pragma unroll 1
    for (unsigned done = K; done < length; done += K, now ^= 1) {
        step_on<K>(kernel, in.channels, &step);
        move.fetch(convolution, in, x, w + done, length, step);
        sums.multiply(buffers + now * shape::buffer);
        move.put(buffers + (now ^ 1) * shape::buffer);
        __syncthreads();
    }
    sums.multiply(buffers + now * shape::buffer);

    __syncthreads(); /* the sums lie where the operands lay */
    float *staged = dynamic_shared<float>();
    sums.store(staged);
    __syncthreads();
    tile_place part = {cells_of(convolution, out.dim, 0),      sample,  first_voxel,
                       min(voxels - first_voxel, tile_voxels), channel, N};
    store_tile<T>(result, part, staged, shape::result_row);
}

/* ---- Launch --------------------------------------------------------------------------------- */

bool convolution_tensor_core_takes(const device_convolution *convolution, const device_tensor *in,
                                   const device_tensor *out)
{
    size_t size = in->type == ELEMENT_F32 ? 4 : 2;
    bool aligned = reinterpret_cast<uintptr_t>(in->data) % 16 == 0 &&
                   reinterpret_cast<uintptr_t>(convolution->weight) % 16 == 0 &&
                   in->pitch * size % 16 == 0 && in->sample * size % 16 == 0;
    return aligned && convolution->groups == 1 && !convolution->transposed &&
           (in->type != ELEMENT_F32 || convolution->tf32) && in->channels % 16 == 0 &&
           out->channels % 16 == 0;
}

template <class T, unsigned N, unsigned K>
static cudaError_t launch_shape(const device_convolution *convolution, const device_tensor *in,
                                const convolution_result &result, unsigned samples,
                                cudaStream_t stream)
{
    using shape = tile_shape<T, N, K>;
    const device_tensor &out = result.out;
    size_t voxels = static_cast<size_t>(out.dim[0]) * out.dim[1] * out.dim[2];
    size_t blocks = (voxels + tile_voxels - 1) / tile_voxels * samples * (out.channels / N);
    dim3 grid;
    if (!grid_of(blocks, &grid))
        return cudaErrorInvalidConfiguration;
    return launch(convolution_tensor_core_kernel<T, N, K>, grid, dim3(shape::threads),
                  shape::shared, stream, *convolution, *in, result);
}

template <class T, unsigned N>
static cudaError_t launch_channels(const device_convolution *convolution, const device_tensor *in,
                                   const convolution_result &result, unsigned samples,
                                   cudaStream_t stream)
{
    constexpr unsigned most = 64 / sizeof(T);
    if (in->channels % most == 0)
        return launch_shape<T, N, most>(convolution, in, result, samples, stream);
    return launch_shape<T, N, 16>(convolution, in, result, samples, stream);
}

cudaError_t kernel_convolution_tensor_core(const device_convolution *convolution,
                                           const device_tensor *in, const device_tensor *out,
                                           unsigned samples, const device_epilogue *epilogue,
                                           cudaStream_t stream)
{
    if (!convolution_tensor_core_takes(convolution, in, out))
        return cudaErrorInvalidValue;
    return with_type(in->type, [&](auto element) {
        using T = decltype(element);
        convolution_result result = result_of(out, epilogue, in->type);
        if (out->channels % 64 == 0)
            return launch_channels<T, 64>(convolution, in, result, samples, stream);
        if (out->channels % 32 == 0)
            return launch_channels<T, 32>(convolution, in, result, samples, stream);
        return launch_channels<T, 16>(convolution, in, result, samples, stream);
    });
}
