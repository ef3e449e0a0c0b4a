/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The CUDA backend is a module of its own, libdosemap-cuda.so, that is loaded when somebody asks
 * for a CUDA device: only it needs the CUDA runtime and cuDNN. It is looked for in
 * $DOSEMAP_CUDA_MODULE (a file), else beside the library in the folder dosemap/ or, where it was
 * built, modules/.
 */
#ifndef DOSEMAP_PREDICT_CUDA_MODULE_H
#define DOSEMAP_PREDICT_CUDA_MODULE_H

#include <string.h>

#include "model/plan_account.h"
#include "predict/backend.h"

/* Program and module are built together; this tells whether they were. */
typedef struct cuda_module_stamp {
    const char *version;
    size_t sizes[12];
} cuda_module_stamp;
#define CUDA_MODULE_STAMP                                                                          \
    {                                                                                              \
        DOSEMAP_VERSION,                                                                           \
        {                                                                                          \
            sizeof(backend), sizeof(backend_options), sizeof(predict_job), sizeof(predict_result), \
                sizeof(plan), sizeof(plan_step), sizeof(graph_node), sizeof(dm_structure_dose),    \
                sizeof(plan_account), sizeof(measure_request), sizeof(measure_result),             \
                sizeof(measured_ceilings)                                                          \
        }                                                                                          \
    }

/* What there is, for people. Empty strings and 0: unknown. */
typedef struct cuda_facts {
    char device[256];
    int devices;
    int capability[2];
    size_t memory, free_memory;
    int driver, runtime; /* 13000 is 13.0 */
    char cudnn[32];
    bool lacks_library; /* and nothing else: kernels of ours alone can be used */
} cuda_facts;

/* As dm_describe_options. device_properties: the file's text, NULL for none. */
typedef struct cuda_account_options {
    dm_precision precision;
    unsigned batch;
    size_t windows;
    dm_convolutions convolutions;
    const char *device_properties;
} cuda_account_options;

typedef struct cuda_module {
    const backend *backend;
    bool emulated; /* on the host, for tests: never chosen without being asked for */
    /* Whether that device can be used; `facts`: what was found until something was missing.
     * Errors: DEVICE, with what is missing and what to install. */
    dm_status (*probe)(int device, cuda_facts *facts, dm_error *err);
    /* What launches of the plan's network move and compute, per window. Needs neither device nor
     * driver. Errors: DEVICE (no library), VALUE (properties of no device), UNSUPPORTED, MEMORY. */
    dm_status (*account)(const plan *plan, const cuda_account_options *options,
                         plan_account *account, dm_error *err);
} cuda_module;

/* The module's one symbol. Errors: DEVICE if the stamps differ. */
#define CUDA_MODULE_SYMBOL "dosemap_cuda_backend"
typedef dm_status (*cuda_module_entry)(const cuda_module_stamp *stamp, const cuda_module **module,
                                       dm_error *err);

/* Loads it the first time, in whatever thread. Errors: DEVICE, the same each time. */
dm_status cuda_module_load(const cuda_module **module, dm_error *err);
/* The file that it is, or that could not be loaded; NULL if there is none. */
const char *cuda_module_path(void);

#endif
