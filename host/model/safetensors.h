/* SPDX-License-Identifier: Apache-2.0 */
/* The container of weights and of patches: safetensors, for weights plain or inside a Zstandard
 * frame. Reading checks every length, offset and shape before it is used, and never allocates more
 * than has been read. */
#ifndef DOSEMAP_MODEL_SAFETENSORS_H
#define DOSEMAP_MODEL_SAFETENSORS_H

#include <jansson.h>

#include "base/output_file.h"
#include "dosemap.h"

#define SAFETENSORS_MAX_HEADER ((size_t)8 << 20)
#define SAFETENSORS_MAX_DATA ((size_t)4 << 30)
#define SAFETENSORS_MAX_RANK 5
/* Beyond every disk, and products with 4 and sums are no overflow. */
#define SAFETENSORS_ANY_DATA (SIZE_MAX / 16)

typedef enum tensor_type { TENSOR_F32, TENSOR_F16, TENSOR_BF16 } tensor_type;

typedef struct stored_tensor {
    const char *name; /* borrowed from the header */
    tensor_type type;
    size_t rank;
    size_t shape[SAFETENSORS_MAX_RANK];
    size_t count;      /* elements, at least 1 */
    size_t begin, end; /* bytes in the data section */
} stored_tensor;

typedef struct safetensors {
    json_t *header;
    size_t n_tensors;
    stored_tensor *tensors; /* in the order in which they lie in the data section */
    uint8_t *data;          /* of safetensors_read */
    size_t data_size;
    const char *remedy; /* for a file that is no good */
    size_t limit;       /* of the data section */
    bool is_open;       /* safetensors_open: and where in the file the data section begins */
    int fd;
    size_t data_begin;
} safetensors;

/* Errors: IO, FORMAT, UNSUPPORTED (dtype), MEMORY. `file` is cleared on failure. */
dm_status safetensors_read(const char *path, safetensors *file, dm_error *err);

/* The header alone, of a plain file of any size; elements are read as they are wanted. */
dm_status safetensors_open(const char *path, safetensors *file, dm_error *err);
/* `count` elements of an F32 tensor from element `first` on. */
dm_status safetensors_part(const safetensors *file, const stored_tensor *tensor, const char *path,
                           size_t first, size_t count, float *values, dm_error *err);

void safetensors_clear(safetensors *file);

/* A value of __metadata__; NULL if there is none. Borrowed. */
const char *safetensors_metadata(const safetensors *file, const char *key);

/* The tensor's elements as float32, in the stored order; free() them. Values that are not finite
 * are DM_ERROR_FORMAT. */
dm_status safetensors_values(const safetensors *file, const stored_tensor *tensor, const char *path,
                             float **values, dm_error *err);

/* Of that name; NULL if there is none. */
const stored_tensor *safetensors_find(const safetensors *file, const char *name);

/* The header for F32 tensors whose names and shapes are given and whose data follow it in this
 * order, without gaps. metadata: strings. */
dm_status safetensors_write_header(output_file *file, json_t *metadata,
                                   const stored_tensor *tensors, size_t n, dm_error *err);

#endif
