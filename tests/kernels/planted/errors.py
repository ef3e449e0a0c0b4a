# SPDX-License-Identifier: Apache-2.0
"""The errors that planted_errors.py plants: what is easily got wrong in each kernel."""

from typing import NamedTuple


class Planted(NamedTuple):
    """`old` has to be in the file once."""

    name: str
    file: str  # of kernels/
    old: str
    new: str
    test: str  # that has to fail
    sources: tuple[str, ...]  # compiled anew


def in_kernel(name, file, old, new, test):
    return Planted(name, file, old, new, test, (file,))


ERRORS = [
    # The first one's test is also run without an error.
    Planted(
        "resample: weights of the neighbour", "volume.cuh",
        "row_sum = add_product(row_sum, __ldg(wx + x), value);",
        "row_sum = add_product(row_sum, __ldg(wx + nx - 1 - x), value);",
        "test_resample_kernel", ("resample.cu",),
    ),
    # Windows out of a volume and back.
    in_kernel(
        "gather: wrong index between windows", "gather.cu",
        "out + (place * sample + in_tile * pitch)", "out + (place * pitch + in_tile * pitch)",
        "test_gather_kernel",
    ),
    in_kernel(
        "gather: all channels from one image", "gather.cu",
        "source.data += channel * g.apart;", "", "test_gather_kernel",
    ),
    in_kernel(
        "gather: channels in reverse", "gather.cu",
        "#pragma unroll 1\n        for (unsigned c = 0; c < C; c++) {",
        "for (unsigned c = C; c-- > 0;) {", "test_gather_kernel",
    ),
    in_kernel(
        "gather: air told by the first channel", "gather.cu",
        "input_quantity(g, g.air_channel, model)", "input_quantity(g, 0, model)",
        "test_gather_kernel",
    ),
    in_kernel(
        "gather: a fault of any channel", "gather.cu",
        "(window) * C + c)", "(window) * C)", "test_gather_kernel",
    ),
    in_kernel(
        "gather: voxels that cannot be stored at once", "gather.cu",
        "blocks > INT32_MAX || !has_whole_voxels<T, C>(out)", "blocks > INT32_MAX",
        "test_gather_kernel",
    ),
    in_kernel(
        "gather: NaN is the largest value", "gather.cu",
        "largest = q > largest ? q : largest;", "largest = q <= largest ? largest : q;",
        "test_gather_kernel",
    ),
    in_kernel(
        "stitch: wrong order of windows", "stitch.cu",
        "list->window[n + __popc(found & ((1u << lane) - 1))] = entry;",
        "list->window[n + __popc((found >> lane) >> 1)] = entry;",
        "test_stitch_kernels",
    ),
    in_kernel(
        "stitch: begins from nothing", "stitch.cu",
        "float total = *at;", "float total = 0;", "test_stitch_kernels",
    ),
    in_kernel(
        "finish: missing barrier", "stitch.cu",
        "range + lanes + rows);\n    __syncthreads();", "range + lanes + rows);",
        "test_stitch_kernels",
    ),
    # Between convolutions.
    in_kernel(
        "normalise: missing barrier", "normalise.cu",
        "        __syncthreads();\n        unsigned other", "        unsigned other",
        "test_normalise",
    ),
    in_kernel(
        "normalise: the last sum is overwritten", "normalise.cu",
        "__syncthreads(); /* the last sum has been read */", "", "test_normalise",
    ),
    in_kernel(
        "normalise: the short chunk counts as a long one", "normalise.cu",
        "sum += own[i].mean * ((i + 1) % chunks ? chunk : last);",
        "sum += own[i].mean * chunk;", "test_normalise",
    ),
    Planted(
        "pointwise: rounded towards zero", "device.cuh",
        "    return __float2bfloat16_rn(v);",
        "    uint32_t bits;\n    memcpy(&bits, &v, 4);\n    bits &= 0xffff0000u;\n"
        "    memcpy(&v, &bits, 4);\n    return __float2bfloat16_rn(v);",
        "test_pointwise", ("pointwise.cu",),
    ),
    Planted(
        "pointwise: reversed subtraction", "epilogue.cuh",
        "        return v - t;", "        return t - v;", "test_pointwise", ("pointwise.cu",),
    ),
    Planted(
        "pointwise: the upper bound is a lower one", "epilogue.cuh",
        "        return v > slope ? slope : v;", "        return v < slope ? slope : v;",
        "test_pointwise", ("pointwise.cu",),
    ),
    in_kernel(
        "pool: divided by the padding too", "pool.cu",
        "if (!pool.count_include_pad)", "if (pool.count_include_pad)", "test_pool",
    ),
    in_kernel(
        "resize: the lower voxel twice", "move_voxels.cu",
        "{map.x.low[at.x], map.x.high[at.x]}", "{map.x.low[at.x], map.x.low[at.x]}",
        "test_move_voxels",
    ),
    in_kernel(
        "unfold: exchanged axes", "unfold.cu",
        "(p * u.y.by + q) * u.x.by + r", "(p * u.y.by + r) * u.x.by + q", "test_unfold",
    ),
    # Convolutions.
    in_kernel(
        "convolution: a dropped channel", "convolution.cu",
        "        multiply(inputs, factors, sum);",
        "        if (done + tile_depth < length || length % tile_depth == 0)\n"
        "            multiply(inputs, factors, sum);",
        "test_convolution_kernel",
    ),
    in_kernel(
        "convolution: missing barrier", "convolution.cu",
        "        multiply(inputs, factors, sum);\n        __syncthreads();",
        "        multiply(inputs, factors, sum);", "test_convolution_kernel",
    ),
    in_kernel(
        "tensor cores: wrong tap", "convolution_tensor_core.cu",
        "int iy = y[i] + step.k[1] * convolution.dilation[1];", "int iy = y[i] + step.k[1];",
        "test_convolution_tensor_core",
    ),
    in_kernel(
        "tensor cores: sums over operands", "convolution_tensor_core.cu",
        "__syncthreads(); /* the sums lie where the operands lay */", "",
        "test_convolution_tensor_core",
    ),
    in_kernel(
        "halo: another channel's piece", "convolution_halo.cu",
        "third % 2 * piece", "third * piece", "test_convolution_halo",
    ),
    in_kernel(
        "halo: order of channels", "convolution_halo.cu",
        "step.k % 3 == 1 ? from ^ piece : from", "from", "test_convolution_halo",
    ),
    in_kernel(
        "halo: weights on their way", "convolution_halo.cu",
        "__pipeline_wait_prior(1);", "__pipeline_wait_prior(2);", "test_convolution_halo",
    ),
    in_kernel(
        "halo: box still read", "convolution_halo.cu",
        "__syncthreads(); /* the box is not read any more */", "", "test_convolution_halo",
    ),
    in_kernel(
        "halo: sums over operands", "convolution_halo.cu",
        "__syncthreads(); /* the sums lie where the operands lay */", "",
        "test_convolution_halo",
    ),
    in_kernel(
        "first layer: padding of the wrong side", "convolution_first.cu",
        "bool inside = within(z, in.dim[0]) && within(y, in.dim[1]);",
        "bool inside = z < static_cast<int>(in.dim[0]) && z > 0 && within(y, in.dim[1]);",
        "test_convolution_first",
    ),
    in_kernel(
        "gate: missing barrier", "attention_gate.cu",
        "    make_scale<T>(gate, layout, shared);\n    __syncthreads();",
        "    make_scale<T>(gate, layout, shared);", "test_attention_gate",
    ),
    in_kernel(
        "gate: stale rows beyond the last voxel", "attention_gate.cu",
        "unsigned n = min(voxels - first, layout.voxels)", "unsigned n = layout.voxels",
        "test_attention_gate",
    ),
    # Dose-volume histograms.
    in_kernel(
        "DVH: counters not cleared", "dvh.cu",
        "    for (unsigned i = threadIdx.x; i < DVH_RANKS * DIGITS; i += blockDim.x)\n"
        "        tables[i] = 0;",
        "", "test_dvh_kernels",
    ),
    in_kernel(
        "DVH: thresholds are not reached at their own dose", "dvh.cu",
        "if (threshold[middle] <= key)", "if (threshold[middle] < key)", "test_dvh_kernels",
    ),
    in_kernel(
        "SSIM: missing barrier", "image_metrics.cu",
        "        filter_x(plane, setting);\n        __syncthreads();",
        "        filter_x(plane, setting);", "test_image_metrics",
    ),
    # Comparisons of the library's convolutions.
    in_kernel(
        "check: a NaN is no deviation", "check.cu",
        "return d <= 0 ? 0 :", "return !(d > 0) ? 0 :", "test_check",
    ),
    in_kernel(
        "check: missing barrier", "check.cu",
        "width /= 2) {\n        __syncthreads();", "width /= 2) {", "test_check",
    ),
]  # fmt: skip
