/* SPDX-License-Identifier: Apache-2.0 */
/*
 * 3x3x3 convolutions by minimal filtering (winograd_kernel_body.h), all arithmetic in float32
 * whatever the type of the tensors. Reads and writes views.
 */
#ifndef DOSEMAP_PREDICT_CPU_WINOGRAD_H
#define DOSEMAP_PREDICT_CPU_WINOGRAD_H

#include "predict/cpu/winograd_kernel.h"

typedef struct winograd winograd;

/* The best kernel for this CPU, NULL if it has none. */
const winograd_kernel *winograd_best_kernel(void);
/* The index in winograd_shapes of the tile expected to be fastest; -1 where this is no layer for the
 * kernel (another kernel size, stride, dilation or padding; channels that do not fill vectors) or a
 * direct convolution, with gain multiplications for one of ours, is expected to be faster. */
int winograd_choose(const convolution_spec *spec, const winograd_kernel *kernel, double gain);

/* Keeps nothing of the spec, which must be one that winograd_choose gives a shape for, if not the
 * same. *post_done as in convolution_create. Errors: MEMORY. */
dm_status winograd_create(const convolution_spec *spec, const winograd_kernel *kernel, int shape,
                          winograd **made, size_t *post_done, dm_error *err);
void winograd_free(winograd *w);
const char *winograd_name(const winograd *w);
size_t winograd_scratch_bytes(const winograd *w);
/* Planes of tiles along z, and planes of voxels in each. */
size_t winograd_tile_planes(const winograd *w);
size_t winograd_planes_per_tile(const winograd *w);
/* Planes of tiles [first, last). out and operands (one for each post-operation done, data NULL where
 * it has none): voxel 0 is the first voxel of tile plane `first`; `out` may be an operand. scratch:
 * 64-byte aligned, of one thread. */
void winograd_run(const winograd *w, const winograd_tensor *in, const winograd_tensor *out,
                  const winograd_tensor *operands, size_t first, size_t last, void *scratch);

#endif
