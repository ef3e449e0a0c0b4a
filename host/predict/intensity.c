/* SPDX-License-Identifier: Apache-2.0 */
/* From a quantity to what the network was trained on, and back. */
#include "predict/intensity.h"

#include "kernels/intensity_value.h"

/* Inlined with a constant `kind`, so that each loop holds one operation. */
static inline void apply_kind(intensity_kind kind, float a, float b, float *v, size_t n)
{
    for (size_t i = 0; i < n; i++)
        v[i] = intensity_value(kind, a, b, v[i]);
}

static void apply_step(const intensity_step *step, float *v, size_t n)
{
    switch (step->kind) {
    case INTENSITY_SCALE:
        apply_kind(INTENSITY_SCALE, step->a, step->b, v, n);
        break;
    case INTENSITY_CLIP:
        apply_kind(INTENSITY_CLIP, step->a, step->b, v, n);
        break;
    case INTENSITY_LOG1P:
        apply_kind(INTENSITY_LOG1P, 0, 0, v, n);
        break;
    case INTENSITY_EXPM1:
        apply_kind(INTENSITY_EXPM1, 0, 0, v, n);
        break;
    case INTENSITY_SQRT:
        apply_kind(INTENSITY_SQRT, 0, 0, v, n);
        break;
    case INTENSITY_SQUARE:
        apply_kind(INTENSITY_SQUARE, 0, 0, v, n);
        break;
    }
}

void intensity_apply(const intensity_transform *transform, float *values, size_t n)
{
    for (size_t s = 0; s < transform->n; s++)
        apply_step(&transform->step[s], values, n);
}
