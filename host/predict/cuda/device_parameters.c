/* SPDX-License-Identifier: Apache-2.0 */
#include "predict/cuda/device_parameters.h"

#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "predict/cpu/convert.h"
#include "predict/cuda/device_check.h"
#include "predict/half_float.h"

typedef enum parameter_form { FORM_FLOATS, FORM_WEIGHT, FORM_BLOCKS } parameter_form;

typedef struct parameter {
    const float *host;
    parameter_form form;
    size_t n;
    void *device;
} parameter;

/* Addresses of a dry network: far from each other and from none. */
#define DRY_BEGIN ((uintptr_t)1 << 40)
#define DRY_ALIGNMENT 256

struct device_parameters {
    element_type type;
    uintptr_t dry; /* where the next array would lie; 0: there is a device */
    size_t n, room;
    parameter *list;
};

dm_status device_parameters_create(element_type type, device_parameters **created, dm_error *err)
{
    device_parameters *made = *created = array_zero(1, sizeof *made);
    if (!made)
        return error_memory(err, sizeof *made, "the device's weights");
    made->type = type;
    return DM_OK;
}

dm_status device_parameters_create_dry(element_type type, device_parameters **created,
                                       dm_error *err)
{
    dm_status status = device_parameters_create(type, created, err);
    if (status == DM_OK)
        (*created)->dry = DRY_BEGIN;
    return status;
}

void device_parameters_free(device_parameters *p)
{
    if (!p)
        return;
    for (size_t i = 0; i < p->n && !p->dry; i++)
        device_free(p->list[i].device);
    free(p->list);
    free(p);
}

size_t device_parameters_bytes(const device_parameters *p)
{
    size_t bytes = 0;
    for (size_t i = 0; i < p->n; i++)
        bytes +=
            p->list[i].n * element_size(p->list[i].form == FORM_FLOATS ? ELEMENT_F32 : p->type);
    return bytes;
}

/* ---- Conversion ----------------------------------------------------------------------------- */

void elements_from_floats(const float *from, size_t n, element_type type, void *to)
{
    if (type == ELEMENT_F32)
        memcpy(to, from, n * sizeof *from);
    else if (type == ELEMENT_BF16)
        for (size_t i = 0; i < n; i++)
            ((uint16_t *)to)[i] = bf16_from_float(from[i]);
    else
        for (size_t i = 0; i < n; i++)
            ((uint16_t *)to)[i] = half_from_float(from[i]);
}

/* ---- Keeping -------------------------------------------------------------------------------- */

static const parameter *find(const device_parameters *p, const float *host, parameter_form form,
                             size_t n)
{
    for (size_t i = 0; i < p->n; i++)
        if (p->list[i].host == host && p->list[i].form == form && p->list[i].n == n)
            return &p->list[i];
    return NULL;
}

/* For one more. */
static bool has_room(device_parameters *p)
{
    if (p->n < p->room)
        return true;
    size_t room = p->room ? 2 * p->room : 64;
    parameter *list = realloc(p->list, room * sizeof *list);
    if (!list)
        return false;
    p->list = list;
    p->room = room;
    return true;
}

/* fp16 ends at 65504; the loader has refused weights that are not finite. */
static bool fits_type(const void *converted, size_t n, element_type type)
{
    const uint16_t *half = converted;
    bool fits = true;
    for (size_t i = 0; type == ELEMENT_F16 && i < n; i++)
        fits = fits && (half[i] & 0x7fffu) < 0x7c00u;
    return fits;
}

static dm_status upload(device_parameters *p, const void *converted, size_t bytes, void **device,
                        dm_error *err)
{
    if (!p->dry)
        return device_upload(converted, bytes, "copying weights", device, err);
    *device = (void *)p->dry;
    p->dry += (bytes + DRY_ALIGNMENT - 1) / DRY_ALIGNMENT * DRY_ALIGNMENT;
    return DM_OK;
}

/* values: n of them in the device's order; NULL if memory was short. */
static dm_status keep(device_parameters *p, const float *host, parameter_form form, size_t n,
                      const float *values, const void **device, dm_error *err)
{
    element_type type = form == FORM_FLOATS ? ELEMENT_F32 : p->type;
    void *converted = values ? array_alloc(n, element_size(type)) : NULL;
    if (!converted || !has_room(p)) {
        free(converted);
        return error_memory(err, n * element_size(type), "weights");
    }
    parameter *made = &p->list[p->n];
    *made = (parameter){.host = host, .form = form, .n = n};
    elements_from_floats(values, n, type, converted);
    if (!fits_type(converted, n, type)) {
        free(converted);
        return error_set(err, DM_ERROR_UNSUPPORTED, NULL, "use --precision bf16 or float32",
                         "some weights are too large for fp16");
    }
    dm_status status = upload(p, converted, n * element_size(type), &made->device, err);
    free(converted);
    if (status == DM_OK) {
        *device = made->device;
        p->n++;
    }
    return status;
}

dm_status device_parameters_floats(device_parameters *p, const float *host, size_t n,
                                   const float **device, dm_error *err)
{
    const void *kept = NULL;
    dm_status status = DM_OK;
    *device = NULL;
    if (!host)
        return DM_OK;
    const parameter *found = find(p, host, FORM_FLOATS, n);
    if (found)
        kept = found->device;
    else
        status = keep(p, host, FORM_FLOATS, n, host, &kept, err);
    *device = kept;
    return status;
}

/* ---- Weights -------------------------------------------------------------------------------- */

typedef struct weight_shape {
    size_t in, out, taps, groups;
} weight_shape;

static weight_shape shape_of(const plan *steps, const plan_step *step)
{
    const int *k = step->node->kernel;
    return (weight_shape){.in = steps->tensors[step->in].channels,
                          .out = steps->tensors[step->out].channels,
                          .taps = (size_t)k[0] * (size_t)k[1] * (size_t)k[2],
                          .groups = (size_t)step->node->groups};
}

/* Where the weight from channel i of o's group, tap k, to channel o is stored in the model. */
static size_t stored_at(const weight_shape *s, bool transposed, size_t o, size_t k, size_t i)
{
    size_t per_in = s->in / s->groups, per_out = s->out / s->groups;
    if (!transposed)
        return (o * per_in + i) * s->taps + k;
    return ((o / per_out * per_in + i) * per_out + o % per_out) * s->taps + k;
}

dm_status device_parameters_weight(device_parameters *p, const plan *steps, const plan_step *step,
                                   const void **device, dm_error *err)
{
    weight_shape s = shape_of(steps, step);
    size_t per_in = s.in / s.groups, n = s.out * s.taps * per_in;
    const parameter *found = find(p, step->weight, FORM_WEIGHT, n);
    *device = found ? found->device : NULL;
    if (found)
        return DM_OK;
    float *values = array_alloc(n, sizeof *values), *to = values;
    for (size_t o = 0; values && o < s.out; o++)
        for (size_t k = 0; k < s.taps; k++)
            for (size_t i = 0; i < per_in; i++)
                *to++ = step->weight[stored_at(&s, step->kind == STEP_CONV_TRANSPOSE, o, k, i)];
    dm_status status = keep(p, step->weight, FORM_WEIGHT, n, values, device, err);
    free(values);
    return status;
}

dm_status device_parameters_blocks(device_parameters *p, const plan *steps, const plan_step *step,
                                   const void **device, dm_error *err)
{
    weight_shape s = shape_of(steps, step);
    size_t n = s.out * s.taps * s.in;
    const parameter *found = find(p, step->weight, FORM_BLOCKS, n);
    *device = found ? found->device : NULL;
    if (found)
        return DM_OK;
    float *values = array_alloc(n, sizeof *values), *to = values;
    for (size_t k = 0; values && k < s.taps; k++)
        for (size_t o = 0; o < s.out; o++)
            for (size_t i = 0; i < s.in; i++)
                *to++ = step->weight[stored_at(&s, true, o, k, i)];
    dm_status status = keep(p, step->weight, FORM_BLOCKS, n, values, device, err);
    free(values);
    return status;
}
