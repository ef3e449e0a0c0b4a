/* SPDX-License-Identifier: Apache-2.0 */
#ifndef DOSEMAP_PREDICT_DOCTOR_H
#define DOSEMAP_PREDICT_DOCTOR_H

#include <jansson.h>

/* What `dosemap doctor --json` prints; a new reference, NULL when memory is short. */
json_t *doctor_facts(void);

#endif
