/* SPDX-License-Identifier: Apache-2.0 */
/*
 * dosemap: voxel-wise absorbed-dose maps of 177Lu-PSMA therapy, predicted from the PET before it.
 * For research; not for clinical decisions.
 *
 * Conventions that hold for every function here
 *   Errors    Functions that can fail return a dm_status and fill `err` (may be NULL). On failure
 *             every output pointer is set to NULL and no output file stays behind. The library
 *             never prints, exits or aborts.
 *   Memory    dm_X_free accepts NULL. Strings that a function hands out as `char **` are released
 *             with dm_string_free; `const char *` belong to the object they came from.
 *   Threads   Different objects may be used by different threads at the same time. One object may
 *             be read (const) by many threads; everything else on it is one thread at a time.
 *   Volumes   x is the fastest axis, as in NIfTI: voxel (i, j, k) is
 *             data[i + dim[0]*(j + dim[1]*k)].
 *   Unknown   A double that is not known is NAN, never 0.
 */
#ifndef DOSEMAP_H
#define DOSEMAP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define DM_API __attribute__((visibility("default")))
#else
#define DM_API
#endif

/* ---- Status and errors ---------------------------------------------------------------------- */

/* The numbers never change; the gaps are for later kinds. */
typedef enum dm_status {
    DM_OK = 0,
    DM_ERROR_IO = 10,          /* a file cannot be opened, read or written */
    DM_ERROR_FORMAT = 20,      /* a file does not hold what its format promises */
    DM_ERROR_VALUE = 30,       /* an argument or an input value is missing or out of range */
    DM_ERROR_UNSUPPORTED = 40, /* valid, but not something this build or program handles */
    DM_ERROR_MEMORY = 50,
    DM_ERROR_DEVICE = 60,
    DM_CANCELLED = 70 /* the progress callback asked to stop */
} dm_status;

/* Owned by the caller; zero-initialise it. All strings are NUL-terminated, possibly truncated. */
typedef struct dm_error {
    dm_status status;
    char where[512];  /* file, and the place in it; empty if no file is involved */
    char what[512];   /* what is wrong, with the value that was found */
    char remedy[512]; /* what to do about it; may be empty */
} dm_error;

/* "WHERE: WHAT; REMEDY" in one line. Returns `buffer`. Always terminates when size > 0. */
DM_API char *dm_error_text(const dm_error *err, char *buffer, size_t size);

DM_API const char *dm_status_name(dm_status status);

DM_API void dm_string_free(char *string);

/* The text and a newline to a file, whole or not at all. Errors: IO, MEMORY. */
DM_API dm_status dm_text_write(const char *path, const char *text, dm_error *err);

/* Removes the partial files that this process is writing at this moment. Async-signal-safe: for a
 * handler of SIGINT or SIGTERM that ends the process right after it. */
DM_API void dm_remove_partial_files(void);

/* "1.2.3" of the running library. Static. */
DM_API const char *dm_version(void);

/* ---- Volumes -------------------------------------------------------------------------------- */

/* Where voxels lie. `affine` takes a voxel index (i, j, k, 1) to millimetres in RAS space, as the
 * file's sform (or else its qform, or else its pixel sizes) says; spacing_mm are its column norms.
 */
typedef struct dm_grid {
    size_t dim[3];
    double spacing_mm[3];
    double affine[3][4];
} dm_grid;

/* A 3D volume in float32, x fastest. `header` keeps the NIfTI header that it was read with, so that
 * what is written on this grid has the same qform and sform; NULL for volumes without one. */
typedef struct dm_volume {
    dm_grid grid;
    float *data;
    bool owns_data;
    struct nifti_header_copy *header;
} dm_volume;

/* Number of voxels, dim[0]*dim[1]*dim[2]. */
DM_API size_t dm_grid_voxels(const dm_grid *grid);

/* True if both grids have the same size and no corner lies further apart than a tenth of the
 * smallest voxel edge. `reason` (may be NULL) receives what differs. */
DM_API bool dm_grid_equal(const dm_grid *a, const dm_grid *b, char *reason, size_t reason_size);

/* Reads NIfTI-1 or -2, .nii, .nii.gz or .nii.zst (told by content, not by name), any integer or
 * float datatype, either byte order, scl_slope and scl_inter applied; 3D, or more dimensions of
 * size 1. Values keep the file's unit. Errors: IO, FORMAT, UNSUPPORTED (complex, RGB, 4D series),
 * MEMORY. */
DM_API dm_status dm_volume_read(const char *path, dm_volume **volume, dm_error *err);

/* A zero-filled volume on `grid` (spacing_mm is derived from the affine). */
DM_API dm_status dm_volume_create(const dm_grid *grid, dm_volume **volume, dm_error *err);

/* A zero-filled volume on the grid, and with the header, of `like`. */
DM_API dm_status dm_volume_create_like(const dm_volume *like, dm_volume **volume, dm_error *err);

/* Borrows `data`, which must outlive the volume and is not written to unless the volume is used as
 * an output. */
DM_API dm_status dm_volume_view(const dm_grid *grid, float *data, dm_volume **volume,
                                dm_error *err);

/* The same with the grid and the header that dm_volume_read gives a file with this NIfTI-1 or -2
 * header (348 or 540 bytes, in either byte order, and the 4 behind them, which announce extensions,
 * or not), so that what is written on its grid has the same qform and sform. How the file stores its
 * voxels (datatype, scaling, offset, pair) does not matter. Errors: FORMAT, UNSUPPORTED (4D), VALUE
 * (no data), MEMORY. */
DM_API dm_status dm_volume_view_header(const void *header, size_t size, float *data,
                                       dm_volume **volume, dm_error *err);

DM_API void dm_volume_free(dm_volume *volume);

/* Writes float32 NIfTI to .nii, .nii.gz or .nii.zst (told by the name), with the qform, sform and
 * codes of the volume's header; NIfTI-2 only where that header was, or a dimension exceeds 32767.
 * The bytes do not depend on `threads` (0: all cores). The file appears whole or not at all. */
DM_API dm_status dm_volume_write(const dm_volume *volume, const char *path, unsigned threads,
                                 dm_error *err);

/* True if every voxel is finite; otherwise `ijk` (may be NULL) is the first that is not. */
DM_API bool dm_volume_all_finite(const dm_volume *volume, size_t ijk[3]);

/* ---- PET quantification --------------------------------------------------------------------- */

typedef enum dm_units {
    DM_UNITS_UNKNOWN = 0,
    DM_UNITS_SUV = 1,  /* body-weight SUV, g/mL */
    DM_UNITS_BQML = 2, /* Bq/mL */
    DM_UNITS_KBQML = 3 /* kBq/mL */
} dm_units;

/* The time to which an image is decay-corrected. */
typedef enum dm_decay {
    DM_DECAY_UNKNOWN = 0,
    DM_DECAY_INJECTION = 1, /* DICOM ADMIN */
    DM_DECAY_START = 2,     /* start of the series */
    DM_DECAY_NONE = 3 /* not corrected: as at the frame's own mid-time, taken as scan_time_s */
} dm_decay;

/* What a model's input or output means physically. */
typedef enum dm_quantity {
    DM_QUANTITY_UNKNOWN = 0,
    DM_QUANTITY_UPTAKE =
        1, /* SUV normalised to 78.7 kg: Bq/mL / injected Bq * 78700 g; what dose scales with */
    DM_QUANTITY_SUV = 2,
    DM_QUANTITY_HU = 3,
    DM_QUANTITY_DOSE_PER_ACTIVITY = 4, /* Gy per GBq administered */
    DM_QUANTITY_OTHER = 5              /* anything else, in a unit of its own; not for prediction */
} dm_quantity;

#define DM_REFERENCE_WEIGHT_KG 78.7

/* What is known about a PET. Unknown doubles are NAN. Times are seconds on one common clock (any
 * origin; time of day, say). Two times of day (0 to 86400) with the scan before the injection are
 * taken to lie on either side of midnight; a scan more than a day later needs times with dates. */
typedef struct dm_pet_info {
    dm_units units;
    dm_decay decay;
    double body_weight_kg;
    double injected_mbq; /* at injection_time_s */
    double residual_mbq; /* left in the syringe, at injection_time_s; NAN counts as none */
    double half_life_s;  /* of the PET nuclide */
    double injection_time_s;
    double scan_time_s;    /* start of the series; for DM_DECAY_NONE the time the voxels refer to */
    char radionuclide[16]; /* as in "Ga68"; empty if unknown */
    char tracer[64];
    char sidecar[512]; /* the sidecar that was read; empty if none */
} dm_pet_info;

/* Everything unknown. */
DM_API void dm_pet_info_init(dm_pet_info *info);

/* Fills `info` from the BIDS-PET or dcm2niix JSON beside `pet_path` (same name, .json). Without
 * such a file `info` is only initialised. What the sidecar leaves open or contradicts itself in
 * (an activity without unit, DecayCorrection against ImageDecayCorrected) stays unknown.
 *   Injection   TimeZero + InjectionStart, else RadiopharmaceuticalStart(Date)Time.
 *   Scan        TimeZero + ScanStart, else SeriesTime unless it is after AcquisitionTime, else
 *               AcquisitionTime. dcm2niix takes AcquisitionTime from one slice: of a PET in several
 *               bed positions it may not be the series' start. Not decay-corrected: the frame's
 *               start (TimeZero + FrameTimesStart) plus half of FrameDuration.
 *   Decay       DecayCorrection, else ImageDecayCorrected with ImageDecayCorrectionTime; an image
 *               corrected to another time than the injection is DM_DECAY_START with that time.
 *   Activity    InjectedRadioactivity in its unit, else RadionuclideTotalDose in Bq (in MBq where
 *               Modality is NM, as DICOM has it).
 *   Half-life   RadionuclideHalfLife, else that of TracerRadionuclide.
 *   Weight      BodyWeight, else PatientWeight, in kg.
 * Errors: FORMAT (not JSON), VALUE (a value of the wrong type, negative, or an unknown word). */
DM_API dm_status dm_pet_info_read(const char *pet_path, dm_pet_info *info, dm_error *err);

/* "13:06:28.148", "2018-11-15T09:22:00", "3600" or "3600s" to seconds. Times of day are seconds
 * after midnight, dates seconds on a continuous clock. Six digits that DICOM would read as HHMMSS
 * are refused without the s: they could be either. */
DM_API dm_status dm_time_parse(const char *text, double *seconds, dm_error *err);

/* T1/2 in seconds of "Ga68", "68Ga", "Ga-68", "[68Ga]", "^68^Gallium", "Tc99m", ... (ICRP 107); NAN
 * if not in the list. */
DM_API double dm_half_life_s(const char *radionuclide);

/* The factor from stored PET values to `quantity` (DM_QUANTITY_UPTAKE or DM_QUANTITY_SUV).
 * With m = weight (g), A = injected activity decayed to the image's reference time (Bq):
 * SUV = C*m/A, uptake = C*78700/A = SUV*78.7/weight. Fails with DM_ERROR_VALUE naming the missing
 * value and the command-line option that gives it; nothing is ever guessed. Values that cannot be
 * right fail too: a weight outside 1 to 500 kg, an activity outside 1 kBq to 1 TBq (a wrong unit),
 * a scan before the injection or more than 7 half-lives after it (a wrong time). */
DM_API dm_status dm_pet_factor(const dm_pet_info *info, dm_quantity quantity, double *factor,
                               dm_error *err);

/* ---- Labels --------------------------------------------------------------------------------- */

/* Named structures on a grid; they may overlap. */
typedef struct dm_labels dm_labels;

/* `path`: one multi-label NIfTI (whole numbers from 0 to 16777215; each that is not 0 is a
 * structure) or a folder with one mask per structure (non-zero is inside; the file's name is the
 * structure's). `names_path`: JSON or TSV that maps ids to names, or NULL: then the BIDS table
 * NAME.tsv beside the label file, if any; ids without a name are called "label_ID".
 * "totalsegmentator:total" and "totalsegmentator:head_glands_cavities" name TotalSegmentator's ids.
 */
DM_API dm_status dm_labels_read(const char *path, const char *names_path, dm_labels **labels,
                                dm_error *err);

/* From memory; copies what it is given. ids: one integer per voxel of `grid`, 0 is background.
 * names_path: as for dm_labels_read; NULL: every id is called "label_ID". Errors: VALUE (the grid,
 * more than 65536 ids), IO, FORMAT, MEMORY. */
DM_API dm_status dm_labels_create(const dm_grid *grid, const int32_t *ids, const char *names_path,
                                  dm_labels **labels, dm_error *err);

/* From n masks in memory, which may overlap and are copied: one byte per voxel of `grid`, not 0 is
 * inside. Mask i has names[i] and the id i + 1. Errors: VALUE (the grid, more than 65536 masks, a
 * name that is given twice or cannot stand in a table: empty, with control characters, not UTF-8),
 * MEMORY. */
DM_API dm_status dm_labels_create_masks(const dm_grid *grid, size_t n, const char *const *names,
                                        const uint8_t *const *masks, dm_labels **labels,
                                        dm_error *err);

/* Another name for the structure with that id, which keeps its own on failure. Errors: VALUE (no
 * such id, another structure's name, one that cannot stand in a table), MEMORY. */
DM_API dm_status dm_labels_rename(dm_labels *labels, int32_t id, const char *name, dm_error *err);

DM_API void dm_labels_free(dm_labels *labels);
DM_API const dm_grid *dm_labels_grid(const dm_labels *labels);
DM_API size_t dm_labels_count(const dm_labels *labels);
DM_API const char *dm_labels_name(const dm_labels *labels, size_t index);
DM_API int32_t dm_labels_id(const dm_labels *labels, size_t index);
DM_API size_t dm_labels_voxels(const dm_labels *labels, size_t index);

/* The same structures on `grid` by nearest neighbour: a voxel belongs by its centre. */
DM_API dm_status dm_labels_resample(const dm_labels *labels, const dm_grid *grid,
                                    dm_labels **resampled, dm_error *err);

/* ---- Dose-volume histograms ----------------------------------------------------------------- */

/* Dose unit: Gy, or Gy/GBq where the map is per administered activity. Dx: lowest dose of the
 * hottest x % of the volume, by linear interpolation of the exact sorted volume curve: the hottest
 * k of n voxels receive at least the kth highest dose, which is Dx for x = 100 k/n; linear in
 * between, and the maximum for x < 100/n. D2cc: of the hottest 2 cm3, NAN for smaller structures. A
 * structure without voxels has no bins and NAN everywhere. Negative doses count to the first bin.
 */
typedef struct dm_structure_dose {
    const char *name;
    int32_t id;
    size_t voxels;
    double volume_cm3;
    double mean, minimum, maximum;
    double d2, d50, d95, d98, d2cc;
    const double *v_percent; /* volume (%) that receives at least each threshold asked for, which
                                is rounded to float32 as the doses are */
    size_t bins;             /* dose bins of `bin_width`, from 0; the last one holds the maximum */
    double bin_width;        /* min(0.01, maximum/1000); 0.01 where the maximum is 0; above a
                                maximum of 1000 maximum/100000, so that the bins stay few */
    const uint64_t *histogram; /* differential: voxels in [b*bin_width, (b+1)*bin_width) */
} dm_structure_dose;

typedef struct dm_dvh dm_dvh;

typedef struct dm_dvh_options {
    const double *v_thresholds; /* doses for Vx, in the map's unit; NULL for none */
    size_t n_v_thresholds;
    bool per_activity; /* the map is Gy/GBq instead of Gy */
    unsigned threads;  /* 0: all cores */
} dm_dvh_options;

/* The dose map and the labels must lie on the same grid (dm_grid_equal). `options` may be NULL. The
 * result does not depend on the number of threads. Errors: VALUE (grids, a dose in a structure that
 * is not finite, a negative threshold), MEMORY. */
DM_API dm_status dm_dvh_compute(const dm_volume *dose, const dm_labels *labels,
                                const dm_dvh_options *options, dm_dvh **dvh, dm_error *err);
DM_API void dm_dvh_free(dm_dvh *dvh);
DM_API size_t dm_dvh_count(const dm_dvh *dvh);
/* Borrowed from `dvh`; NULL where there is no such structure. */
DM_API const dm_structure_dose *dm_dvh_structure(const dm_dvh *dvh, size_t index);

/* Organ table, one row per structure: name, id, voxels, volume_cm3, then mean, min, max, d2, d50,
 * d95, d98, d2cc and each Vx, with the unit in the name: mean_gy, v20gy_percent, or
 * mean_gy_per_gbq, v0.5gy_per_gbq_percent. Undefined values are BIDS "n/a". Written whole or not at
 * all. */
DM_API dm_status dm_dvh_write_organs(const dm_dvh *dvh, const char *tsv_path, dm_error *err);
/* Cumulative curves, one row per structure and bin edge: name, id, dose_gy (or dose_gy_per_gbq),
 * volume_cm3 and volume_percent at or above that dose. The last row of a structure lies above its
 * maximum and has volume 0; more than 2000 rows are thinned evenly; a structure without voxels has
 * none. */
DM_API dm_status dm_dvh_write_curves(const dm_dvh *dvh, const char *tsv_path, dm_error *err);
/* Organ table as a JSON array of objects with the organ table's column names; null for undefined.
 */
DM_API dm_status dm_dvh_json(const dm_dvh *dvh, char **json, dm_error *err);

/* ---- Models --------------------------------------------------------------------------------- */

typedef struct dm_model dm_model;

/* Reads and validates a weights file (.safetensors.zst or .safetensors with graph and card in its
 * metadata; weights/FORMAT.md). Nothing in it is ever executed. */
DM_API dm_status dm_model_load(const char *path, dm_model **model, dm_error *err);
DM_API void dm_model_free(dm_model *model);
DM_API const char *dm_model_name(const dm_model *model);
DM_API const char *dm_model_path(const dm_model *model);
DM_API dm_quantity dm_model_input_quantity(const dm_model *model); /* of the first input */
/* Has the model an input of that quantity? One of DM_QUANTITY_HU wants a CT. */
DM_API bool dm_model_takes(const dm_model *model, dm_quantity quantity);

/* The model's card, and its graph, as JSON text; borrowed. */
DM_API const char *dm_model_card_json(const dm_model *model);
DM_API const char *dm_model_graph_json(const dm_model *model);

typedef enum dm_precision {
    DM_PRECISION_AUTO = 0,
    DM_PRECISION_FLOAT32 = 1,
    DM_PRECISION_TF32 = 2,
    DM_PRECISION_BF16 = 3,
    DM_PRECISION_FP16 = 4
} dm_precision;

/* Who computes the network's convolutions on a CUDA device. The CPU has one way only. */
typedef enum dm_convolutions {
    DM_CONVOLUTIONS_AUTO = 0,    /* what `dosemap bench --tune` found fastest, where it was run for
                                    this network, device and batch; else as LIBRARY */
    DM_CONVOLUTIONS_LIBRARY = 1, /* the vendor's library wherever it takes the tensors as they lie;
                                    kernels of ours elsewhere */
    DM_CONVOLUTIONS_OWN = 2      /* kernels of ours only; the library need not be installed */
} dm_convolutions;

typedef enum dm_plan {
    DM_PLAN_CPU = 0, /* bytes and FLOPs of the plan's steps */
    DM_PLAN_CUDA = 1 /* besides, what each operation of a CUDA device moves and computes */
} dm_plan;

/* Zero is the default of every field. */
typedef struct dm_describe_options {
    size_t tile[3];         /* x, y, z voxels of the plan's tile; 0: the training patch */
    dm_precision precision; /* AUTO: float32 */
    bool as_json;           /* else text for people */
    dm_plan plan;
    /* DM_PLAN_CUDA: */
    unsigned batch;                /* windows per call of the network; 0: as a prediction chooses */
    size_t windows;                /* of the job, on which batch and plans of the library depend; 0:
                                      as a volume of 200 x 200 x 450 voxels has at half overlap */
    dm_convolutions convolutions;  /* OWN needs no library */
    const char *device_properties; /* JSON file, in cuDNN's words (cudaDeviceProp), of a device to
                                      take instead of the first one here; NULL: that one, or
                                      without any an H100 */
} dm_describe_options;

DM_API void dm_describe_options_init(dm_describe_options *options);

/* What `dosemap inspect` prints: card, graph, plan, FLOPs, bytes and arena size. options: NULL for
 * the defaults. The account of a CUDA device is counted from the operands of its launches, each read
 * or written once, per window; it needs the CUDA module and, but for OWN, cuDNN, but no device and
 * no driver. Errors: VALUE (an option, a tile that does not fit), DEVICE (no module, no library),
 * IO and FORMAT (device_properties), UNSUPPORTED, MEMORY. */
DM_API dm_status dm_model_describe(const dm_model *model, const dm_describe_options *options,
                                   char **text, dm_error *err);

/* What differs between two weights files: card, provenance, graph, and for each weight by how much
 * (relative L2 of b - a, largest difference), as JSON or as text for people. Names of operations
 * and weights do not count where both graphs have the same operators in the same order. same (may
 * be NULL): card, graph and weights are alike. Errors: MEMORY. */
DM_API dm_status dm_model_compare(const dm_model *a, const dm_model *b, bool as_json, bool *same,
                                  char **text, dm_error *err);

/* ---- CT for networks that take one ---------------------------------------------------------- */

#define DM_AIR_HU (-1000.0f)

/* Zero is the default of every field. */
typedef struct dm_ct_options {
    bool is_hu;      /* take the values as HU whatever they look like */
    bool nan_to_air; /* take NaN and Inf voxels as air instead of failing */
} dm_ct_options;

/* How a CT came onto a PET's grid. */
typedef struct dm_ct_info {
    size_t dim[3]; /* size and voxels of the CT before */
    double spacing_mm[3];
    double lowest, highest; /* of its values, HU */
    size_t voxels_to_air;   /* that were not finite */
    bool resampled;         /* false: it lies on the PET's grid, and was taken as it is */
    /* Shares of the PET's voxels, and of the sum of its positive values, that reach into the CT's
     * field of view; the others have DM_AIR_HU. */
    double voxels_covered, activity_covered;
} dm_ct_info;

/* A CT in HU onto the grid of `pet`, a new volume without NaN: averaged over a PET voxel where that
 * is more than 1.5 times longer, else interpolated linearly at its centre; copied where the grids
 * are equal (dm_grid_equal). The CT may be stored in any orientation and spacing along the PET's
 * axes. ct: values as dm_volume_read gives them. options: NULL for the defaults.
 * Errors: VALUE (values that cannot be HU: none from -200 down, as air has, none from -200 up, or
 * some beyond 100000; NaN or Inf; axes that are not the PET's; no voxel in common), MEMORY. */
DM_API dm_status dm_ct_onto_pet(const dm_volume *ct, const dm_volume *pet,
                                const dm_ct_options *options, dm_volume **on_pet, dm_ct_info *info,
                                dm_error *err);

/* ---- Prediction ----------------------------------------------------------------------------- */

/* The images of one patient, borrowed by the function that takes them. Zero is the default of every
 * field; later versions may have more. */
typedef struct dm_patient {
    const dm_volume *pet;      /* stored values */
    const dm_pet_info *info;   /* how to quantify them */
    const dm_volume *ct;       /* HU on the PET's grid (dm_ct_onto_pet), where dm_model_takes
                                DM_QUANTITY_HU; else NULL */
    const dm_ct_info *ct_info; /* for the provenance; may be NULL */
    const dm_labels *labels;   /* structures on the PET's grid, or NULL */
    double activity_gbq;       /* of this patient's therapy; 0: that of the options */
} dm_patient;

typedef enum dm_blend { DM_BLEND_GAUSSIAN = 0, DM_BLEND_CONSTANT = 1 } dm_blend;

/* Called from the thread that runs the prediction, with the share done in [0, 1] and the name of
 * the stage. A non-zero return cancels. */
typedef int (*dm_progress)(void *user, double share, const char *stage);

#define DM_TILE_WHOLE SIZE_MAX
#define DM_TILE_AUTO (SIZE_MAX - 1)

typedef struct dm_predict_options {
    size_t tile[3];      /* x, y, z voxels of the model grid; 0: the training patch;
                        DM_TILE_WHOLE: the whole volume; DM_TILE_AUTO (all three): what is least
                        work within the memory, from the patch to the whole volume. The choice
                        depends on memory and threads, and the dose map on the choice, which the
                        provenance names; InstanceNorm or GroupNorm keep the patch */
    bool force_tile;     /* allow a tile other than the patch with InstanceNorm or GroupNorm */
    double overlap;      /* share of the tile, 0 to 0.9; NAN: 0.5, or 0 for a whole tile; for
                        DM_TILE_AUTO as many voxels as half of the training patch */
    size_t memory_bytes; /* that the process may take, as estimated beforehand; more is
                            DM_ERROR_MEMORY. 0: what this process can have when the predictor is
                            made (machine, control groups, RLIMIT_AS, RLIMIT_DATA), of which
                            DM_TILE_AUTO uses 80 % */
    dm_blend blend;
    double skip_air; /* windows whose maximum, in the input quantity, lies below it are
                        taken as zero dose; NAN: the card's, or with network_values off;
                        -INFINITY: off */
    dm_precision precision;
    const char *device;           /* "auto", "cpu", "cuda", "cuda:0,1"; NULL: auto */
    unsigned threads;             /* 0: OMP_NUM_THREADS, then all cores */
    unsigned batch;               /* windows per call of the network; 0: chosen; the CPU runs one */
    dm_convolutions convolutions; /* AUTO but on a CUDA device */
    double activity_gbq;          /* therapy activity, where a dm_patient has none of its own: the
                                     map is Gy; NAN: Gy/GBq */
    bool nan_to_zero;             /* take NaN and Inf voxels as 0 instead of failing */
    bool network_values;          /* images and map hold the network's own values: what it takes
                                     behind its intensity transforms, and its output before its own.
                                     For pipelines that do both themselves. See dm_predictor_create */
    const double *v_thresholds;   /* for Vx of the DVHs */
    size_t n_v_thresholds;
    dm_progress progress; /* may be NULL */
    void *progress_user;
} dm_predict_options;

DM_API void dm_predict_options_init(dm_predict_options *options);

/* A model made ready on a device with these options; reusable over many PETs, one at a time. Keeps
 * a reference to `model`, which must outlive it; copies `options`. The model has one input of
 * UPTAKE or SUV, at most one more, of HU, and one output of DOSE_PER_ACTIVITY with a value for each
 * voxel, of one channel each; what it needs for other outputs only is not computed.
 *   With network_values the model has one or two channels of input, whatever they mean: the first is
 * the patient's `pet`, the second its `ct`, in the order of the graph. Its output, of one value for
 * each voxel, is that of DOSE_PER_ACTIVITY or the only one. There is no quantification (`info` may
 * be NULL), no transform, and no activity or labels (VALUE).
 *   Errors: VALUE (an option out of range), UNSUPPORTED (model, precision), DEVICE, MEMORY (a tile
 * that no memory holds). */
typedef struct dm_predictor dm_predictor;
DM_API dm_status dm_predictor_create(const dm_model *model, const dm_predict_options *options,
                                     dm_predictor **predictor, dm_error *err);
DM_API void dm_predictor_free(dm_predictor *predictor);

/* Counts `volumes` more of this grid's size, which the caller will hold beside the PET, its CT where
 * the model takes one, and its dose map, as memory of the runs from now on. False, and none is
 * counted, if a PET of this grid with these labels (NULL: none) could not be predicted then, or with
 * DM_TILE_AUTO only with a tile that is more work. What the caller holds is taken to have this grid:
 * of a larger next PET the surplus is not counted, nor are its labels. One thread at a time, as
 * dm_predictor_run. */
DM_API bool dm_predictor_reserve(dm_predictor *predictor, const dm_grid *grid,
                                 const dm_labels *labels, unsigned volumes);

/* One patient's result. */
typedef struct dm_prediction dm_prediction;

/* The dose map lies on the PET's grid. Errors: VALUE (images missing, not wanted, on another grid or
 * with values that are no numbers; quantification; the patient's activity), MEMORY before anything
 * is computed where it needs more memory than options.memory_bytes allows. */
DM_API dm_status dm_predictor_run(dm_predictor *predictor, const dm_patient *patient,
                                  dm_prediction **prediction, dm_error *err);
DM_API void dm_prediction_free(dm_prediction *prediction);
/* Gy, or Gy/GBq without an activity. Borrowed. */
DM_API const dm_volume *dm_prediction_dose(const dm_prediction *prediction);
/* NULL without labels. Borrowed. */
DM_API const dm_dvh *dm_prediction_dvh(const dm_prediction *prediction);
/* Provenance as JSON: options, model, device, precision, windows run and skipped, stage times.
 * Borrowed. */
DM_API const char *dm_prediction_provenance_json(const dm_prediction *prediction);

/* Files that a prediction came from, for the sidecar; any may be NULL. */
typedef struct dm_sources {
    const char *pet_path;
    const char *ct_path;
    const char *labels_path;
    const char *command_line;
} dm_sources;

/* Paths that dm_prediction_write would write for OUT.nii[.gz|.zst]: the dose map, OUT.json, and
 * with labels OUT_dvh.tsv and OUT_organs.tsv. */
typedef struct dm_output_paths {
    char dose[4096], sidecar[4096], dvh[4096], organs[4096];
} dm_output_paths;
DM_API dm_status dm_output_paths_from(const char *dose_path, dm_output_paths *paths, dm_error *err);

/* Writes the dose map, then DVH and organ table where there are labels, then the sidecar, which
 * holds the checksums of all of them. Each appears whole or not at all; a failure removes what this
 * call has written. */
DM_API dm_status dm_prediction_write(const dm_prediction *prediction, const char *dose_path,
                                     const dm_sources *sources, unsigned threads, dm_error *err);

/* True if the sidecar of `dose_path` exists and the dose map beside it has the checksum it names:
 * the prediction is finished. */
DM_API bool dm_prediction_is_complete(const char *dose_path);

/* ---- The network alone ---------------------------------------------------------------------- */

/* Patches of one input or output of a model, in the network's values (behind its intensity
 * transform) and axes (`spatial_axes` of its graph): element (n, c, i, j, k) is
 * data[(((n*channels + c)*size[0] + i)*size[1] + j)*size[2] + k]. */
typedef struct dm_patches {
    const char *name; /* of the input or output, as the graph has it */
    size_t count, channels, size[3];
    float *data;
} dm_patches;

typedef struct dm_forward_options {
    dm_precision precision;       /* AUTO: float32 */
    const char *device;           /* "auto", "cpu", "cuda", "cuda:1"; NULL: auto */
    unsigned threads;             /* 0: OMP_NUM_THREADS, then all cores */
    dm_convolutions convolutions; /* on the CPU, LIBRARY: oneDNN's alone, without minimal filtering:
                                     nearer to exact arithmetic, in less memory, slower */
    dm_progress progress;         /* may be NULL */
    void *progress_user;
} dm_forward_options;

DM_API void dm_forward_options_init(dm_forward_options *options);

/* What the network makes of patches: no tiling, no units, no intensity transforms. Any model, also
 * one that cannot predict. inputs: one for each of the graph's, in any order, all with the same
 * count (at least 1) and size, which the network has to be defined for; their data are read only.
 * *outputs: one for each of the graph's, in its order, whose size may be another; released with
 * dm_patches_free; names belong to the model. options: NULL for the defaults. On the CPU patches run
 * side by side, one for each thread, as far as there is memory, and a patch's result does not depend
 * on the others. Errors: VALUE (an input missing, unknown, or of the wrong shape; a value that is
 * not finite, there or in the result), UNSUPPORTED (precision), DEVICE, MEMORY, CANCELLED. */
DM_API dm_status dm_model_forward(const dm_model *model, const dm_patches *inputs, size_t n_inputs,
                                  const dm_forward_options *options, dm_patches **outputs,
                                  size_t *n_outputs, dm_error *err);
DM_API void dm_patches_free(dm_patches *patches, size_t n);

/* The same from one safetensors file to another, of any size: tensors named as the graph's inputs
 * and outputs, F32, (count, channels, size). A few patches are in memory at a time. The output file
 * appears whole or not at all. Errors: besides, IO and FORMAT. */
DM_API dm_status dm_model_forward_file(const dm_model *model, const char *input_path,
                                       const char *output_path, const dm_forward_options *options,
                                       dm_error *err);

/* ---- Benchmark ------------------------------------------------------------------------------ */

typedef enum dm_scenario {
    DM_SCENARIO_OFFLINE = 1,       /* the network alone, as many windows a second as it can */
    DM_SCENARIO_SINGLE_STREAM = 2, /* the network alone, one window after the other: latency */
    DM_SCENARIO_VOLUME = 4,        /* whole volumes, from PET in memory to dose map in memory */
    DM_SCENARIO_ALL = 7
} dm_scenario;

typedef struct dm_benchmark_options {
    unsigned scenarios; /* dm_scenario, added up */
    size_t size[3];     /* of the PET that is made where none is given, x, y, z, to 65536; 0, 0, 0:
                           200, 200, 450 on a GPU and 128, 128, 256 on the CPU */
    unsigned runs;      /* of each scenario; 0: 10, of single windows 100, of volumes 3 */
    unsigned warmup;    /* runs before them; 0: 2, of volumes 1 */
    bool layers;        /* the network's steps one by one as well; includes DM_SCENARIO_OFFLINE */
    bool tune;          /* first choose the fastest convolutions of a device, for all later runs */
    const char *pet_path, *command_line; /* for the report; NULL: unknown */
} dm_benchmark_options;

/* All scenarios. */
DM_API void dm_benchmark_options_init(dm_benchmark_options *options);

/* Measures prediction with these options on this machine. predict, options: NULL for defaults.
 * patient: what is predicted, labels left out; NULL: a PET, and CT if the model takes one, that are
 * made. *json: one object,
 * whose keys bench/README.md explains. Calls predict->progress as a prediction does. A device on the
 * host (emulated, for tests) is measured like any other; "emulated" is true then, and times mean
 * nothing. Errors: as dm_predictor_create and dm_predictor_run; VALUE (options), UNSUPPORTED (tune
 * where there is nothing to choose), IO (what tuning found cannot be written). One thread at a
 * time. */
DM_API dm_status dm_benchmark(const dm_model *model, const dm_predict_options *predict,
                              const dm_benchmark_options *options, const dm_patient *patient,
                              char **json, dm_error *err);

/* ---- This installation ---------------------------------------------------------------------- */

/* What `dosemap doctor` prints: versions, libraries, CPU features, devices, model search path. */
DM_API dm_status dm_doctor(bool as_json, char **text, dm_error *err);

/* The weights used when none are named: $DOSEMAP_MODEL, then the installed data folder, then
 * weights/ of the build tree. */
DM_API dm_status dm_default_model_path(char *path, size_t size, dm_error *err);

#ifdef __cplusplus
}
#endif
#endif
