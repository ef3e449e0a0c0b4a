/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reading: bytes -> `fields`, common to both versions, in native byte order -> checks ->
 * NIfTI-clib's nifti_image -> dm_grid. Writing: `fields` of the input header or of a grid -> bytes.
 */
#include "volume/nifti_header.h"

#include <limits.h>
#include <math.h>
#include <nifti2_io.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "volume/grid.h"

_Static_assert(sizeof(nifti_1_header) + 4 == NIFTI_1_HEAD, "NIfTI-1 header layout");
_Static_assert(sizeof(nifti_2_header) + 4 == NIFTI_2_HEAD, "NIfTI-2 header layout");

/* double holds every value of both versions exactly, but for sizes above 2^53, which are refused.
 */
typedef struct fields {
    int64_t dim[8];
    double pixdim[8];
    int datatype, bitpix;
    double vox_offset;
    double scl_slope, scl_inter;
    int xyzt_units;
    int qform_code, sform_code;
    double quatern[3], qoffset[3];
    double srow[3][4];
} fields;

struct nifti_header_copy {
    int version;
    bool had_extensions;
    fields fields;
    dm_grid grid; /* what `fields` describe */
};

/* The names of these fields are the same in both versions of the header, their types are not. */
#define COPY(to, from) ((to) = (__typeof__(to))(from))
#define EACH_FIELD(f, h, MOVE)                                                                     \
    do {                                                                                           \
        for (int i_ = 0; i_ < 8; i_++) {                                                           \
            MOVE((f)->dim[i_], (h)->dim[i_]);                                                      \
            MOVE((f)->pixdim[i_], (h)->pixdim[i_]);                                                \
        }                                                                                          \
        for (int i_ = 0; i_ < 4; i_++) {                                                           \
            MOVE((f)->srow[0][i_], (h)->srow_x[i_]);                                               \
            MOVE((f)->srow[1][i_], (h)->srow_y[i_]);                                               \
            MOVE((f)->srow[2][i_], (h)->srow_z[i_]);                                               \
        }                                                                                          \
        MOVE((f)->datatype, (h)->datatype);                                                        \
        MOVE((f)->bitpix, (h)->bitpix);                                                            \
        MOVE((f)->vox_offset, (h)->vox_offset);                                                    \
        MOVE((f)->scl_slope, (h)->scl_slope);                                                      \
        MOVE((f)->scl_inter, (h)->scl_inter);                                                      \
        MOVE((f)->xyzt_units, (h)->xyzt_units);                                                    \
        MOVE((f)->qform_code, (h)->qform_code);                                                    \
        MOVE((f)->sform_code, (h)->sform_code);                                                    \
        MOVE((f)->quatern[0], (h)->quatern_b);                                                     \
        MOVE((f)->quatern[1], (h)->quatern_c);                                                     \
        MOVE((f)->quatern[2], (h)->quatern_d);                                                     \
        MOVE((f)->qoffset[0], (h)->qoffset_x);                                                     \
        MOVE((f)->qoffset[1], (h)->qoffset_y);                                                     \
        MOVE((f)->qoffset[2], (h)->qoffset_z);                                                     \
    } while (0)
#define FROM_HEADER(field, member) COPY(field, member)
#define TO_HEADER(field, member) COPY(member, field)

/* ---- Which file this is --------------------------------------------------------------------- */

typedef struct identity {
    int version;
    bool swapped;
} identity;

static bool identify(const uint8_t *bytes, identity *id)
{
    uint32_t size;
    memcpy(&size, bytes, sizeof size);
    id->swapped = size == __builtin_bswap32(348) || size == __builtin_bswap32(540);
    if (id->swapped)
        size = __builtin_bswap32(size);
    id->version = size == 348 ? 1 : size == 540 ? 2 : 0;
    return id->version != 0;
}

size_t nifti_head_size(const uint8_t *bytes)
{
    identity id;
    if (!identify(bytes, &id))
        return 0;
    return id.version == 1 ? NIFTI_1_HEAD : NIFTI_2_HEAD;
}

static dm_status check_magic(const uint8_t *bytes, int version, const char *path, dm_error *err)
{
    static const char convert[] =
        "convert it to one .nii file, for example with nibabel or dcm2niix";
    const char *magic = (const char *)bytes + (version == 1 ? 344 : 4);
    if (version == 1 && memcmp(magic, "n+1", 4) == 0)
        return DM_OK;
    if (version == 2 && memcmp(magic, "n+2\0\r\n\032\n", 8) == 0)
        return DM_OK;
    if (memcmp(magic, version == 1 ? "ni1" : "ni2", 4) == 0)
        return error_set(err, DM_ERROR_UNSUPPORTED, path, convert,
                         "this is the header of a NIfTI pair (.hdr and .img, magic \"ni%d\")",
                         version);
    if (version == 1 && memcmp(magic, "\0\0\0", 4) == 0)
        return error_set(err, DM_ERROR_UNSUPPORTED, path, convert,
                         "this is an ANALYZE 7.5 header (no NIfTI magic), which does not say where "
                         "left and right are");
    return error_set(
        err, DM_ERROR_FORMAT, path, "the file is damaged, or not NIfTI; write it again",
        "the magic is %02x %02x %02x %02x, not \"n+%d\"", (unsigned char)magic[0],
        (unsigned char)magic[1], (unsigned char)magic[2], (unsigned char)magic[3], version);
}

static void read_fields(const uint8_t *bytes, const identity *id, fields *f)
{
    if (id->version == 1) {
        nifti_1_header h;
        memcpy(&h, bytes, sizeof h);
        if (id->swapped)
            nifti_swap_as_nifti1(&h);
        EACH_FIELD(f, &h, FROM_HEADER);
    } else {
        nifti_2_header h;
        memcpy(&h, bytes, sizeof h);
        if (id->swapped)
            nifti_swap_as_nifti2(&h);
        EACH_FIELD(f, &h, FROM_HEADER);
    }
}

/* ---- Checks --------------------------------------------------------------------------------- */

static const char damaged[] = "the header is damaged; write the file again";

static dm_status check_dims(const fields *f, const char *path, dm_error *err)
{
    if (f->dim[0] < 1 || f->dim[0] > 7)
        return error_set(err, DM_ERROR_FORMAT, path, damaged,
                         "dim[0], the number of dimensions, is %lld, not 1 to 7",
                         (long long)f->dim[0]);
    for (int d = 1; d <= f->dim[0]; d++)
        if (f->dim[d] <= 0)
            return error_set(err, DM_ERROR_FORMAT, path, damaged,
                             "dim[%d] is %lld; it must be positive", d, (long long)f->dim[d]);
    for (int d = 4; d <= f->dim[0]; d++) {
        if (f->dim[d] == 1)
            continue;
        if (d == 4)
            return error_set(err, DM_ERROR_UNSUPPORTED, path,
                             "extract or average to one frame, for example with fslroi or nibabel",
                             "it is a 4D series with %lld frames", (long long)f->dim[d]);
        return error_set(err, DM_ERROR_UNSUPPORTED, path,
                         "extract one component, for example with nibabel",
                         "it is not one 3D volume: dim[%d] is %lld", d, (long long)f->dim[d]);
    }
    return DM_OK;
}

/* Axes that the header does not have become axes of one voxel, and of 1 mm where it says nothing.
 */
static void complete_axes(fields *f)
{
    for (int d = 1; d <= 7; d++) {
        if (d <= f->dim[0])
            continue;
        f->dim[d] = 1;
        if (d <= 3 && !(isfinite(f->pixdim[d]) && f->pixdim[d] > 0))
            f->pixdim[d] = 1;
    }
    f->dim[0] = 3;
}

static dm_status check_datatype(const fields *f, const char *path, nifti_layout *layout,
                                dm_error *err)
{
    static const struct {
        int code;
        sample_type type;
        size_t size;
    } known[] = {
        {DT_UINT8, SAMPLE_UINT8, 1},     {DT_INT8, SAMPLE_INT8, 1},
        {DT_UINT16, SAMPLE_UINT16, 2},   {DT_INT16, SAMPLE_INT16, 2},
        {DT_UINT32, SAMPLE_UINT32, 4},   {DT_INT32, SAMPLE_INT32, 4},
        {DT_UINT64, SAMPLE_UINT64, 8},   {DT_INT64, SAMPLE_INT64, 8},
        {DT_FLOAT32, SAMPLE_FLOAT32, 4}, {DT_FLOAT64, SAMPLE_FLOAT64, 8},
    };
    layout->type_name = nifti_datatype_string(f->datatype);
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++) {
        if (known[i].code != f->datatype)
            continue;
        if (f->bitpix != (int)known[i].size * 8)
            return error_set(err, DM_ERROR_FORMAT, path, damaged,
                             "bitpix is %d, but datatype %d (%s) takes %zu bits", f->bitpix,
                             f->datatype, layout->type_name, known[i].size * 8);
        layout->type = known[i].type;
        layout->sample_size = known[i].size;
        return DM_OK;
    }
    if (f->datatype != DT_UNKNOWN && nifti_datatype_is_valid(f->datatype, 0))
        return error_set(err, DM_ERROR_UNSUPPORTED, path,
                         "convert the voxels to float32 or an integer type",
                         "voxels of datatype %d (%s) are not read", f->datatype, layout->type_name);
    return error_set(err, DM_ERROR_FORMAT, path, damaged, "datatype %d is none of NIfTI's",
                     f->datatype);
}

static dm_status check_voxels(const fields *f, size_t sample_size, const char *path, uint64_t *size,
                              dm_error *err)
{
    int64_t bytes = (int64_t)sample_size;
    for (int d = 1; d <= 3; d++)
        if (__builtin_mul_overflow(bytes, f->dim[d], &bytes))
            bytes = INT64_MAX;
    /* Converted to float32 the volume may take four times as much. */
    if ((uint64_t)bytes > SIZE_MAX / 8)
        return error_set(err, DM_ERROR_FORMAT, path, damaged,
                         "%lldx%lldx%lld voxels are more than memory can ever hold",
                         (long long)f->dim[1], (long long)f->dim[2], (long long)f->dim[3]);
    *size = (uint64_t)bytes;
    return DM_OK;
}

/* nibabel refuses offsets into the header too; NIfTI-clib would read from byte 348. */
static dm_status check_data_range(const fields *f, int version, const char *path,
                                  nifti_layout *layout, dm_error *err)
{
    int least = version == 1 ? NIFTI_1_HEAD : NIFTI_2_HEAD;
    if (!(f->vox_offset >= least) || f->vox_offset > INT_MAX ||
        floor(f->vox_offset) != f->vox_offset)
        return error_set(err, DM_ERROR_FORMAT, path, damaged,
                         "vox_offset is %g; voxels must start at a whole byte from %d on",
                         f->vox_offset, least);
    layout->data_offset = (uint64_t)f->vox_offset;
    return check_voxels(f, layout->sample_size, path, &layout->data_size, err);
}

/* NIfTI: a slope of 0 means no scaling; a slope that is no number is taken so too, as nibabel does.
 */
static dm_status check_scaling(const fields *f, const char *path, nifti_layout *layout,
                               dm_error *err)
{
    bool has_slope = isfinite(f->scl_slope) && f->scl_slope != 0;
    if (has_slope && !isfinite(f->scl_inter))
        return error_set(err, DM_ERROR_FORMAT, path,
                         "set scl_inter to the intercept of the voxel values, usually 0",
                         "scl_slope is %g, but scl_inter is %g", f->scl_slope, f->scl_inter);
    layout->slope = has_slope ? f->scl_slope : 1;
    layout->inter = has_slope ? f->scl_inter : 0;
    layout->scaled = layout->slope != 1 || layout->inter != 0;
    return DM_OK;
}

static dm_status check_finite(const double *value, int n, const char *name, int first,
                              const char *path, dm_error *err)
{
    for (int i = 0; i < n; i++)
        if (!isfinite(value[i]))
            return error_set(err, DM_ERROR_FORMAT, path, damaged, "%s[%d] is %g", name, first + i,
                             value[i]);
    return DM_OK;
}

/* NIfTI-clib takes what is not finite as 0 and sizes of 0 as 1 mm: a guess that would move or scale
 * the dose. Only sizes across an axis of one voxel are left to it. */
static dm_status check_placement(const fields *f, const char *path, dm_error *err)
{
    static const char *const row_names[] = {"srow_x", "srow_y", "srow_z"};
    dm_status status = check_finite(f->pixdim + 1, 3, "pixdim", 1, path, err);
    if (f->sform_code > 0) {
        for (int row = 0; row < 3 && status == DM_OK; row++)
            status = check_finite(f->srow[row], 4, row_names[row], 0, path, err);
        return status;
    }
    for (int d = 1; d <= 3 && status == DM_OK; d++)
        if (f->pixdim[d] < 0 || (f->pixdim[d] == 0 && f->dim[d] > 1))
            status = error_set(err, DM_ERROR_FORMAT, path, "set the voxel size in mm, or an sform",
                               "pixdim[%d], the voxel size, is %g", d, f->pixdim[d]);
    if (f->qform_code <= 0 || status != DM_OK)
        return status;
    status = check_finite(f->pixdim, 1, "pixdim", 0, path, err);
    if (status == DM_OK)
        status = check_finite(f->quatern, 3, "quatern", 0, path, err);
    if (status == DM_OK)
        status = check_finite(f->qoffset, 3, "qoffset", 0, path, err);
    double norm = f->quatern[0] * f->quatern[0] + f->quatern[1] * f->quatern[1] +
                  f->quatern[2] * f->quatern[2];
    if (status == DM_OK && !(norm < 1.01))
        status =
            error_set(err, DM_ERROR_FORMAT, path, damaged,
                      "quatern_b, c, d are %g, %g, %g: not a rotation, as their squares add up "
                      "to more than 1",
                      f->quatern[0], f->quatern[1], f->quatern[2]);
    return status;
}

/* ---- NIfTI-clib ----------------------------------------------------------------------------- */

static double mm_per_unit(int xyz_units)
{
    switch (xyz_units) {
    case NIFTI_UNITS_METER:
        return 1000;
    case NIFTI_UNITS_MICRON:
        return 0.001;
    default: /* mm, or unknown, which everyone takes as mm */
        return 1;
    }
}

/* The sform, or else the qform, or else the voxel sizes, as NIfTI-clib computes them. */
static dm_status convert_placement(const fields *f, const char *path, dm_grid *grid, dm_error *err)
{
    nifti_2_header h = {.sizeof_hdr = 540, .magic = "n+2\0\r\n\032"};
    h.magic[7] = '\n';
    EACH_FIELD(f, &h, TO_HEADER);
    nifti_set_debug_level(0);
    nifti_image *image = nifti_convert_n2hdr2nim(h, NULL);
    if (!image)
        return error_memory(err, sizeof *image, "a NIfTI header");

    const nifti_dmat44 *affine = image->sform_code > 0 ? &image->sto_xyz : &image->qto_xyz;
    double mm = mm_per_unit(image->xyz_units);
    for (int row = 0; row < 3; row++)
        for (int column = 0; column < 4; column++)
            grid->affine[row][column] = affine->m[row][column] * mm;
    grid->dim[0] = (size_t)image->nx;
    grid->dim[1] = (size_t)image->ny;
    grid->dim[2] = (size_t)image->nz;
    const char *source = image->sform_code > 0   ? "sform"
                         : image->qform_code > 0 ? "qform"
                                                 : "pixdim";
    nifti_image_free(image);

    char reason[200];
    if (!grid_derive_spacing(grid, reason, sizeof reason))
        return error_set(err, DM_ERROR_FORMAT, path,
                         "correct the header's orientation, or convert the image again", "%s: %s",
                         source, reason);
    return DM_OK;
}

void affine_directions(const double affine[3][4], int direction[3])
{
    static const int of_code[] = {
        [NIFTI_L2R] = 1,  [NIFTI_P2A] = 2,  [NIFTI_I2S] = 3,
        [NIFTI_R2L] = -1, [NIFTI_A2P] = -2, [NIFTI_S2I] = -3,
    };
    nifti_dmat44 matrix = {{{0}}};
    for (int row = 0; row < 3; row++)
        for (int column = 0; column < 4; column++)
            matrix.m[row][column] = affine[row][column];
    matrix.m[3][3] = 1;
    int code[3] = {0, 0, 0};
    nifti_dmat44_to_orientation(matrix, &code[0], &code[1], &code[2]);
    for (int axis = 0; axis < 3; axis++)
        direction[axis] = of_code[code[axis]];
}

/* ---- Reading -------------------------------------------------------------------------------- */

dm_status nifti_header_decode(const uint8_t *bytes, size_t size, const char *path,
                              nifti_layout *layout, nifti_header_copy **header, dm_error *err)
{
    *header = NULL;
    identity id;
    if (size < 4 || !identify(bytes, &id))
        return error_set(err, DM_ERROR_FORMAT, path,
                         "give a NIfTI file (.nii, .nii.gz, .nii.zst); DICOM can be converted with "
                         "dcm2niix",
                         "it is not a NIfTI file: %s",
                         size == 0 ? "it is empty" : "it does not begin with the header's size");
    size_t head = id.version == 1 ? NIFTI_1_HEAD : NIFTI_2_HEAD;
    if (size < head)
        return error_set(err, DM_ERROR_FORMAT, path, "the file is incomplete; copy it again",
                         "it ends after %zu bytes; a NIfTI-%d header takes %zu", size, id.version,
                         head);
    dm_status status = check_magic(bytes, id.version, path, err);
    if (status != DM_OK)
        return status;

    nifti_header_copy *copy = calloc(1, sizeof *copy);
    if (!copy)
        return error_memory(err, sizeof *copy, "a NIfTI header");
    copy->version = id.version;
    copy->had_extensions = bytes[head - 4] != 0;
    read_fields(bytes, &id, &copy->fields);

    memset(layout, 0, sizeof *layout);
    layout->swapped = id.swapped;
    status = check_dims(&copy->fields, path, err);
    if (status == DM_OK) {
        complete_axes(&copy->fields);
        status = check_datatype(&copy->fields, path, layout, err);
    }
    if (status == DM_OK)
        status = check_data_range(&copy->fields, id.version, path, layout, err);
    if (status == DM_OK)
        status = check_scaling(&copy->fields, path, layout, err);
    if (status == DM_OK)
        status = check_placement(&copy->fields, path, err);
    if (status == DM_OK)
        status = convert_placement(&copy->fields, path, &copy->grid, err);
    if (status != DM_OK) {
        free(copy);
        return status;
    }
    layout->grid = copy->grid;
    *header = copy;
    return DM_OK;
}

/* What places the voxels, of a header whose fields are in `copy`; those that say how a file's voxels
 * are stored are made those of float32. */
static dm_status place(nifti_header_copy *copy, dm_error *err)
{
    fields *f = &copy->fields;
    uint64_t bytes;
    dm_status status = check_dims(f, NULL, err);
    if (status != DM_OK)
        return status;
    complete_axes(f);
    f->datatype = DT_FLOAT32;
    f->bitpix = 32;
    f->scl_slope = 1;
    f->scl_inter = 0;
    f->vox_offset = copy->version == 1 ? NIFTI_1_HEAD : NIFTI_2_HEAD;
    status = check_voxels(f, sizeof(float), NULL, &bytes, err);
    if (status == DM_OK)
        status = check_placement(f, NULL, err);
    if (status == DM_OK)
        status = convert_placement(f, NULL, &copy->grid, err);
    return status;
}

dm_status nifti_header_place(const uint8_t *bytes, size_t size, dm_grid *grid,
                             nifti_header_copy **header, dm_error *err)
{
    identity id;
    *header = NULL;
    const size_t head = size < 4 ? 0 : nifti_head_size(bytes);
    if (head == 0 || (size != head && size != head - 4))
        return error_set(err, DM_ERROR_FORMAT, NULL,
                         "give the 348 bytes of a NIfTI-1 header or the 540 of a NIfTI-2 header, "
                         "and the 4 behind them or not",
                         "these %zu bytes are no NIfTI header", size);
    (void)identify(bytes, &id);
    const char *magic = (const char *)bytes + (id.version == 1 ? 344 : 4);
    dm_status status = memcmp(magic, id.version == 1 ? "ni1" : "ni2", 4) == 0
                           ? DM_OK /* of a pair: its voxels are in memory, too */
                           : check_magic(bytes, id.version, NULL, err);
    if (status != DM_OK)
        return status;
    nifti_header_copy *copy = calloc(1, sizeof *copy);
    if (!copy)
        return error_memory(err, sizeof *copy, "a NIfTI header");
    copy->version = id.version;
    copy->had_extensions = size == head && bytes[head - 4] != 0;
    read_fields(bytes, &id, &copy->fields);
    status = place(copy, err);
    if (status != DM_OK) {
        free(copy);
        return status;
    }
    *grid = copy->grid;
    *header = copy;
    return DM_OK;
}

nifti_header_copy *nifti_header_clone(const nifti_header_copy *header)
{
    nifti_header_copy *copy = header ? malloc(sizeof *copy) : NULL;
    if (copy)
        *copy = *header;
    return copy;
}

bool volume_had_extensions(const dm_volume *volume)
{
    return volume->header && volume->header->had_extensions;
}

/* ---- Writing -------------------------------------------------------------------------------- */

static bool is_orthogonal(const dm_grid *grid)
{
    for (int a = 0; a < 3; a++) {
        int b = (a + 1) % 3;
        double dot = 0;
        for (int row = 0; row < 3; row++)
            dot += grid->affine[row][a] * grid->affine[row][b];
        if (!(fabs(dot) <= 1e-5 * grid->spacing_mm[a] * grid->spacing_mm[b]))
            return false;
    }
    return true;
}

/* A qform can only say rotations, so a sheared grid has none. */
static void fields_of_grid(const dm_grid *grid, fields *f)
{
    *f = (fields){.xyzt_units = NIFTI_UNITS_MM, .sform_code = NIFTI_XFORM_SCANNER_ANAT};
    nifti_dmat44 matrix = {{{0}}};
    for (int row = 0; row < 3; row++)
        for (int column = 0; column < 4; column++)
            matrix.m[row][column] = f->srow[row][column] = grid->affine[row][column];
    matrix.m[3][3] = 1;
    f->pixdim[0] = 1;
    for (int axis = 0; axis < 3; axis++)
        f->pixdim[axis + 1] = grid->spacing_mm[axis];
    if (is_orthogonal(grid)) {
        f->qform_code = NIFTI_XFORM_SCANNER_ANAT;
        nifti_dmat44_to_quatern(matrix, &f->quatern[0], &f->quatern[1], &f->quatern[2],
                                &f->qoffset[0], &f->qoffset[1], &f->qoffset[2], NULL, NULL, NULL,
                                &f->pixdim[0]);
    }
}

static bool describes(const nifti_header_copy *header, const dm_grid *grid)
{
    /* NOLINTNEXTLINE(bugprone-suspicious-memory-comparison): the very same bits are wanted. */
    return header && memcmp(&header->grid, grid, sizeof *grid) == 0;
}

size_t nifti_header_encode(const dm_volume *volume, uint8_t bytes[NIFTI_2_HEAD])
{
    static const char made_by[] = "dosemap " DOSEMAP_VERSION;
    const dm_grid *grid = &volume->grid;
    int version = volume->header ? volume->header->version : 1;
    fields f;
    if (describes(volume->header, grid))
        f = volume->header->fields;
    else
        fields_of_grid(grid, &f);
    f.dim[0] = 3;
    for (int axis = 0; axis < 3; axis++) {
        f.dim[axis + 1] = (int64_t)grid->dim[axis];
        if (grid->dim[axis] > SHRT_MAX)
            version = 2;
    }
    for (int d = 4; d <= 7; d++)
        f.dim[d] = 1;
    f.datatype = DT_FLOAT32;
    f.bitpix = 32;
    f.scl_slope = 1;
    f.scl_inter = 0;
    f.vox_offset = version == 1 ? NIFTI_1_HEAD : NIFTI_2_HEAD;

    memset(bytes, 0, NIFTI_2_HEAD);
    if (version == 1) {
        nifti_1_header h = {.sizeof_hdr = 348, .regular = 'r', .magic = "n+1"};
        EACH_FIELD(&f, &h, TO_HEADER);
        memcpy(h.descrip, made_by, sizeof made_by);
        memcpy(bytes, &h, sizeof h);
        return NIFTI_1_HEAD;
    }
    nifti_2_header h = {.sizeof_hdr = 540};
    memcpy(h.magic, "n+2\0\r\n\032\n", 8);
    EACH_FIELD(&f, &h, TO_HEADER);
    memcpy(h.descrip, made_by, sizeof made_by);
    memcpy(bytes, &h, sizeof h);
    return NIFTI_2_HEAD;
}
