/* SPDX-License-Identifier: Apache-2.0 */
/*
 * 3x3x3 convolutions of high resolutions on tensor cores, each input voxel fetched once per block:
 * y[voxel][o] = epilogue(sum over kz, ky, kx, i of x[voxel + k - pad][i] * w[o][kz][ky][kx][i]).
 *
 * Layouts: channels-last, views on both sides; w (O, kz, ky, kx, I) in the input's type.
 * Preconditions (convolution_halo_takes): stride and dilation 1, one group, not transposed, I and O
 * multiples of 16, bf16 or fp16, input and weights where 16 bytes can be loaded at once (pitch too).
 * Padding and sizes are free, and so are alignment and type of the result.
 *
 * A block makes a box of 16 x 8 x 4 voxels (x, y, z) x 32 output channels, or 16 where O asks for it;
 * each of its 4 warps one plane: 8 rows of 16 voxels, a fragment's height. The input's box, with one
 * voxel more on all sides, lies in shared memory for 16 channels at a time, the weights for a (kz,
 * kx) at a time in a ring: both come by asynchronous copies, the weights two parts ahead. For one
 * (kz, kx) a warp keeps the weights of the three ky in fragments and walks the 10 rows of input: each
 * is loaded once and multiplied for the up to three rows of results that see it.
 *
 * A fragment's rows, voxels, should begin in different banks, so an odd number of 16-byte pieces
 * apart; but fragments have to begin at multiples of 32 bytes, also where kx moves them by a voxel.
 * So a voxel has three pieces: channels 0 to 7, 8 to 15, and 0 to 7 again. From an even voxel the
 * first two are loaded, from an odd one the last two, the channels being in the order 8 to 15, 0 to
 * 7; the weights for kx = 1 lie in that order too.
 *
 * Per voxel: 54*I*O FLOPs; per 32 output channels, from L2 2.1*I elements of the input and 1.7*I of
 * the weights, from shared memory 85 bytes per matrix instruction (16 x 8 x 16); from memory I read
 * once while neighbouring blocks share it, O written. 32 -> 32, bf16: 55 kFLOP, 128 bytes.
 *
 * Tolerance: products of bf16 and fp16 are exact in float. Sums are in float, in the hardware's order
 * within a fragment's depth, so they differ from convolution.cu by the rounding of some additions.
 */
#include <cuda_pipeline.h>
#include <mma.h>

#include "kernels/convolution.cuh"

namespace wmma = nvcuda::wmma;

/* Voxels of results of a block and of its input. */
static constexpr unsigned box_x = 16, box_y = 8, box_z = 4;
static constexpr unsigned halo_x = box_x + 2, halo_y = box_y + 2, halo_z = box_z + 2;
static constexpr unsigned threads = 32 * box_z;
static constexpr unsigned depth = 16; /* input channels at a time */
static constexpr unsigned piece = 8;  /* elements moved at once */
static constexpr unsigned pitch = 24; /* elements of a voxel, or of an output channel's weights */
static constexpr unsigned line = halo_x * pitch;
static constexpr unsigned box_elements = halo_z * halo_y * line;

/* The part of the result that a block makes: its first voxel and channel. */
struct halo_place {
    unsigned sample, z, y, x, channel;
};

/* With N output channels. */
template <unsigned N> struct halo_shape {
    static constexpr unsigned across = N / 16;      /* fragments */
    static constexpr unsigned ring = 3;             /* parts of the weights */
    static constexpr unsigned part = 3 * N * pitch; /* elements of one (kz, kx) */
    static constexpr unsigned result_row = N + 4;
    static constexpr size_t operand_bytes = (box_elements + ring * part) * 2;
    static constexpr size_t result_bytes = box_x * box_y * box_z * result_row * sizeof(float);
    static constexpr size_t shared = operand_bytes > result_bytes ? operand_bytes : result_bytes;
    /* On a multiprocessor at once. */
    static constexpr unsigned blocks = SHARED_IN_ALL / (shared + SHARED_OF_BLOCK);
};

template <unsigned N> __device__ __forceinline__ halo_place halo_place_of(const device_tensor &out)
{
    unsigned tiles = out.channels / N, nx = (out.dim[2] + box_x - 1) / box_x;
    unsigned ny = (out.dim[1] + box_y - 1) / box_y, nz = (out.dim[0] + box_z - 1) / box_z;
    unsigned rest = blockIdx.x;
    halo_place p;
    p.channel = rest % tiles * N;
    rest /= tiles;
    p.x = rest % nx * box_x;
    rest /= nx;
    p.y = rest % ny * box_y;
    rest /= ny;
    p.z = rest % nz * box_z;
    p.sample = rest / nz;
    return p;
}

/* The input's box, 16 channels from `channel` on: line by line, warp after warp, a lane up to two
 * pieces of each line. */
template <class T>
__device__ __forceinline__ void move_box(const device_convolution &convolution,
                                         const device_tensor &in, const halo_place &place,
                                         unsigned channel, T *box)
{
    const T *x = static_cast<const T *>(in.data) + place.sample * in.sample + channel;
    constexpr unsigned pieces = halo_x * 3, most = (pieces + 31) / 32;
    int z0 = static_cast<int>(place.z) - convolution.pad_begin[0];
    int y0 = static_cast<int>(place.y) - convolution.pad_begin[1];
    int x0 = static_cast<int>(place.x) - convolution.pad_begin[2];
#pragma unroll 1
    for (unsigned l = threadIdx.x / 32; l < halo_z * halo_y; l += threads / 32) {
        int iz = z0 + static_cast<int>(l / halo_y), iy = y0 + static_cast<int>(l % halo_y);
        bool there = within(iz, in.dim[0]) && within(iy, in.dim[1]);
        unsigned row = static_cast<unsigned>(iz) * in.dim[1] + static_cast<unsigned>(iy);
#pragma unroll
        for (unsigned i = 0; i < most; i++) {
            unsigned item = threadIdx.x % 32 + i * 32, at = item / 3, third = item % 3;
            int ix = x0 + static_cast<int>(at);
            unsigned voxel = row * in.dim[2] + static_cast<unsigned>(ix);
            if (item >= pieces)
                continue;
            T *to = box + l * line + item * piece;
            if (there && within(ix, in.dim[2]))
                __pipeline_memcpy_async(to, x + voxel * in.pitch + third % 2 * piece, 16);
            else
                *reinterpret_cast<uint4 *>(to) = make_uint4(0, 0, 0, 0);
        }
    }
}

/* A part of the weights: k = 3 kz + kx, 16 channels from the first. Its place in the ring is kx. */
struct part_step {
    unsigned k, channel;
};

__device__ __forceinline__ part_step step_on(part_step step, unsigned parts)
{
    step.k += parts;
    if (step.k >= 9) {
        step.k -= 9;
        step.channel += depth;
    }
    return step;
}

/* What a thread moves of each part of the weights: one piece, or two of the same output channel. */
template <class T, unsigned N> struct part_mover {
    static constexpr unsigned pieces = 3 * N * 2, most = (pieces + threads - 1) / threads;
    static constexpr unsigned apart = threads / (2 * N); /* in ky */
    static_assert(threads % (2 * N) == 0, "a thread keeps its output channel");
    unsigned from, to; /* elements from the part's first */

    __device__ __forceinline__ void begin(unsigned channels)
    {
        unsigned second = threadIdx.x % 2, o = threadIdx.x / 2 % N, ky = threadIdx.x / (2 * N);
        from = (o * 27 + ky * 3) * channels + second * piece;
        to = (ky * N + o) * pitch + second * piece;
    }

    /* Sends for a part, if there is one; a group of copies in any case. w: of the block's first
     * output channel. */
    __device__ __forceinline__ void fetch(unsigned channels, const part_step &step, const T *w,
                                          T *ring) const
    {
        if (step.channel < channels) {
            const T *part = w + (step.k / 3 * 9 + step.k % 3) * channels + step.channel;
            T *slot = ring + step.k % 3 * halo_shape<N>::part + to;
            part += step.k % 3 == 1 ? from ^ piece : from; /* all else is a multiple of 16 */
#pragma unroll
            for (unsigned i = 0; i < most; i++)
                if (pieces % threads == 0 || threadIdx.x + i * threads < pieces)
                    __pipeline_memcpy_async(slot + i * apart * N * pitch,
                                            part + i * apart * 3 * channels, 16);
        }
        __pipeline_commit();
    }
};

/* A fragment of rows `pitch` apart in shared memory: one ldmatrix. Of bf16's own load nvcc 13.0 makes
 * four generic loads of 4 bytes, because it does not know there that the address is a shared one;
 * so bf16 is loaded as if it were fp16. CUDA does not promise that elements have the same places in
 * fragments of both types; the products of all architectures that nvcc 13.0 knows, 8.0 to 12.1, take
 * them in the same registers, and the test on a device would show another one. */
template <class Use, class Layout>
__device__ __forceinline__ void load_fragment(wmma::fragment<Use, 16, 16, 16, __half, Layout> &f,
                                              const __half *from)
{
    wmma::load_matrix_sync(f, from, pitch);
}
template <class Use, class Layout>
__device__ __forceinline__ void
load_fragment(wmma::fragment<Use, 16, 16, 16, __nv_bfloat16, Layout> &f, const __nv_bfloat16 *from)
{
    wmma::fragment<Use, 16, 16, 16, __half, Layout> bits;
    wmma::load_matrix_sync(bits, reinterpret_cast<const __half *>(from), pitch);
    memcpy(f.x, bits.x, sizeof f.x);
}

/* A warp's 8 rows of 16 voxels x N output channels. */
template <class T, unsigned N> struct halo_sums {
    using shape = halo_shape<N>;
    wmma::fragment<wmma::accumulator, 16, 16, 16, float> sum[box_y][shape::across];

    __device__ __forceinline__ void clear()
    {
#pragma unroll
        for (unsigned i = 0; i < box_y; i++)
#pragma unroll
            for (unsigned j = 0; j < shape::across; j++)
                wmma::fill_fragment(sum[i][j], 0.0f);
    }

    /* rows: the first row of input of this (kz, kx). */
    __device__ __forceinline__ void multiply(const T *rows, const T *part)
    {
        wmma::fragment<wmma::matrix_b, 16, 16, 16, T, wmma::col_major> b[3][shape::across];
#pragma unroll
        for (unsigned r = 0; r < halo_y; r++) {
            if (r < 3)
#pragma unroll
                for (unsigned j = 0; j < shape::across; j++)
                    load_fragment(b[r][j], part + (r * N + j * 16) * pitch);
            wmma::fragment<wmma::matrix_a, 16, 16, 16, T, wmma::row_major> a;
            load_fragment(a, rows + r * line);
#pragma unroll
            for (unsigned ky = 0; ky < 3; ky++)
#pragma unroll
                for (unsigned j = 0; j < shape::across; j++)
                    if (r >= ky && r - ky < box_y)
                        wmma::mma_sync(sum[r - ky][j], a, b[ky][j], sum[r - ky][j]);
        }
    }

    /* tile: of the warp. */
    __device__ __forceinline__ void store(float *tile) const
    {
#pragma unroll
        for (unsigned i = 0; i < box_y; i++)
#pragma unroll
            for (unsigned j = 0; j < shape::across; j++)
                wmma::store_matrix_sync(tile + i * box_x * shape::result_row + j * 16, sum[i][j],
                                        shape::result_row, wmma::mem_row_major);
    }
};

/* Ends and stores a warp's plane, eight channels at a time. */
template <class T, unsigned N>
__device__ __forceinline__ void store_plane(const convolution_result &result,
                                            const halo_place &first, const float *tile)
{
    constexpr unsigned octets = N / 8;
    const device_tensor &out = result.out;
    place at = {first.sample, first.z + threadIdx.x / 32, 0, 0};
    if (at.z >= out.dim[0])
        return;
#pragma unroll 1
    for (unsigned item = threadIdx.x % 32; item < box_x * box_y * octets; item += 32) {
        unsigned row = item / octets, c = item % octets * 8;
        at.y = first.y + row / box_x;
        at.x = first.x + row % box_x;
        if (at.y < out.dim[1] && at.x < out.dim[2])
            store_channels<T>(result, at, first.channel + c, 8,
                              load8(tile + row * halo_shape<N>::result_row + c));
    }
}

template <class T, unsigned N>
static __global__ void __launch_bounds__(threads, halo_shape<N>::blocks)
    convolution_halo_kernel(device_convolution convolution, device_tensor in,
                            convolution_result result)
{
    using shape = halo_shape<N>;
    T *box = dynamic_shared<T>(), *ring = box + box_elements;
    halo_place place = halo_place_of<N>(result.out);
    const T *w = static_cast<const T *>(convolution.weight) +
                 place.channel * 27 * static_cast<size_t>(in.channels);
    halo_sums<T, N> sums;
    part_mover<T, N> parts;
    part_step step = {0, 0};
    /* So that the compiler knows that it is the same in all lanes: saves registers. */
    const unsigned warp = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0);
    parts.begin(in.channels);
    sums.clear();
    parts.fetch(in.channels, step, w, ring);
    parts.fetch(in.channels, step_on(step, 1), w, ring);
#pragma unroll 1
    while (step.channel < in.channels) {
        if (step.k == 0) {
            __syncthreads(); /* the box is not read any more */
            move_box(convolution, in, place, step.channel, box);
            __pipeline_commit();
            __pipeline_wait_prior(0);
        }
        __pipeline_wait_prior(1); /* the next part may be on its way, this one may not */
        __syncthreads();
        parts.fetch(in.channels, step_on(step, 2), w, ring);
        unsigned plane = warp + step.k / 3, kx = step.k % 3;
        sums.multiply(box + plane * halo_y * line + kx * pitch + kx % 2 * piece,
                      ring + kx * shape::part);
        step = step_on(step, 1);
    }
    __syncthreads(); /* the sums lie where the operands lay */
    float *tile = dynamic_shared<float>() + threadIdx.x / 32 * box_x * box_y * shape::result_row;
    sums.store(tile);
    __syncwarp();
    store_plane<T, N>(result, place, tile);
}

/* ---- Launch --------------------------------------------------------------------------------- */

bool convolution_halo_takes(const device_convolution *convolution, const device_tensor *in,
                            const device_tensor *out)
{
    bool plain = convolution->groups == 1 && !convolution->transposed;
    for (int a = 0; a < 3; a++)
        plain = plain && convolution->kernel[a] == 3 && convolution->stride[a] == 1 &&
                convolution->dilation[a] == 1;
    return plain && in->type != ELEMENT_F32 && in->channels % depth == 0 &&
           out->channels % 16 == 0 && tensor_moves_8(in) &&
           reinterpret_cast<uintptr_t>(convolution->weight) % 16 == 0;
}

static inline size_t halo_boxes(const device_tensor *out)
{
    return static_cast<size_t>((out->dim[0] + box_z - 1) / box_z) *
           ((out->dim[1] + box_y - 1) / box_y) * ((out->dim[2] + box_x - 1) / box_x);
}

bool convolution_halo_pays(const device_tensor *out)
{
    size_t voxels = static_cast<size_t>(out->dim[0]) * out->dim[1] * out->dim[2];
    return 2 * voxels >= halo_boxes(out) * box_x * box_y * box_z;
}

template <class T, unsigned N>
static cudaError_t launch_halo(const device_convolution *convolution, const device_tensor *in,
                               const convolution_result &result, unsigned samples,
                               cudaStream_t stream)
{
    dim3 grid;
    if (!grid_of(halo_boxes(&result.out) * samples * (result.out.channels / N), &grid))
        return cudaErrorInvalidConfiguration;
    return launch(convolution_halo_kernel<T, N>, grid, dim3(threads), halo_shape<N>::shared, stream,
                  *convolution, *in, result);
}

template <class T>
static cudaError_t launch_type(const device_convolution *convolution, const device_tensor *in,
                               const convolution_result &result, unsigned samples,
                               cudaStream_t stream)
{
    if (result.out.channels % 32 == 0)
        return launch_halo<T, 32>(convolution, in, result, samples, stream);
    return launch_halo<T, 16>(convolution, in, result, samples, stream);
}

cudaError_t kernel_convolution_halo(const device_convolution *convolution, const device_tensor *in,
                                    const device_tensor *out, unsigned samples,
                                    const device_epilogue *epilogue, cudaStream_t stream)
{
    if (!convolution_halo_takes(convolution, in, out))
        return cudaErrorInvalidValue;
    convolution_result result = result_of(out, epilogue, in->type);
    if (in->type == ELEMENT_BF16)
        return launch_type<__nv_bfloat16>(convolution, in, result, samples, stream);
    return launch_type<__half>(convolution, in, result, samples, stream);
}
