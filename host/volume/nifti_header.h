/* SPDX-License-Identifier: Apache-2.0 */
/*
 * NIfTI-1 and NIfTI-2 headers: checked here before NIfTI-clib sees them, because it trusts them,
 * then converted by it. The only module that includes NIfTI-clib.
 */
#ifndef DOSEMAP_VOLUME_NIFTI_HEADER_H
#define DOSEMAP_VOLUME_NIFTI_HEADER_H

#include "dosemap.h"

/* Header and the four bytes after it that announce extensions; voxels never start before their end.
 */
#define NIFTI_1_HEAD 352
#define NIFTI_2_HEAD 544

typedef enum sample_type {
    SAMPLE_UINT8,
    SAMPLE_INT8,
    SAMPLE_UINT16,
    SAMPLE_INT16,
    SAMPLE_UINT32,
    SAMPLE_INT32,
    SAMPLE_UINT64,
    SAMPLE_INT64,
    SAMPLE_FLOAT32,
    SAMPLE_FLOAT64
} sample_type;

/* Where the voxels of a file are and what they mean: value = slope * sample + inter. */
typedef struct nifti_layout {
    dm_grid grid;
    sample_type type;
    const char *type_name;
    size_t sample_size;
    bool swapped;
    bool scaled;
    double slope, inter;
    uint64_t data_offset;
    uint64_t data_size; /* grid voxels * sample_size; data_offset + data_size does not overflow */
} nifti_layout;

/* What is kept of a header that was read: all that places the voxels, as the file has it. */
typedef struct nifti_header_copy nifti_header_copy;

/* NIFTI_1_HEAD or NIFTI_2_HEAD as the first bytes say (at least 4), in either byte order; 0: not a
 * NIfTI file. */
size_t nifti_head_size(const uint8_t *bytes);

/* Checks and converts `size` bytes, as many as nifti_head_size said or fewer where the file ends
 * before. `header` is released with free(). */
dm_status nifti_header_decode(const uint8_t *bytes, size_t size, const char *path,
                              nifti_layout *layout, nifti_header_copy **header, dm_error *err);

/* For voxels in memory, of which the header says no more than where they lie: datatype, scaling and
 * offset may be anything, and the magic a pair's. size: with the four bytes behind the header or
 * without. `header` is released with free(). */
dm_status nifti_header_place(const uint8_t *bytes, size_t size, dm_grid *grid,
                             nifti_header_copy **header, dm_error *err);

/* NULL for NULL and when memory is short. */
nifti_header_copy *nifti_header_clone(const nifti_header_copy *header);

/* The head of a float32 file with the volume's voxels behind it; returns its size. The volume's
 * header is used while it still describes the volume's grid. */
size_t nifti_header_encode(const dm_volume *volume, uint8_t bytes[NIFTI_2_HEAD]);

/* True if the file that the volume came from had header extensions; they are not copied to outputs.
 */
bool volume_had_extensions(const dm_volume *volume);

/* For each stored axis the anatomical axis closest to it, as NIfTI-clib decides: 1 towards the
 * patient's right, 2 front, 3 head, negative for the opposite; 0 if the affine is degenerate. */
void affine_directions(const double affine[3][4], int direction[3]);

#endif
