/* SPDX-License-Identifier: Apache-2.0 */
/* The two halves of dm_model_compare. */
#ifndef DOSEMAP_MODEL_MODEL_COMPARE_H
#define DOSEMAP_MODEL_MODEL_COMPARE_H

#include <jansson.h>

#include "model/graph.h"

/* The report of model_compare.c for people (model_compare_text.c). Errors: MEMORY. */
dm_status comparison_text(const json_t *report, char **text, dm_error *err);

#endif
