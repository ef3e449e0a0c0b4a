/* SPDX-License-Identifier: Apache-2.0 */
/* The container of a weights file: safetensors, plain or inside a Zstandard frame. Reading checks
 * every length, offset and shape before it is used, and never allocates more than has been read. */
#ifndef DOSEMAP_MODEL_SAFETENSORS_H
#define DOSEMAP_MODEL_SAFETENSORS_H

#include <jansson.h>

#include "dosemap.h"

#define SAFETENSORS_MAX_HEADER ((size_t)8 << 20)
#define SAFETENSORS_MAX_DATA ((size_t)4 << 30)
#define SAFETENSORS_MAX_RANK 5

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
    uint8_t *data;
    size_t data_size;
} safetensors;

/* Errors: IO, FORMAT, UNSUPPORTED (dtype), MEMORY. `file` is cleared on failure. */
dm_status safetensors_read(const char *path, safetensors *file, dm_error *err);
void safetensors_clear(safetensors *file);

/* A value of __metadata__; NULL if there is none. Borrowed. */
const char *safetensors_metadata(const safetensors *file, const char *key);

/* The tensor's elements as float32, in the stored order; free() them. Values that are not finite
 * are DM_ERROR_FORMAT. */
dm_status safetensors_values(const safetensors *file, const stored_tensor *tensor, const char *path,
                             float **values, dm_error *err);

#endif
