/* SPDX-License-Identifier: Apache-2.0 */
/* What every implementation of library_convolution.h checks in the same way. */
#include "predict/cuda/library_convolution.h"

#include <math.h>
#include <stdio.h>

#include "base/error.h"

#define VERSION_NEEDED 91500
#define VERSION_SOUND_TF32 91600
#define VERSION_END 100000

/* Libraries count a tensor's elements in 32 bits, at least in some of their kernels. */
#define ELEMENTS_END ((size_t)1 << 31)
/* Far beyond any network, and sums of a few of them fit an int. */
#define EXTENT_END (1 << 24)

dm_status convolution_library_check_version(size_t version, dm_error *err)
{
    size_t major = version / 10000, minor = version / 100 % 100, patch = version % 100;
    if (version >= VERSION_END)
        return error_set(err, DM_ERROR_DEVICE, NULL, "install cuDNN 9, at least 9.15",
                         "found cuDNN %zu.%zu.%zu; this program was written for cuDNN 9", major,
                         minor, patch);
    if (version >= VERSION_NEEDED)
        return DM_OK;
    /* Version 8 counted in thousands. */
    if (version < 90000) {
        major = version / 1000;
        minor = version / 100 % 10;
    }
    return error_set(err, DM_ERROR_DEVICE, NULL, "install cuDNN 9.15 or newer",
                     "found cuDNN %zu.%zu.%zu, needed is at least 9.15%s", major, minor, patch,
                     version >= 90800 ? ": 9.8 to 9.14 compute bfloat16 3D convolutions wrongly"
                                      : "");
}

void convolution_library_version_text(size_t version, char text[32])
{
    snprintf(text, 32, "%zu.%zu.%zu", version / 10000, version / 100 % 100, version % 100);
}

bool convolution_library_tf32_is_sound(size_t version)
{
    return version >= VERSION_SOUND_TF32;
}

static dm_status refused(dm_error *err, const char *what, long long value)
{
    return error_set(err, DM_ERROR_UNSUPPORTED, NULL, NULL, "no convolution: %s is %lld", what,
                     value);
}

/* Along one axis: is out_dim what the other fields imply? */
static dm_status check_axis(const library_convolution_spec *spec, int a, dm_error *err)
{
    if (spec->in_dim[a] == 0 || spec->in_dim[a] >= EXTENT_END)
        return refused(err, "the input's extent", (long long)spec->in_dim[a]);
    const int positive[3] = {spec->kernel[a], spec->stride[a], spec->dilation[a]};
    static const char *const names[3] = {"the kernel's extent", "the stride", "the dilation"};
    for (int i = 0; i < 3; i++)
        if (positive[i] < 1 || positive[i] >= EXTENT_END)
            return refused(err, names[i], positive[i]);
    if (spec->pad_begin[a] < 0 || spec->pad_begin[a] >= EXTENT_END)
        return refused(err, "the padding before", spec->pad_begin[a]);
    if (spec->pad_end[a] < 0 || spec->pad_end[a] >= EXTENT_END)
        return refused(err, "the padding behind", spec->pad_end[a]);
    long long reach = (long long)spec->dilation[a] * (spec->kernel[a] - 1) + 1;
    long long room = (long long)spec->in_dim[a] + spec->pad_begin[a] + spec->pad_end[a] - reach;
    long long out = room < 0 ? 0 : room / spec->stride[a] + 1;
    if (out == 0 || spec->out_dim[a] != (size_t)out)
        return refused(err, "the output's extent, unlike what the rest implies,",
                       (long long)spec->out_dim[a]);
    return DM_OK;
}

/* samples * dim * channels below ELEMENTS_END. */
static dm_status check_elements(size_t first, const size_t dim[3], size_t channels,
                                const char *what, dm_error *err)
{
    size_t elements = first;
    bool fits = size_multiply(elements, channels, &elements);
    for (int a = 0; a < 3; a++)
        fits = fits && size_multiply(elements, dim[a], &elements);
    if (!fits || elements >= ELEMENTS_END)
        return error_set(err, DM_ERROR_UNSUPPORTED, NULL, "use a smaller batch or tile",
                         "%s has 2^31 elements or more", what);
    return DM_OK;
}

static dm_status check_channels(const library_convolution_spec *spec, dm_error *err)
{
    size_t groups = (size_t)spec->groups;
    if (spec->groups < 1)
        return refused(err, "the number of groups", spec->groups);
    if (spec->in_channels == 0 || spec->in_channels % groups)
        return refused(err, "the number of input channels", (long long)spec->in_channels);
    if (spec->out_channels == 0 || spec->out_channels % groups)
        return refused(err, "the number of output channels", (long long)spec->out_channels);
    return DM_OK;
}

dm_status library_convolution_check(const library_convolution_spec *spec, dm_error *err)
{
    if (spec->type > ELEMENT_F16)
        return refused(err, "the element type", (long long)spec->type);
    if (spec->tf32 && spec->type != ELEMENT_F32)
        return refused(err, "TF32 is for float32; the element type", (long long)spec->type);
    if (spec->samples == 0)
        return refused(err, "the number of samples", 0);
    if (spec->activate && !isfinite(spec->slope))
        return error_set(err, DM_ERROR_UNSUPPORTED, NULL, NULL,
                         "no convolution: the activation's slope is not finite");
    dm_status status = check_channels(spec, err);
    for (int a = 0; a < 3 && status == DM_OK; a++)
        status = check_axis(spec, a, err);
    const size_t kernel[3] = {(size_t)spec->kernel[0], (size_t)spec->kernel[1],
                              (size_t)spec->kernel[2]};
    if (status == DM_OK)
        status = check_elements(spec->samples, spec->in_dim, spec->in_channels, "the input", err);
    if (status == DM_OK)
        status =
            check_elements(spec->samples, spec->out_dim, spec->out_channels, "the output", err);
    if (status == DM_OK)
        status = check_elements(spec->out_channels, kernel,
                                spec->in_channels / (size_t)spec->groups, "the kernel", err);
    return status;
}

bool library_convolution_same(const library_convolution_spec *a, const library_convolution_spec *b)
{
    bool same = a->type == b->type && a->tf32 == b->tf32 && a->samples == b->samples &&
                a->in_channels == b->in_channels && a->out_channels == b->out_channels &&
                a->groups == b->groups && a->bias == b->bias && a->residual == b->residual &&
                a->activate == b->activate && a->precompiled == b->precompiled &&
                (!a->activate || a->slope == b->slope);
    for (int i = 0; i < 3; i++)
        same = same && a->in_dim[i] == b->in_dim[i] && a->out_dim[i] == b->out_dim[i] &&
               a->kernel[i] == b->kernel[i] && a->stride[i] == b->stride[i] &&
               a->dilation[i] == b->dilation[i] && a->pad_begin[i] == b->pad_begin[i] &&
               a->pad_end[i] == b->pad_end[i];
    return same;
}
