/* SPDX-License-Identifier: Apache-2.0 */
/* The keys of a model card that the program acts on; others are for people. */
#ifndef DOSEMAP_MODEL_MODEL_CARD_H
#define DOSEMAP_MODEL_MODEL_CARD_H

#include "model/graph.h"

/* Sets name (from the graph where the card has none), skip_air and native_precisions of `model`,
 * whose card_json and graph are there. */
dm_status model_card_read(dm_model *model, dm_error *err);

#endif
