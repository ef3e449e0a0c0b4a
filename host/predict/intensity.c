/* SPDX-License-Identifier: Apache-2.0 */
/* From a quantity to what the network was trained on, and back. */
#include "predict/intensity.h"

#include <math.h>

/* Written so that NaN passes through, where fminf and fmaxf would hide it. */
static float clip(float v, float low, float high)
{
    v = v < low ? low : v;
    return v > high ? high : v;
}

static void apply_step(const intensity_step *step, float *v, size_t n)
{
    switch (step->kind) {
    case INTENSITY_SCALE:
        for (size_t i = 0; i < n; i++)
            v[i] = step->a * v[i] + step->b;
        break;
    case INTENSITY_CLIP:
        for (size_t i = 0; i < n; i++)
            v[i] = clip(v[i], step->a, step->b);
        break;
    case INTENSITY_LOG1P:
        for (size_t i = 0; i < n; i++)
            v[i] = log1pf(v[i]);
        break;
    case INTENSITY_EXPM1:
        for (size_t i = 0; i < n; i++)
            v[i] = expm1f(v[i]);
        break;
    case INTENSITY_SQRT:
        for (size_t i = 0; i < n; i++)
            v[i] = sqrtf(v[i]);
        break;
    case INTENSITY_SQUARE:
        for (size_t i = 0; i < n; i++)
            v[i] = v[i] * v[i];
        break;
    }
}

void intensity_apply(const intensity_transform *transform, float *values, size_t n)
{
    for (size_t s = 0; s < transform->n; s++)
        apply_step(&transform->step[s], values, n);
}
